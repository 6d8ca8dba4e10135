"""The commands `drafter inspect` and `drafter export`: what a trained drafter is, and writing it for others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outpace.cli.streams import as_json as dumped
from outpace.cli.streams import put

if TYPE_CHECKING:
    from outpace.api.inspection import Inspection

Drafter = Annotated[str, typer.Argument(help="A drafter: its file, its folder or its hub id.")]

drafter = typer.Typer(no_args_is_help=False)


@drafter.callback(invoke_without_command=True)
def commands(context: typer.Context) -> None:
    """Look at trained drafters, and write them for others."""
    if context.invoked_subcommand is None:
        put(context.get_help())


@drafter.command()
def inspect(
    path: Drafter,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A model that it must fit: a known name, a file, a folder or a hub id."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a drafter is, for which model, and how many bytes a step with it reads.

    With --model, a drafter of another model is refused with the reason.
    """
    from outpace.api.inspection import inspect_drafter

    found = inspect_drafter(path, model)
    put(dumped(found.as_dict()) if as_json else _table(found))


@drafter.command()
def export(
    path: Drafter,
    out: Annotated[Path, typer.Option("--out", help="A new or empty folder.")],
    layout: Annotated[str, typer.Option(help="Whose layout: speculators, as vLLM loads it.")] = "speculators",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model that it is for. (default: the default model)")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What others call that model: its hub id or folder. (default: as --model says)")
    ] = None,
) -> None:
    """Write an eagle drafter as others read it; what they have no words for is refused."""
    from outpace.api.inspection import export_drafter
    from outpace.weights.catalog import DEFAULT

    model = DEFAULT if model is None else model
    export_drafter(path, model, layout, out, name=model if name is None else name)
    put(str(out))


def _table(found: Inspection) -> str:
    rows = {
        "drafter": found.path,
        "kind": f"{found.kind}, in the layout of {found.layout}",
        "made for": _target(found),
        "parameters": f"{found.num_parameters:,}",
        "size": f"{_megabytes(found.num_bytes)} ({', '.join(found.formats)})",
        "taps": _taps(found),
        "head": _head(found),
        "reads": _reads(found),
    }
    if found.model is not None:
        same = "the same tokens" if found.vocabulary == "same" else "as many tokens; the drafter does not say which"
        rows["fits"] = f"{found.model} ({same})"
    if found.tuned_by is not None:
        rows["beside"] = _beside(found)
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows.items())


def _target(found: Inspection) -> str:
    target = found.target
    sizes = [f"{target.vocab_size:,} tokens", f"width {target.width:,}"]
    sizes += [f"{target.num_layers} layers"] if target.num_layers is not None else []
    sizes += [target.model_type] if target.model_type is not None else []
    return f"{found.made_for} ({', '.join(sizes)})"


def _taps(found: Inspection) -> str:
    taps = found.network.taps
    if found.kind == "medusa":
        return "the output of the final norm"
    if taps is None:
        return "the outputs of layers 2, n / 2 and n - 3 of a model of n layers (nothing else is stated)"
    return f"the outputs of layers {', '.join(map(str, taps))}"


def _head(found: Inspection) -> str:
    rows, fixed = found.network.head_rows, found.network.fixed_rows
    share = f"{rows:,} of {found.target.vocab_size:,} tokens"
    return share if rows == fixed else f"{share}, {fixed:,} always and the others where they are in the sequence"


def _beside(found: Inspection) -> str:
    made = f"an adapter of its target, trained together with it (Medusa-2; {found.tuned_by:.12})"
    if found.model is None:
        return f"{made}: load both, or the merged model; alone it drafts losslessly, and worse"
    if found.is_tuned:
        return f"{made}, which is merged into {found.model}"
    return f"{made}. WARNING: {found.model} is not merged with it: load it too (--adapter), or it drafts worse"


def _reads(found: Inspection) -> str:
    network, whole = found.network, found.pass_bytes
    first, further = _megabytes(network.first_level_bytes), _megabytes(network.further_level_bytes)
    if whole is None:
        return f"{first} for the first token of a draft, {further} for each further one"
    shares = (network.first_level_bytes / whole, network.further_level_bytes / whole)
    return (
        f"{first} for the first token of a draft, {further} for each further one: {shares[0]:.3f} and {shares[1]:.3f} "
        f"of the {_megabytes(whole)} of a pass of the model"
    )


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
