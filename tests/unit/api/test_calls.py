from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import outpace
from outpace import LanguageModel, UsageError
from outpace.api.calls import Call, Chunk
from outpace.types import Options
from tests.decoding import assert_all_free
from tests.folder import make_folder

OPS = "reference"  # the interface is the same with any


@pytest.fixture
def lm(folder: Path) -> LanguageModel:
    return outpace.load(folder, ops=OPS, threads=1)


def call(lm: LanguageModel, *prompts: list[int], n: int = 1, follow: bool = False, **options: Any) -> Call:
    options = {"max_new_tokens": 12, "ignore_eos": True, "strategy": "none", **options}
    return Call(lm.loaded, lm.engine, prompts, Options.of(options), n, follow=follow)


# -- calls and results -------------------------------------------------------------------------------


def test_a_seed_is_drawn_and_reported_and_gives_the_same_text_again(lm: LanguageModel) -> None:
    first = lm.generate("the cat", temperature=1.0, max_new_tokens=20)
    again = lm.generate("the cat", temperature=1.0, max_new_tokens=20, seed=first.seed)
    assert again.tokens == first.tokens
    assert lm.generate("the cat", temperature=1.0, max_new_tokens=20).seed != first.seed


def test_rejection_is_not_called_lossless_unless_greedy(lm: LanguageModel, folder: Path) -> None:
    options: dict[str, Any] = {
        "strategy": "draft_model",
        "draft_model": lm,
        "verification": "rejection",
        "max_new_tokens": 8,
    }
    assert lm.generate("hi", **options).lossless
    assert not lm.generate("hi", temperature=1.0, **options).lossless


def test_typical_acceptance_is_not_called_lossless_unless_greedy(lm: LanguageModel) -> None:
    options: dict[str, Any] = {"strategy": "ngram", "verification": "typical", "max_new_tokens": 8}
    greedy, sampled = lm.generate("hi hi", **options), lm.generate("hi hi", temperature=1.0, **options)
    assert (greedy.lossless, greedy.verification) == (True, "typical")
    assert (sampled.lossless, sampled.verification) == (False, "typical")


def test_a_stop_string_ends_the_text_and_everything_beside_it(lm: LanguageModel) -> None:
    plain = lm.generate("the cat", max_new_tokens=60, strategy="none", ignore_eos=True)
    stop = plain.text[20:24]
    cut = lm.generate("the cat", max_new_tokens=60, stop=stop, logprobs=2, ignore_eos=True, strategy="ngram")
    assert cut.finish_reason == "stop"
    assert cut.text == plain.text[: plain.text.find(stop)]
    assert cut.tokens == plain.tokens[: len(cut.tokens)]
    assert cut.logprobs is not None
    assert len(cut.logprobs) == len(cut.sources) == len(cut.tokens)


def test_a_call_groups_the_samples_of_each_prompt_under_one_seed(lm: LanguageModel) -> None:
    with call(lm, [5, 6], [7], n=2, temperature=1.0) as under_way:
        under_way.wait()
        results = [[under_way.result(sequence) for sequence in group] for group in under_way.groups]
    assert [[s.request.prompt for s in group] for group in under_way.groups] == [[(5, 6)] * 2, [(7,)] * 2]
    assert [s.request.sample_index for s in under_way.groups[0]] == [0, 1]
    assert len({result.seed for group in results for result in group}) == 1
    assert results[0][0].tokens != results[0][1].tokens


def test_a_call_that_is_left_early_is_cancelled_and_its_blocks_are_free(lm: LanguageModel) -> None:
    with call(lm, [5, 6], [7], max_new_tokens=1500, follow=True) as under_way:
        first = under_way.groups[0][0]
        under_way.watch(lambda: bool(first.output.tokens))
    assert [s.finish_reason for (s,) in under_way.groups] == ["cancelled"] * 2
    assert_all_free(lm.runner)


def test_what_made_one_sequence_fail_is_raised_without_waiting_for_the_others(lm: LanguageModel) -> None:
    def broken(tokens: Any, logits: Any) -> Any:
        if tokens[0] == 7 and len(tokens) > 3:
            raise ZeroDivisionError("mine")
        return logits

    with (
        pytest.raises(ZeroDivisionError, match="mine"),
        call(lm, [5, 6], [7], max_new_tokens=1500, logits_processors=[broken]) as under_way,
    ):
        under_way.wait()
    assert under_way.groups[0][0].finish_reason == "cancelled"
    assert_all_free(lm.runner)


