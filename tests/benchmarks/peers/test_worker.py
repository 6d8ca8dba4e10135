from __future__ import annotations

from collections.abc import Callable

from benchmarks.peers.process import Worker

Start = Callable[..., Worker]


def test_llama_cpp_writes_a_batch_sequence_by_sequence(start: Start) -> None:
    """Seven prompt tokens twice through passes of five rows; the fake writes t + s + 1 after token t of sequence s."""
    worker = start(batch=2)
    for _ in range(2):  # the second call begins anew
        answer = worker.ask({"prompts": [[1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1]], "max_new_tokens": 3})
        assert answer.get("tokens") == [[8, 9, 10], [3, 5, 7]]
    assert start(batch=2, model="missing.gguf").about == {"error": "ValueError: cannot load missing.gguf"}


def test_what_looks_up_refuses_batches(start: Start) -> None:
    for engine in ("llama_cpp", "openvino_genai"):
        assert start("lookup", engine=engine, batch=2).about == {
            "error": "ValueError: looks up for one sequence at a time"
        }


def test_lookup_has_the_size_that_each_engines_documentation_shows(start: Start) -> None:
    llama = start("lookup")
    assert llama.about["settings"] == "drafts of 2"
    assert llama.ask({"prompts": [[298]], "max_new_tokens": 1})["tokens"] == [[2]]
    openvino = start("lookup", engine="openvino_genai")
    assert openvino.about["settings"] == "drafts of 5"
    drafts, ngram, lookup, *_ = openvino.ask({"prompts": [[1]], "max_new_tokens": 1})["tokens"][0]
    assert (drafts, ngram, lookup) == (5, 3, 1)


def test_openvino_keeps_the_latency_setting_but_for_the_prefix_cache(start: Start) -> None:
    worker = start(engine="openvino_genai")
    answer = worker.ask({"prompts": [[1]], "max_new_tokens": 1})
    assert answer["tokens"] == [[0, 0, 0, 0, 1, 1]]  # no lookup, no prefix cache, a prompt in one pass, one thread
    assert answer["first_seconds"] == 1e-3


def test_what_engines_print_does_not_reach_the_answers(start: Start) -> None:
    """The fake llama.cpp prints a line when it is imported."""
    assert "version" in start().about
