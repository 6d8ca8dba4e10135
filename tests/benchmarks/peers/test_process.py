from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.peers.engines import Absent, find_peers
from benchmarks.peers.process import Worker, environment, start_peers

Start = Callable[..., Worker]


def state(worker: Worker) -> str:
    return Path(f"/proc/{worker._process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_nobody_is_told_how_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """OMP_WAIT_POLICY=PASSIVE made llama.cpp three times slower."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("KMP_BLOCKTIME", "0")
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("HOME_OF_THE_USER", "kept")
    own = environment()
    assert not [name for name in own if name.startswith(("OMP_", "KMP_", "GOMP_"))]
    assert "PYTHONPATH" not in own
    assert own["HOME_OF_THE_USER"] == "kept"


def test_an_engine_starts_without_settings_for_its_threads(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    worker = start("lookup")
    drafts, has_settings, _ = worker.ask({"prompts": [[298]], "max_new_tokens": 3})["tokens"][0]
    assert (drafts, has_settings) == (2, 0)


def test_who_is_not_asked_is_suspended_and_answers_again(start: Start) -> None:
    worker = start()
    for _ in range(3):
        assert state(worker) == "T"
        assert worker.ask({"prompts": [[5]], "max_new_tokens": 2})["tokens"] == [[5, 5]]
    used = worker.cpu_seconds()
    assert used > 0
    assert worker.cpu_seconds() == used


def test_an_engine_that_fails_or_dies_is_an_answer_not_an_exception(start: Start) -> None:
    worker = start()
    assert worker.about == {"version": "7.0", "weights": "as stored", "settings": "defaults"}
    assert worker.ask({"prompts": [[299]], "max_new_tokens": 2}) == {"error": "RuntimeError: broke down"}
    assert worker.ask({"prompts": [[5]], "max_new_tokens": 2})["tokens"] == [[5, 5]]
    worker._process.kill()
    worker._process.wait()
    assert "its process ended" in worker.ask({"prompts": [[5]], "max_new_tokens": 2})["error"]
    assert worker.cpu_seconds() == 0.0


def test_a_suspended_process_ends_when_it_is_closed(start: Start) -> None:
    worker = start()
    worker.close()
    assert worker._process.returncode is not None


def test_engines_that_do_not_start_are_reported(venv: Path) -> None:
    found, absent = find_peers([venv], Path("no-lookup.gguf"), {}, None)
    begun: list[str] = []
    workers = list(start_peers(found[:2], 1, 64, absent, begun.append))
    for worker in workers:
        worker.close()
    assert [worker.peer.variant for worker in workers] == ["plain"]
    assert begun == ["starting llama_cpp, plain", "starting llama_cpp, lookup"]
    assert Absent("llama_cpp", "lookup", "RuntimeError: no lookup here") in absent
