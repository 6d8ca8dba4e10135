"""What `generate` and `chat` share: the options of a generation, and showing a text as it comes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outpace.cli.colors import Painter
from outpace.cli.fields import Fields, Spelling
from outpace.cli.progress import progress_on_stderr
from outpace.cli.streams import put
from outpace.errors import OutpaceError, UsageError
from outpace.measure.text_files import decode_text, read_text
from outpace.types import Options, SamplingParams

if TYPE_CHECKING:
    from outpace.api import LanguageModel, Result, Stream


def _text(option: str, path: Path) -> str:
    """Return the text of the file that an option names."""
    try:
        return read_text(path)
    except OSError as error:
        raise UsageError(f"{option}: {str(path)!r} cannot be read ({error.strerror})") from error
    except UsageError as error:
        raise UsageError(f"{option}: {error}") from error


def _json(option: str, path: Path) -> Any:
    """Return the value in the JSON file that an option names."""
    try:
        return json.loads(_text(option, path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{option}: {str(path)!r} is not JSON ({error})") from error


def _variables(option: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Return what KEY=VALUE pairs say; a value is JSON where it can be read as such, else a text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"{option} must be KEY=VALUE, such as enable_thinking=false, got {pair!r}")
        try:
            found[key] = json.loads(value)
        except (ValueError, RecursionError):
            found[key] = argument_text(value, f"{option} {key}")
    return found


def _texts(option: str, values: Sequence[str]) -> list[str]:
    return [argument_text(value, option) for value in values]


_SPELLINGS = {
    "stop": Spelling(list[str], "End the text before this string. May be repeated.", _texts),
    "strategy": Spelling(
        str,
        "auto (in each step what pays off), none, recompute, eagle, ngram, suffix, prediction, lookahead, jacobi, "
        "draft_model, combined; or several: ngram+suffix. Lossy unless --verified: block_diffusion, mask_predict.",
    ),
    "prediction": Spelling(Path, "File with the text that you expect, for -s auto or prediction.", _text),
    "draft_model": Spelling(str, "A cheaper model of the same vocabulary, for -s auto or draft_model."),
    "tools": Spelling(Path, "JSON file with a list of tools, for the chat template.", _json),
    "chat_template_kwargs": Spelling(
        list[str],
        "Variable for the chat template, such as enable_thinking=false. May be repeated.",
        _variables,
        metavar="KEY=VALUE",
        option="--template-var",
    ),
}


def generation_fields(*without: str, defaults: dict[str, Any] | None = None) -> Fields:
    """Return the options of a generation. `trace` and `logprobs` have no option: --trace and --explain set them."""
    return Fields(
        {Options: "Generation", SamplingParams: "Sampling"},
        short={"max_new_tokens": "-n", "temperature": "-t", "strategy": "-s"},
        spellings=_SPELLINGS,
        without=frozenset({"sampling", "trace", "logprobs", *without}),
        defaults=defaults or {},
    )


def argument_text(argument: str, name: str) -> str:
    """Return an argument as text: in a locale that is not UTF-8, Python leaves its other bytes undecoded."""
    if argument.isascii() or not any("\udc80" <= character <= "\udcff" for character in argument):
        return argument
    return decode_text(argument.encode("utf-8", "surrogateescape"), name)


def need_chat_template(lm: LanguageModel, cure: str) -> None:
    """Refuse a model without a chat template, telling this command's way out."""
    if not lm.tokenizer.has_chat_template:
        raise UsageError(f"{lm.name} has no chat template, so it does not answer messages: {cure}")


def show(stream: Stream, painter: Painter | None = None) -> Result:
    """Print a text as it comes; Ctrl-C ends it with what there is. Raises OSError where it cannot be printed."""
    try:
        for chunk in stream:
            put(painter.paint(chunk) if painter is not None else chunk.text, end="")
    except KeyboardInterrupt:
        pass
    except OutpaceError:
        put("")  # so that the message stands on a line of its own
        raise
    finally:
        stream.close()
    put("")
    assert stream.result is not None
    return stream.result


def wait_for(stream: Stream, most: int | None) -> Result:
    """Let a text be written unseen, with progress on standard error; Ctrl-C ends it with what there is."""
    done = 0
    try:
        with progress_on_stderr(at_once=False) as progress:
            for chunk in stream:
                done += len(chunk.tokens)
                if most is not None:
                    progress(done, most, f"{done} tokens")
    except KeyboardInterrupt:
        pass
    finally:
        stream.close()
    assert stream.result is not None
    return stream.result
