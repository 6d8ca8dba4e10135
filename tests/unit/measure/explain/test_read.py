from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outpace.errors import UsageError
from outpace.measure.explain import explain, read_trace
from tests.traces import small_story


def test_a_trace_comes_back_as_it_was_written(tmp_path: Path) -> None:
    trace = small_story().as_dict(logprobs=True)
    (tmp_path / "t.json").write_text(json.dumps(trace))
    assert read_trace(tmp_path / "t.json") == trace


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not whole JSON"),
        (b'{"schema": 2, "steps": [{"pos', "not whole JSON"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "not UTF-8"),
        (b"[1, 2]", "no trace"),
        (b'{"text": "hello"}', "no trace"),
        (b'{"schema": 1, "steps": [], "outpace": "0.1"}', "schema version 1, this Outpace reads version 2"),
        (b'{"schema": 3, "steps": [], "outpace": "9.9"}', "the Outpace that wrote it ('9.9')"),
        (b'{"schema": true, "steps": []}', "schema version True"),
        (b'{"schema": 2, "steps": []}', "tokens must be a list"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"schema": ' + b"9" * 5000 + b"}", "no trace"),
    ],
)
def test_what_is_no_trace_is_refused_with_the_reason_and_the_cure(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "given.json"
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        read_trace(path)
    assert told in str(error.value)
    assert "given.json" in str(error.value)
    assert "outpace generate ... --trace" in str(error.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UsageError, match="no trace file"):
            read_trace(path)


def test_a_trace_may_come_through_a_pipe(tmp_path: Path) -> None:
    trace = small_story().as_dict()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(json.dumps(trace),))
    writer.start()
    assert read_trace(pipe) == trace
    writer.join()


def test_what_is_far_too_long_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outpace.measure.explain.read._MAX_BYTES", 100)
    (tmp_path / "t.json").write_text(json.dumps(small_story().as_dict()))
    with pytest.raises(UsageError, match="more than 100 bytes"):
        read_trace(tmp_path / "t.json")


def damage(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    trace = copy.deepcopy(small_story().as_dict(logprobs=True))
    change(trace)
    return trace


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "pieces": lambda t: t["pieces"].pop(),
    "sources": lambda t: t["sources"].__setitem__(0, "ngram"),
    "texts": lambda t: t["texts"].__setitem__("0", 3),
    "logprobs": lambda t: t["logprobs"].__setitem__(0, [0.5]),
    "stats": lambda t: t.pop("stats"),
    "kv.block_size": lambda t: t["kv"].__setitem__("block_size", 0),
    "model": lambda t: t.__setitem__("model", ["x"]),
    "seed": lambda t: t.__setitem__("seed", float("nan")),
    "step 1: position": lambda t: t["steps"][1].__setitem__("position", 0),
    "step 2: position": lambda t: t["steps"][2].__setitem__("position", 10**400),
    "step 1: tree.parents[1]": lambda t: t["steps"][1]["tree"]["parents"].__setitem__(1, 1),
    "step 1: target_tokens": lambda t: t["steps"][1]["target_tokens"].pop(),
    "step 1: path": lambda t: t["steps"][1].__setitem__("path", [2]),
    "step 0: tokens": lambda t: t["steps"][0]["tokens"].append(1),
    "step 0: seconds": lambda t: t["steps"][0]["seconds"].pop("verify"),
    "step 2: batch": lambda t: t["steps"][2].__setitem__("batch", 0),
    "step 2: blocks": lambda t: t["steps"][2].__setitem__("blocks", "all"),
    "step 1: forecast": lambda t: t["steps"][1].__setitem__("forecast", {"reason": "x"}),
    "step 1: forecast.drafters": lambda t: t["steps"][1]["forecast"]["drafters"].__setitem__("ngram", 1),
    "tokens": lambda t: t["steps"].pop(),
}  # fmt: skip


@pytest.mark.parametrize("field", DAMAGES)
def test_a_damaged_trace_names_the_damaged_field(field: str) -> None:
    with pytest.raises(UsageError) as error:
        explain(damage(DAMAGES[field]))
    assert f"{field} " in str(error.value)
    assert "damaged" in str(error.value)


def test_half_a_character_is_refused_before_it_breaks_the_file() -> None:
    with pytest.raises(UsageError, match="pieces"):
        explain(damage(lambda t: t["pieces"].__setitem__(0, "\ud83d")))


def test_what_newer_and_older_writers_leave_out_is_not_needed() -> None:
    trace = small_story().as_dict()
    for field in ("prompt_pieces", "texts", "logprobs", "outpace"):
        del trace[field]
    for step in trace["steps"]:
        for field in ("forecast", "blocks", "ref_counts", "batch"):
            del step[field]
    assert "took 3 steps" in explain(trace)