def test_logprobs_and_a_trace_are_there_only_if_asked_for(lm: LanguageModel) -> None:
    plain = lm.generate("the cat", max_new_tokens=6, ignore_eos=True)
    assert (plain.logprobs, plain.trace) == (None, None)
    full = lm.generate("the cat", max_new_tokens=6, ignore_eos=True, logprobs=0, trace=True)
    assert full.tokens == plain.tokens
    assert full.logprobs is not None
    assert [(own.token, own.top) for own in full.logprobs] == [(token, ()) for token in full.tokens]


def test_a_trace_names_the_run_and_spells_every_token_that_a_step_names(lm: LanguageModel) -> None:
    result = lm.generate(
        [5, 6, 7, 5, 6, 7], strategy="ngram", max_new_tokens=20, seed=3, temperature=0.5, logprobs=2, trace=True
    )
    trace = result.trace
    assert trace is not None
    assert (trace.header["strategy"], trace.header["seed"], trace.header["temperature"]) == ("ngram", 3, 0.5)
    assert (trace.header["ops"], trace.header["finish_reason"]) == (OPS, result.finish_reason)
    assert trace.prompt == [5, 6, 7, 5, 6, 7]
    assert "".join(trace.prompt_pieces) == lm.tokenizer.decode(trace.prompt, skip_special=False)
    drafted = {token for step in trace.steps for token in step.tree.tokens}
    likely = {token for own in result.logprobs or () for token, _ in own.top}
    assert drafted
    assert {*drafted, *likely, *result.tokens} <= trace.texts.keys()


def test_where_the_target_was_not_asked_a_trace_spells_nothing(lm: LanguageModel, tmp_path: Path) -> None:
    other = outpace.load(make_folder(tmp_path / "other", num_hidden_layers=1), ops=OPS, threads=1)
    result = lm.generate(
        "the cat", draft_model=other, strategy="draft_model", verification="rejection", temperature=1.0, seed=3,
        max_new_tokens=20, ignore_eos=True, trace=True,
    )  # fmt: skip
    assert result.trace is not None
    named = {token for step in result.trace.steps for token in step.target_tokens}
    assert -1 in named, "every guess came true: the test could not fail"
    assert named - result.trace.texts.keys() == {-1}


# -- streams -----------------------------------------------------------------------------------------


def test_a_stream_gives_the_same_text_in_pieces_that_are_never_taken_back(lm: LanguageModel) -> None:
    options: dict[str, Any] = {"max_new_tokens": 60, "ignore_eos": True, "logprobs": 0}
    plain = lm.generate("the cat", **options)
    stop = plain.text[30:34]
    whole = lm.generate("the cat", stop=[stop], **options)
    stream = lm.stream("the cat", stop=[stop], **options)
    chunks = list(stream)
    assert "".join(c.text for c in chunks) == whole.text
    assert [t for c in chunks for t in c.tokens] == whole.tokens
    assert [x for c in chunks for x in c.logprobs or ()] == whole.logprobs
    assert stream.result is not None
    assert stream.result.text == whole.text


def test_closing_a_stream_frees_everything_and_keeps_what_was_written(lm: LanguageModel) -> None:
    stream = lm.stream("the cat", max_new_tokens=100, ignore_eos=True)
    seen = [next(stream) for _ in range(5)]
    stream.close()
    assert stream.result is not None
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.tokens == [t for c in seen for t in c.tokens]
    assert_all_free(lm.runner)


def test_closing_a_stream_that_never_began_is_fine(lm: LanguageModel) -> None:
    stream = lm.stream("the cat")
    stream.close()
    assert stream.result is not None
    assert stream.result.tokens == []
    assert_all_free(lm.runner)


def test_a_second_call_beside_an_open_stream_shares_its_passes(lm: LanguageModel) -> None:
    with lm.stream("the cat", max_new_tokens=20, ignore_eos=True) as stream:
        first = next(stream)
        assert len(lm.generate("hi", max_new_tokens=2, ignore_eos=True).tokens) == 2
        rest = [t for chunk in stream for t in chunk.tokens]
    assert [*first.tokens, *rest] == lm.generate("the cat", max_new_tokens=20, ignore_eos=True).tokens


def test_a_stream_that_is_dropped_is_cancelled(lm: LanguageModel) -> None:
    stream = lm.stream("the cat", max_new_tokens=1500, ignore_eos=True)
    next(stream)
    sequence = stream._sequence
    del stream
    lm.engine.wait([sequence])
    assert sequence.finish_reason == "cancelled"
    assert_all_free(lm.runner)


