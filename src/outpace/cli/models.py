"""The commands about models and this installation: `pull`, `models`, `version`."""

from __future__ import annotations

from typing import Annotated

import typer

from outpace.cli.streams import put


def pull(
    model: Annotated[
        str, typer.Argument(help="A known name (`outpace models`) or a hub id (owner/name, owner/name:Q4_K_M).")
    ],
) -> None:
    """Download a model into the cache folder and print its path."""
    from outpace.cli.loading import fetching
    from outpace.weights.catalog import resolve

    with fetching(model) as progress:
        path = resolve(model, progress)
    put(str(path))


def models(
    model: Annotated[str | None, typer.Argument(help="Tell what this one takes: a known name, file, folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models that are known by name, whether they are downloaded, and the architectures and formats that load.

    Of one model: what its weights, keys and values, and drafter take in memory, and what is free. Nothing is loaded.
    """
    from outpace.cli.streams import as_json as dumped

    if model is not None:
        from outpace.api import default_ops
        from outpace.api.preflight import inspect_model

        found = inspect_model(model, default_ops())
        put(dumped(found.as_dict()) if as_json else "\n".join(found.lines()))
        return
    from outpace.models import architectures
    from outpace.ops.formats import BLOCKS
    from outpace.weights.catalog import known_models
    from outpace.weights.compressed import METHODS

    known = known_models()
    if as_json:
        rows = [
            {
                "name": m.name,
                "licence": m.licence,
                "bytes": m.source.num_bytes,
                "path": str(m.path) if m.present else None,
            }
            for m in known
        ]
        put(dumped(rows))
        return
    for m in known:
        put(f"{m.name}  {m.source.num_bytes / 1e6:.0f} MB, {m.licence}: {m.description}")
        put(f"  here: {m.path}" if m.present else f"  not here yet: outpace pull {m.name}")
    put("also: a path to a GGUF file or a folder, or a hub id (owner/name; owner/name:Q4_K_M of GGUF files)")
    put(f"of the architectures (model_type): {', '.join(architectures())}")
    put(f"in the formats: {', '.join(BLOCKS)}")
    put(f"and folders that are quantised already (quant_method): {', '.join(METHODS)}")


def version() -> None:
    """Print the version and the arithmetic in use."""
    from outpace import __version__
    from outpace.api import default_ops

    ops = default_ops()
    put(f"outpace {__version__} ({ops.name} ops, {ops.threads} threads)")
