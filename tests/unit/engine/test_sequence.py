from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outpace.drafters.ngram import NGram
from outpace.engine.sequence import SequenceState
from outpace.engine.stop import Output
from outpace.tokenizer import Detokenizer, Spelling
from outpace.types import TokenLogprob
from tests.decoding import request, sequence_of, tiny_runner

PIECES = ["a", "b", "<", "END"]
SPELLING = Spelling(lambda ids: "".join(PIECES[i] for i in ids), PIECES.__getitem__, len(PIECES))


def state(prompt: Sequence[int] = (0, 1), **options: Any) -> SequenceState:
    asked = request(prompt, **options)
    return SequenceState(asked, Output(asked, 100, Detokenizer(SPELLING)), drafter=NGram())


def logprobs(*tokens: int) -> list[TokenLogprob]:
    return [TokenLogprob(token, -1.0) for token in tokens]


def test_what_was_asked_for_is_not_touched_by_what_is_written() -> None:
    sequence = state([0, 1])
    assert sequence.write([1, 0], [("ngram",), ()], []) == [1, 0]
    assert sequence.tokens == [0, 1, 1, 0]
    assert sequence.request.prompt == (0, 1)
    assert sequence.stats.prompt_tokens == 2


def test_what_follows_the_end_is_cut_off_everywhere() -> None:
    sequence = state([0], stop_tokens=[3])
    assert sequence.write([1, 3, 0], [("x",), ("y",), ()], logprobs(1, 3, 0)) == [1, 3]
    assert (sequence.tokens, sequence.sources) == ([0, 1, 3], [("x",), ("y",)])
    assert [own.token for own in sequence.logprobs] == [1, 3]
    assert sequence.finish_reason == "stop"


def test_a_stop_string_takes_back_what_earlier_steps_wrote() -> None:
    sequence = state([0], stop="a<b")
    assert sequence.write([1, 0], [(), ()], logprobs(1, 0)) == [1, 0]
    assert sequence.write([2], [()], logprobs(2)) == [2]
    assert sequence.write([1, 1], [("x",), ()], logprobs(1, 1)) == []
    assert (sequence.tokens, sequence.sources, sequence.logprobs) == ([0, 1], [()], logprobs(1))
    assert (sequence.finish_reason, sequence.output.text) == ("stop", "b")


def test_fewer_tokens_are_left_with_each_that_is_written_until_the_limit_ends_it() -> None:
    sequence = state(max_new_tokens=3)
    assert sequence.num_left == 3
    sequence.write([0, 0], [(), ()], [])
    assert (sequence.num_left, sequence.finish_reason) == (1, None)
    sequence.write([0], [()], [])
    assert (sequence.num_left, sequence.finish_reason) == (0, "length")


def test_everything_is_pending_until_a_pass_has_computed_it() -> None:
    runner = tiny_runner()
    sequence = sequence_of(request([5, 6, 7]), runner)
    assert sequence.num_pending == 3
    sequence.table = runner.cache.open(sequence.tokens)
    sequence.table.reserve(2)
    assert sequence.num_pending == 3, "reserved is not committed"
    sequence.table.commit([0, 1], [5, 6])
    assert sequence.num_pending == 1
    sequence.table.close()
    sequence.table = None  # preempted
    assert sequence.num_pending == 3


def test_a_drafter_that_fails_is_named_in_a_warning_and_the_sequence_goes_on() -> None:
    sequence = state()
    sequence.switch_drafter_off(ZeroDivisionError("oh"))
    assert sequence.drafter is None
    assert sequence.stats.warnings == ["drafter 'ngram' failed and was switched off: ZeroDivisionError: oh"]
    assert (sequence.error, sequence.finish_reason) == (None, None)
