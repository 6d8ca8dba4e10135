"""Peers, with a llama_cpp made up in a venv of its own: the process and its protocol are the real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import outpace
from benchmarks.peers.__main__ import main
from benchmarks.peers.engines import (
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
from benchmarks.peers.tables import peers_markdown, summarise_peers
from outpace.api import LanguageModel
from outpace.measure.prompts import TaskPrompt
from tests.decoding import tiny_ops
from tests.folder import make_folder
from tests.unit.measure.bench.test_rows import ORIGIN

FAKE = """
import ctypes, os
print("engines are talkative")

class Params:
    n_batch = 5

class Rows:
    def __init__(self, room):
        self.room, self.n_tokens = room, 0
        self.token, self.pos, self.n_seq_id, self.logits = ([0] * room for _ in range(4))
        self.seq_id = [[0] for _ in range(room)]

llama_backend_init = lambda: None
llama_model_default_params = llama_context_default_params = Params
llama_model_load_from_file = lambda path, params: None if b"missing" in path else "model"
llama_model_get_vocab = lambda model: "vocab"
llama_vocab_n_tokens = lambda vocab: 50
llama_batch_init = lambda room, embd, sequences: Rows(room)
llama_init_from_model = lambda model, params: {"positions": {}}
llama_get_memory = lambda context: context
def llama_memory_clear(memory, data):
    memory["positions"] = {}
def llama_decode(context, rows):
    if rows.n_tokens > rows.room:
        return 1
    context["rows"] = rows
    for i in range(rows.n_tokens):
        if rows.pos[i] != context["positions"].get(rows.seq_id[i][0], 0):
            return 2
        context["positions"][rows.seq_id[i][0]] = rows.pos[i] + 1
    return 0
def llama_get_logits_ith(context, i):
    rows = context["rows"]
    assert rows.logits[i]
    logits = (ctypes.c_float * 50)()
    logits[(rows.token[i] + rows.seq_id[i][0] + 1) % 50] = 1.0
    return ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))

class Llama:
    def __init__(self, path, n_ctx, n_threads, n_threads_batch, draft_model, verbose):
        if draft_model:
            raise RuntimeError("no lookup here")
    def reset(self):
        pass
    def generate(self, prompt, temp, repeat_penalty):
        if prompt[0] == 299:
            raise RuntimeError("broke down")
        while True:
            yield prompt[-1]
"""

NUMPY = """
class ctypeslib:
    class as_array(list):
        def __init__(self, pointer, shape):
            super().__init__(pointer[i] for i in range(*shape))
        def argmax(self):
            return self.index(max(self))
"""


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("venv") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    packages = next(home.glob("lib/python*/site-packages"))
    (packages / "llama_cpp").mkdir()
    (packages / "llama_cpp" / "__init__.py").write_text(FAKE)
    (packages / "llama_cpp" / "llama_speculative.py").write_text("LlamaPromptLookupDecoding = dict\n")
    (packages / "numpy.py").write_text(NUMPY)
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
    assert worker.ask({"prompts": [[299]], "max_new_tokens": 2}) == {"error": "RuntimeError: broke down"}
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
    started = list(start_peers(found, 1, 64, absent, lambda what: None, batch=2))
    for worker in started:
        worker.close()
    assert [worker.peer.variant for worker in started] == ["plain"]
    assert Absent("llama_cpp", "lookup", "ValueError: looks up one text at a time") in absent
    batches = batches_of([TaskPrompt("a", "x"), TaskPrompt("a", "y")], [[5, 6, 7], [8, 9]], 2)
    (sample,) = measure_peers(lm, [], batches, strategies=[], num_tokens=4, repeats=1)
    assert isinstance(sample, PeerSample)
    assert (sample.batch, sample.prompt_tokens, sample.tokens, sample.agreed) == (2, 4, 8, 8)
    assert sample.rate * sample.seconds == pytest.approx(8)
    assert sample.prefill_rate is None
    (row,) = summarise_peers([sample], {})
    assert (row.prefill_rate, row.prefill_by_plain, row.by_plain.median) == (None, None, 1.0)


def test_llama_cpp_writes_a_batch_sequence_by_sequence(venv: Path) -> None:
    """Seven prompt tokens twice through passes of five rows; the fake's text is t + s + 1 behind token t of text s."""
    worker = Worker(Peer("llama_cpp", "plain", venv / "bin" / "python", Path("m.gguf")), 1, 64, batch=2)
    for _ in range(2):  # the second call begins anew
        answer = worker.ask({"prompts": [[1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1]], "max_new_tokens": 3})
        assert answer.get("tokens") == [[8, 9, 10], [3, 5, 7]]
    worker.close()
    gone = Worker(Peer("llama_cpp", "plain", venv / "bin" / "python", Path("missing.gguf")), 1, 64, batch=2)
    assert gone.about == {"error": "ValueError: cannot load missing.gguf"}
    gone.close()


def test_the_speed_of_one_text_counts_from_its_first_token() -> None:
    sample = PeerSample("x", "plain", "a", 0, 0, 1, 100, 11, seconds=3.0, first_seconds=1.0, agreed=11)
    assert (sample.rate, sample.prefill_rate) == (5.0, 100.0)


def test_an_engine_that_fails_at_once_is_left_out(venv: Path, lm: LanguageModel) -> None:
    worker = Worker(Peer("llama_cpp", "plain", venv / "bin" / "python", Path("m.gguf")), 1, 64)
    seen = list(measure_peers(lm, [worker], [Batch("a", [[299]])], strategies=[], num_tokens=4, repeats=1))
    worker.close()
    assert seen[0] == Absent("llama_cpp", "plain", "RuntimeError: broke down")
    assert len(seen) == 2


@pytest.mark.parametrize("wrong", [["-n", "1"], ["--repeats", "0"], ["--batch", "0"], ["--context", "-1"]])
def test_a_design_that_measures_nothing_is_refused(wrong: list[str], venv: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as end:
        main(["--venv", str(venv), "-o", str(out), *wrong])
    assert end.value.code == 2
    assert not out.exists()


def test_the_command_writes_its_report(venv: Path, lm: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"category": "x", "turns": ["the cat sat"]}\n')
    arguments = ["--venv", str(venv), "-m", str(lm.path), "--ops", "reference", "--threads", "1",
                 "-n", "6", "--repeats", "1", "--prompts", str(tmp_path / "p.jsonl"), "-o", str(tmp_path / "out"),
                 "-s", "ngram", "--context", "5"]  # fmt: skip
    main(arguments)
    saved = json.loads((tmp_path / "out" / "peers-context-5.json").read_text())
    assert saved["complete"]
    assert {row["engine"] for row in saved["summary"]} == {"outpace", "llama_cpp"}