def test_a_chunk_has_the_sources_of_its_own_tokens(lm: LanguageModel) -> None:
    options: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True}
    options |= {"strategy": "prediction", "prediction": lm.generate("the cat sat on the", **options).tokens}
    whole = lm.generate("the cat sat on the", **options)
    assert any(whole.sources), "nothing was drafted: the test could not fail"
    with lm.stream("the cat sat on the", **options) as stream:
        chunks: list[Chunk] = list(stream)
    assert all(len(chunk.sources) == len(chunk.tokens) for chunk in chunks)
    assert [source for chunk in chunks for source in chunk.sources] == whole.sources
    assert [chunk.logprobs for chunk in chunks] == [None] * len(chunks)


def test_closing_a_stream_that_was_read_to_the_end_leaves_its_result(lm: LanguageModel) -> None:
    stream = lm.stream("the cat", max_new_tokens=5, ignore_eos=True)
    list(stream)
    result = stream.result
    assert result is not None
    stream.close()
    assert stream.result is result
    assert result.finish_reason == "length"
    assert list(stream) == []


def test_what_was_written_before_a_failure_is_read_before_it_is_raised(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, wait = threading.Event(), lm.engine.wait

    def wakes_late(sequences: Any, ready: Any = None) -> None:
        waiting.set()
        wait(sequences)

    def broken(tokens: Any, logits: Any) -> Any:
        assert waiting.wait(60)
        if len(tokens) > 6:
            raise ZeroDivisionError("mine")
        return logits

    monkeypatch.setattr(lm.engine, "wait", wakes_late)
    stream = lm.stream([5, 6, 7], max_new_tokens=20, ignore_eos=True, logits_processors=[broken], strategy="none")
    assert len(next(stream).tokens) == 4
    with pytest.raises(ZeroDivisionError, match="mine"):
        next(stream)
    stream.close()
    assert stream.result is None
    assert_all_free(lm.runner)


# -- chats -------------------------------------------------------------------------------------------


def test_a_chat_remembers_its_turns_in_messages_and_in_the_cache(lm: LanguageModel) -> None:
    chat = lm.chat("be kind " * 20, max_new_tokens=40)
    first = chat.send("hello")
    second = chat.send("and again", temperature=0.5, seed=3)
    assert [m["role"] for m in chat.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert chat.messages[2]["content"] == first.text
    fresh = outpace.load(lm.path, ops=OPS, threads=1)
    assert fresh.generate(chat.messages[:-1], max_new_tokens=40, temperature=0.5, seed=3).tokens == second.tokens
    assert second.stats.cached_tokens > 40


def test_a_turns_none_leaves_the_chats_own_option(lm: LanguageModel) -> None:
    chat = lm.chat(max_new_tokens=4, ignore_eos=True, temperature=1.0, seed=3)
    first = chat.send("hi", temperature=None, seed=None)
    assert first.seed == 3
    assert len(first.tokens) == 4


@pytest.mark.parametrize(
    ("system", "text", "name"), [(5, "hi", "system"), (None, None, "message"), (None, b"x", "message")]
)
def test_a_chat_takes_strings_only(lm: LanguageModel, system: Any, text: Any, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} must be a string"):
        lm.chat(system).send(text)


def test_a_chats_options_are_checked_when_it_begins(lm: LanguageModel) -> None:
    with pytest.raises(UsageError, match="seed must be a whole number"):
        lm.chat(seed="7")  # type: ignore[arg-type]


def test_a_turn_that_is_closed_early_is_remembered_as_far_as_it_was_read(lm: LanguageModel) -> None:
    chat = lm.chat(max_new_tokens=60, ignore_eos=True, logit_bias={0: -1e4, 1: -1e4})
    with chat.stream("hello") as stream:
        said = next(stream).text + next(stream).text
        assert chat.messages == [], "the turn is not over"
    assert chat.messages == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": said}]


def test_a_turn_that_fails_leaves_the_conversation_as_it_was(lm: LanguageModel) -> None:
    def broken(tokens: Any, logits: Any) -> Any:
        raise ZeroDivisionError("mine")

    chat = lm.chat("be kind", max_new_tokens=5)
    with pytest.raises(ZeroDivisionError):
        chat.send("hello", logits_processors=[broken])
    assert chat.messages == [{"role": "system", "content": "be kind"}]
    chat.send("hello")
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]
