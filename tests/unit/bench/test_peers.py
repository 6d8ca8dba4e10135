"""Peers, with a llama_cpp made up in a venv of its own: the process and its protocol are the real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import outpace
from outpace import cli
from outpace.api import LanguageModel
from outpace.bench.peer_tables import peers_markdown, summarise_peers
from outpace.bench.peers import (
    Absent,
    Batch,
    Peer,
    PeerSample,
    Worker,
    batches_of,
    find_peers,
    measure_peers,
    start_peers,
)
from outpace.prompts import TaskPrompt
from tests.decoding import tiny_ops
from tests.folder import make_folder
from tests.unit.bench.test_summary import ORIGIN

FAKE = """
print("engines are talkative")
class Llama:
    def __init__(self, path, n_ctx, n_threads, n_threads_batch, draft_model, verbose):
        if draft_model:
            raise RuntimeError("no lookup here")
    def reset(self):
        pass
    def generate(self, prompt, temp, repeat_penalty):
        if prompt[0] == 999:
            raise RuntimeError("broke down")
        while True:
            yield prompt[-1]
"""


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("venv") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    packages = next(home.glob("lib/python*/site-packages"))
    (packages / "llama_cpp").mkdir()
    (packages / "llama_cpp" / "__init__.py").write_text(FAKE)
    (packages / "llama_cpp" / "llama_speculative.py").write_text("LlamaPromptLookupDecoding = dict\n")
    (packages / "llama_cpp_python-7.0.dist-info").mkdir()
    (packages / "llama_cpp_python-7.0.dist-info" / "METADATA").write_text("Name: llama-cpp-python\nVersion: 7.0\n")
    return home


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return outpace.load(make_folder(tmp_path_factory.mktemp("model") / "tiny"), ops=tiny_ops())


def singles(lm: LanguageModel, prompts: list[TaskPrompt]) -> list[Batch]:
    return batches_of(prompts, [prompt.encode(lm.tokenizer) for prompt in prompts], 1)


def test_what_a_venv_has_is_found_and_what_is_missing_is_told(venv: Path, tmp_path: Path) -> None:
    found, absent = find_peers([tmp_path, venv], Path("model.gguf"), {}, None)
    assert [(peer.engine, peer.variant) for peer in found] == [("llama_cpp", "plain"), ("llama_cpp", "lookup")]
    assert {a.engine for a in absent} == {"onnxruntime_genai", "openvino_genai", "transformers"}


def test_engines_alternate_with_ours_and_those_that_do_not_start_are_reported(venv: Path, lm: LanguageModel) -> None:
    found, absent = find_peers([venv], lm.path, {}, None)
    workers = list(start_peers(found, 1, 64, absent, lambda what: None))
    prompts = [TaskPrompt("a", "the cat"), TaskPrompt("b", "the dog")]
    try:
        seen = list(measure_peers(lm, workers, singles(lm, prompts), strategies=["ngram"], num_tokens=6, repeats=2))
    finally:
        for worker in workers:
            worker.close()
    assert Absent("llama_cpp", "lookup", "RuntimeError: no lookup here") in absent
    samples = [s for s in seen if isinstance(s, PeerSample)]
    assert len(samples) == len(seen) == 2 * 2 * 3
    assert {(s.engine, s.variant) for s in samples} == {
        ("llama_cpp", "plain"),
        ("outpace", "none"),
        ("outpace", "ngram"),
    }
    assert all(s.agreed == s.tokens == 6 for s in samples if s.engine == "outpace")
    rows = summarise_peers(samples, {("llama_cpp", "plain"): workers[0].about})
    report = peers_markdown(rows, absent, ORIGIN, "Two texts.", complete=True)
    assert "| llama_cpp | 7.0 | as stored | plain | 4 |" in report
    assert "no lookup here" in report


def test_an_engine_that_fails_or_dies_is_an_answer_not_an_exception(venv: Path) -> None:
    worker = Worker(Peer("llama_cpp", "plain", venv / "bin" / "python", Path("m.gguf")), 1, 64)
    assert worker.about == {"version": "7.0", "weights": "as stored"}
    assert worker.ask({"prompts": [[999]], "max_new_tokens": 2}) == {"error": "RuntimeError: broke down"}
    assert worker.ask({"prompts": [[5]], "max_new_tokens": 2})["tokens"] == [[5, 5]]
    worker._process.kill()
    worker._process.wait()
    assert "its process ended" in worker.ask({"prompts": [[5]], "max_new_tokens": 2})["error"]
    worker.close()


def test_an_engine_that_fails_midway_is_left_out_from_then_on(
    venv: Path, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(Peer("llama_cpp", "plain", venv / "bin" / "python", Path("m.gguf")), 1, 64)
    prompts = [TaskPrompt("a", "the cat"), TaskPrompt("b", "the dog")]
    real, answers = worker.ask, iter([None, {"error": "gone"}])
    monkeypatch.setattr(worker, "ask", lambda order: next(answers, None) or real(order))
    seen = list(measure_peers(lm, [worker], singles(lm, prompts), strategies=[], num_tokens=4, repeats=2))
    worker.close()
    assert [s for s in seen if isinstance(s, Absent)] == [Absent("llama_cpp", "plain", "gone")]
    assert {s.engine for s in seen if isinstance(s, PeerSample)} == {"outpace"}
    assert len(seen) == 1 + 4


def test_a_batch_has_prompts_of_one_category_and_one_length() -> None:
    prompts = [TaskPrompt("a", "1"), TaskPrompt("b", "2"), TaskPrompt("a", "3"), TaskPrompt("a", "4")]
    batches = batches_of(prompts, [[1, 1, 1], [2], [3, 3], [4, 4, 4, 4]], 2)
    assert batches == [Batch("a", [[1, 1], [3, 3]]), Batch("a", [[4, 4, 4], [1, 1, 1]]), Batch("b", [[2], [2]])]


def test_a_batch_of_ours_is_measured_beside_an_engine_that_cannot_write_batches(venv: Path, lm: LanguageModel) -> None:
    found, absent = find_peers([venv], lm.path, {}, None)
    assert list(start_peers(found, 1, 64, absent, lambda what: None, batch=2)) == []
    assert {a.variant for a in absent if a.engine == "llama_cpp"} == {"plain", "lookup"}
    batches = batches_of([TaskPrompt("a", "x"), TaskPrompt("a", "y")], [[5, 6, 7], [8, 9]], 2)
    (sample,) = measure_peers(lm, [], batches, strategies=[], num_tokens=4, repeats=1)
    assert isinstance(sample, PeerSample)
    assert (sample.batch, sample.prompt_tokens, sample.tokens, sample.agreed) == (2, 4, 8, 8)
    assert sample.rate * (sample.seconds - sample.first_seconds) == pytest.approx(6)
    assert sample.prefill_rate * sample.first_seconds == pytest.approx(4)


def test_the_command_writes_its_report(venv: Path, lm: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"category": "x", "turns": ["the cat sat"]}\n')
    arguments = ["bench", "peers", "--venv", str(venv), "-m", str(lm.path), "--ops", "reference", "--threads", "1",
                 "-n", "6", "--repeats", "1", "--prompts", str(tmp_path / "p.jsonl"), "-o", str(tmp_path / "out"),
                 "-s", "ngram", "--context", "5"]  # fmt: skip
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code in (0, None)
    saved = json.loads((tmp_path / "out" / "peers-context-5.json").read_text())
    assert saved["complete"]
    assert {row["engine"] for row in saved["summary"]} == {"outpace", "llama_cpp"}
