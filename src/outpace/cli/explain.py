"""The command `explain`: a trace becomes a web page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outpace.cli.streams import put
from outpace.errors import UsageError


def explain(
    trace: Annotated[Path, typer.Argument(help="A trace, as `outpace generate --trace` writes it.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page to write. (default: TRACE.html)")
    ] = None,
) -> None:
    """Turn a trace into a web page that shows how the text came about, and print its path. It works offline."""
    from outpace.measure import explain as page
    from outpace.measure.output_file import OutputFile

    target = output or trace.with_suffix(".html")
    if trace.is_file() and target.resolve() == trace.resolve():
        raise UsageError(f"the page would replace the trace {str(trace)!r}: give it another name with --output")
    if output is None and trace.exists() and not trace.is_file():
        raise UsageError(f"{str(trace)!r} is no file to name the page after: name the page with --output")
    with OutputFile(target) as file:
        file.write(page.explain(page.read_trace(trace)))
    put(str(target))
