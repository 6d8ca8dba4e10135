"""The command `generate`: one prompt, one text."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outpace.cli.colors import Painter
from outpace.cli.exit_codes import INTERRUPTED
from outpace.cli.fields import spelled_out
from outpace.cli.loading import loading_fields, open_model
from outpace.cli.streams import Failures, note, put
from outpace.cli.streams import as_json as dumped
from outpace.cli.summary import summarise
from outpace.cli.writing import argument_text, generation_fields, need_chat_template, show, wait_for
from outpace.errors import UsageError
from outpace.measure.output_file import OutputFile
from outpace.measure.text_files import decode_text

if TYPE_CHECKING:
    from outpace.api import Result


@spelled_out
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input, as UTF-8.")],
    options: Annotated[Mapping[str, Any], generation_fields()],
    loading: Annotated[Mapping[str, Any], loading_fields()],
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as plain text, without a chat template.")] = (
        False
    ),
    system: Annotated[str | None, typer.Option(help="System message for the chat template.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object in place of the text.")] = False,
    trace: Annotated[Path | None, typer.Option(help="Write every step to this file, as JSON.")] = None,
    page: Annotated[
        Path | None, typer.Option("--explain", help="Write a web page that shows how the text came about.")
    ] = None,
    color_sources: Annotated[
        bool, typer.Option("--color-sources", help="Colour the text by who drafted it; not in a pipe.")
    ] = False,
) -> None:
    r"""Answer a prompt or, with --raw, continue a text.

    The text goes to standard output and everything else to standard error. What the encoding of standard output
    lacks is written as an escape (\xe9, \u2019). Ctrl-C ends the text and keeps what there is.
    """
    if as_json and color_sources:
        raise UsageError("--color-sources would be ignored with --json: leave one of them out")
    if raw and system is not None:
        raise UsageError("--system would be ignored with --raw: leave one of them out")
    with ExitStack() as stack:
        files = {
            option: stack.enter_context(OutputFile(path))
            for option, path in (("--trace", trace), ("--explain", page))
            if path is not None
        }
        if len(files) == 2 and files["--trace"].same_file(files["--explain"]):
            raise UsageError(f"--trace and --explain cannot both be {str(trace)!r}: give them different names")
        text = _prompt(prompt)
        lm = open_model(**loading)
        if not raw:
            need_chat_template(lm, "add --raw to continue the prompt as plain text")
        messages = [{"role": "system", "content": argument_text(system, "--system")}] if system else []
        recorded: dict[str, Any] = {"trace": bool(files), "logprobs": None if page is None else 3}
        stream = lm.stream(text if raw else [*messages, {"role": "user", "content": text}], **options, **recorded)
        painter = Painter(lm) if color_sources else None
        failures = Failures()
        with failures.kept():
            if as_json:
                put(dumped(_as_dict(wait_for(stream, options.get("max_new_tokens")))))
            else:
                show(stream, painter)
        result = stream.result
        assert result is not None
        for option, file in files.items():
            with failures.kept():
                file.write(_CONTENTS[option](result))
        failures.tell()
        if painter is not None:
            painter.legend()
        if not as_json:
            summarise(result, sampled=bool(options.get("temperature")))
        if result.finish_reason == "cancelled":
            raise typer.Exit(INTERRUPTED)


def _prompt(argument: str) -> str:
    """Return the prompt as text, from standard input where it is "-"."""
    if argument != "-":
        return argument_text(argument, "the prompt")
    if sys.stdin.isatty():
        note("type the prompt; Ctrl-D on a line of its own ends it")
    return decode_text(sys.stdin.buffer.read(), "the prompt on standard input")


def _trace(result: Result) -> str:
    assert result.trace is not None
    return result.trace.to_json()


def _page(result: Result) -> str:
    from outpace.measure.explain import explain

    assert result.trace is not None
    return explain(result.trace.as_dict())


_CONTENTS = {"--trace": _trace, "--explain": _page}


def _as_dict(result: Result) -> dict[str, Any]:
    return {
        "text": result.text,
        "tokens": result.tokens,
        "finish_reason": result.finish_reason,
        "lossless": result.lossless,
        "verification": result.verification,
        "seed": result.seed,
        "stats": result.stats.as_dict(),
    }
