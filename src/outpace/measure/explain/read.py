"""Read a trace from a file, or say what is wrong with it: what passes here can be drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from outpace.errors import UsageError
from outpace.measure.text_files import decode_text
from outpace.trace import PHASES, SCHEMA

# The names of schema 2 that the page knows; nothing else in `explain` spells out which ones there are.
HEADER = ("outpace", "model", "ops", "threads", "strategy", "verification", "seed", "temperature", "finish_reason")
STEP = (
    "position", "num_pending", "batch", "tree", "target_tokens", "path", "tokens", "seconds", "blocks", "ref_counts",
    "forecast",
)  # fmt: skip
_CURE = "write one with `outpace generate ... --trace FILE`"
_MAX_BYTES = 512 << 20  # far beyond any text of a model's context


def read_trace(path: Path) -> dict[str, Any]:
    """Return the trace in `path`, a file or a pipe. Raises UsageError where it holds none."""
    if not path.exists() or path.is_dir():
        raise UsageError(f"there is no trace file {str(path)!r}: {_CURE}")
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise UsageError(f"{str(path)!r} is no trace: more than {_MAX_BYTES} bytes, which no trace has; {_CURE}")
    try:
        trace = json.loads(decode_text(content, str(path)))
    except UsageError as error:
        raise UsageError(f"{error}; a trace is UTF-8 text: {_CURE}") from error
    except RecursionError as error:
        raise UsageError(f"{str(path)!r} is no trace: it is nested too deeply; {_CURE}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UsageError(
            f"{str(path)!r} is not whole JSON ({error.msg} at {where}): if it was cut off, {_CURE}"
        ) from error
    except ValueError as error:
        raise UsageError(f"{str(path)!r} is no trace ({error}): {_CURE}") from error
    try:
        check_trace(trace)
    except UsageError as error:
        raise UsageError(f"{str(path)!r}: {error}") from error
    return trace  # type: ignore[no-any-return]


def check_trace(trace: object) -> None:
    """Raise UsageError, naming the field, unless `trace` is what `Trace.as_dict` returns."""
    if not isinstance(trace, dict) or "schema" not in trace or "steps" not in trace:
        raise UsageError(f"this JSON is no trace (a trace is an object with 'schema' and 'steps'): {_CURE}")
    if trace["schema"] != SCHEMA or isinstance(trace["schema"], bool):
        raise UsageError(
            f"the trace has schema version {trace['schema']!r}, this Outpace reads version {SCHEMA}: "
            f"explain it with the Outpace that wrote it ({trace.get('outpace', 'version unknown')!r}), or {_CURE}"
        )
    _check_text(trace)
    _check_stats(trace)
    written = 0
    for place, step in enumerate(_list(trace, "steps", _is_object, "trace")):
        _check_step(step, f"step {place}")
        due = len(trace["prompt"]) + written
        _require(
            step["position"] == due, f"step {place}: position", f"{due}, where the one before ended", step["position"]
        )
        written += len(step["tokens"])
    _require(
        written >= len(trace["tokens"]), "tokens", f"written by steps, which wrote {written}", len(trace["tokens"])
    )


def _check_text(trace: Mapping[str, Any]) -> None:
    num_tokens = len(_list(trace, "tokens", _is_count, "trace"))
    num_prompt = len(_list(trace, "prompt", _is_count, "trace"))
    _same_length("pieces", _list(trace, "pieces", _is_text, "trace"), num_tokens)
    _same_length("sources", _list(trace, "sources", _is_names, "trace"), num_tokens)
    if trace.get("prompt_pieces"):
        _same_length("prompt_pieces", _list(trace, "prompt_pieces", _is_text, "trace"), num_prompt)
    if trace.get("logprobs") is not None:
        _same_length("logprobs", _list(trace, "logprobs", _is_logprob, "trace"), num_tokens)
    texts = trace.get("texts", {})
    _require(_is_object(texts) and all(map(_is_text, texts.values())), "texts", "an object of texts", texts)
    for field in HEADER:
        value = trace.get(field, "")
        _require(_is_text(value) or _is_number(value), field, "a text or a number", value)
    kv = trace.get("kv", {})
    _require(_is_object(kv) and _is_text(kv.get("format", "")), "kv", "an object with format and block_size", kv)
    size = kv.get("block_size", 1)
    _require(_is_count(size) and size > 0, "kv.block_size", "a whole number above 0", size)


def _check_stats(trace: Mapping[str, Any]) -> None:
    stats = trace.get("stats")
    _require(_is_object(stats), "stats", "an object", stats)
    assert isinstance(stats, dict)
    for field in ("prompt_tokens", "cached_tokens"):
        _require(_is_count(stats.get(field)), f"stats.{field}", "a whole number", stats.get(field))
    _require(_is_number(stats.get("prefill_seconds")), "stats.prefill_seconds", "seconds", stats.get("prefill_seconds"))


def _check_step(step: Mapping[str, Any], name: str) -> None:
    for field in ("position", "num_pending"):
        _require(_is_count(step.get(field)), f"{name}: {field}", "a whole number", step.get(field))
    batch = step.get("batch", 1)
    _require(_is_count(batch) and batch > 0, f"{name}: batch", "a whole number above 0", batch)
    written = len(_list(step, "tokens", _is_count, name))
    tree = step.get("tree")
    _require(_is_object(tree), f"{name}: tree", "an object", tree)
    assert isinstance(tree, dict)
    num_nodes = len(_list(tree, "tokens", _is_count, name))
    parents = _list(tree, "parents", _is_whole, name)
    _same_length(f"{name}: tree.parents", parents, num_nodes)
    for node, parent in enumerate(parents):
        _require(-1 <= parent < node, f"{name}: tree.parents[{node}]", f"in [-1, {node})", parent)
    _same_length(f"{name}: tree.sources", _list(tree, "sources", _is_names, name), num_nodes)
    _same_length(f"{name}: tree.confidence", _list(tree, "confidence", _is_number, name), num_nodes)
    _same_length(f"{name}: target_tokens", _list(step, "target_tokens", _is_whole, name), num_nodes + 1)
    above = -1
    for node in _list(step, "path", _is_count, name):
        good = node < num_nodes and parents[node] == above
        _require(good, f"{name}: path", "nodes of the tree, each below the one before", step["path"])
        above = node
    _require(written <= len(step["path"]) + 1, f"{name}: tokens", "at most the path and one more", step["tokens"])
    seconds = step.get("seconds")
    good = isinstance(seconds, dict) and all(_is_number(seconds.get(phase)) for phase in PHASES)
    _require(good, f"{name}: seconds", f"the seconds of {', '.join(PHASES)}", seconds)
    for field in ("blocks", "ref_counts"):
        if field in step:
            _list(step, field, _is_whole, name)
    if step.get("forecast") is not None:
        _check_forecast(step["forecast"], name)


def _check_forecast(forecast: object, name: str) -> None:
    good = isinstance(forecast, dict) and _is_number(forecast.get("tokens")) and _is_text(forecast.get("reason"))
    _require(good, f"{name}: forecast", "an object with tokens and reason", forecast)
    assert isinstance(forecast, dict)
    seconds = forecast.get("seconds")
    good = isinstance(seconds, dict) and all(_is_number(seconds.get(part)) for part in ("draft", "pass", "plain"))
    _require(good, f"{name}: forecast.seconds", "the seconds of draft, pass and plain", seconds)
    drafters = forecast.get("drafters", {})
    good = isinstance(drafters, dict) and all(
        isinstance(d, dict) and _is_count(d.get("proposed")) and _is_number(d.get("expected"))
        for d in drafters.values()
    )
    _require(good, f"{name}: forecast.drafters", "proposed and expected by drafter", drafters)


def _require(good: bool, field: str, allowed: str, given: object) -> None:
    if not good:
        raise UsageError(f"the trace is damaged: {field} must be {allowed}, got {given!r:.60}; {_CURE}")


def _list(owner: Mapping[str, Any], field: str, is_good: Callable[[Any], bool], name: str) -> list[Any]:
    value = owner.get(field)
    _require(isinstance(value, list), f"{name}: {field}", "a list", value)
    assert isinstance(value, list)
    wrong = next((part for part in value if not is_good(part)), None)
    _require(all(map(is_good, value)), f"{name}: {field}", "a list of its kind throughout", wrong)
    return value


def _same_length(field: str, value: list[Any], length: int) -> None:
    _require(len(value) == length, f"the length of {field}", str(length), len(value))


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_text(value: object) -> bool:
    """Whether this is a text that can be written to a file (JSON also knows half characters)."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    """Whether this is a finite number (Python's JSON also reads NaN and Infinity)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_logprob(value: object) -> bool:
    """Whether this is [logprob, [[id, logprob], ...]]."""
    if not (isinstance(value, list) and len(value) == 2 and _is_number(value[0]) and isinstance(value[1], list)):
        return False
    return all(isinstance(top, list) and len(top) == 2 and _is_count(top[0]) and _is_number(top[1]) for top in value[1])
