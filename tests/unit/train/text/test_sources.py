from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import outpace
from outpace.api import LanguageModel
from outpace.errors import UsageError
from outpace.train.text.corpus import key_of
from outpace.train.text.duplicates import Seen
from outpace.train.text.prompts import Prompt, encode, user_prompt
from outpace.train.text.sources import Sources, Writer, some_of, sort_out, spread, without_duplicates

NAMES = ("river", "mountain", "city", "painter", "battle", "poem", "planet", "spice", "bridge", "sonata")


def question(i: int) -> Prompt:
    return user_prompt(
        f"What is the most famous {NAMES[i % 10]} of country number {i}, and why is it so?", NAMES[i % 3]
    )


def sorted_out(lm: LanguageModel, found: list[Prompt], **changes: object) -> Sources:
    options = {"excluded": [], "max_prompt_tokens": 200, "held_out": 0.2, "num_checked": 5, "seed": 1} | changes
    return sort_out(found, lm.tokenizer, **options)  # type: ignore[arg-type]


def test_prompts_are_learned_or_held_out_and_keep_their_side_when_more_come(lm: LanguageModel) -> None:
    prompts = [question(i) for i in range(60)]
    small, large = sorted_out(lm, prompts[:30], num_checked=99), sorted_out(lm, prompts, num_checked=99)
    assert len(small.train) + len(small.held_out) == 30
    assert [source for source in small.held_out if source not in large.held_out] == []
    assert [source for source in small.train if source not in large.train] == []
    assert all(key == key_of(encode(lm.tokenizer, prompt.messages)) for prompt, key in small.train)


def test_held_out_prompts_to_measure_with_are_spread_over_the_kinds(lm: LanguageModel) -> None:
    found = sorted_out(lm, [question(i) for i in range(60)], num_checked=3)
    assert {prompt.kind for prompt, _ in found.held_out} == set(NAMES[:3])


def test_there_is_always_something_to_measure_with(lm: LanguageModel) -> None:
    found = sorted_out(lm, [question(0), question(1)], held_out=0.001)
    assert (len(found.train), len(found.held_out)) == (1, 1)
    found = sorted_out(lm, [question(0), question(1)], held_out=0.5, seed=4)
    assert (len(found.train), len(found.held_out)) == (1, 1)
    with pytest.raises(UsageError, match="too few prompts"):
        sorted_out(lm, [question(0)])


def test_long_prompts_excluded_ones_and_those_like_a_held_out_one_are_dropped(lm: LanguageModel) -> None:
    prompts = [question(i) for i in range(40)]
    aside = sorted_out(lm, prompts).held_out[0][0]
    like = user_prompt(f"Dear friend, tell me this: {aside.text} Thank you.", "new")
    assert sorted_out(lm, [like, *prompts]).dropped == {"too long": 0, "excluded": 0, "like a held-out one": 1}
    long = user_prompt("word " * 300)
    found = sorted_out(lm, [long, *prompts], excluded=[prompts[3], prompts[4]])
    assert found.dropped == {"too long": 1, "excluded": 2, "like a held-out one": 0}
    assert prompts[3] not in [prompt for prompt, _ in (*found.train, *found.held_out)]


def test_duplicates_are_counted_by_their_kind() -> None:
    new, dropped = without_duplicates([question(1), question(2), question(1)], Seen())
    assert (new, dropped) == ([question(1), question(2)], {"exact": 1, "near": 0})


def test_spread_takes_the_first_of_every_kind_first() -> None:
    sources = [(user_prompt(f"prompt {i}", "abc"[i // 4]), i) for i in range(12)]
    assert [key for _, key in spread(sources, 5)] == [0, 4, 8, 1, 5]


def test_some_are_evenly_spaced() -> None:
    assert some_of(list(range(10)), 4) == [0, 3, 6, 9]  # type: ignore[type-var, arg-type, comparison-overlap]
    assert some_of([], 4) == []


@pytest.fixture
def writer(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Writer]:
    monkeypatch.setattr("outpace.train.text.sources._PER_SHARD", 8)
    monkeypatch.setattr("outpace.train.text.sources._MAX_USER_TOKENS", 24)
    return lambda folder: Writer(lm, folder, seed=5)


@pytest.fixture(autouse=True)
def any_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model hardly ever ends a sentence: let a prompt end anywhere."""

    monkeypatch.setattr("outpace.train.text.synthesis._SENTENCE_END", re.compile("$"))


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_target_writes_prompts_until_there_are_enough(writer: Callable[[Path], Writer], tmp_path: Path) -> None:
    own = writer(tmp_path / "a")
    assert list(own.write(20, lambda: True, 4))[-1] == 20 == len(own.prompts)
    assert len({prompt.text for prompt in own.prompts}) == 20
    assert list(writer(tmp_path / "b").write(20, lambda: True, 16))[-1] == 20
    assert shards(tmp_path / "a") == shards(tmp_path / "b"), "how many at once changes nothing"


def test_a_writer_goes_on_where_it_was(writer: Callable[[Path], Writer], folder: Path, tmp_path: Path) -> None:
    list(writer(tmp_path / "whole").write(20, lambda: True, 4))
    steps = Writer(outpace.load(folder, threads=1), tmp_path / "cut", seed=5).write(20, lambda: True, 4)
    for _ in range(20):
        next(steps)
    steps.close()
    again = writer(tmp_path / "cut")
    assert 0 < len(again.prompts) < 20
    list(again.write(20, lambda: True, 4))
    assert shards(tmp_path / "cut") == shards(tmp_path / "whole")
    assert again.prompts == writer(tmp_path / "whole").prompts[:20]


def test_what_was_begun_when_the_time_is_over_is_kept(writer: Callable[[Path], Writer], tmp_path: Path) -> None:
    left = iter([True] * 10 + [False] * 1000)
    own = writer(tmp_path)
    list(own.write(None, lambda: next(left), 4))
    assert 8 < len(own.prompts) + sum(own.dropped.values()) < 20
    assert writer(tmp_path).prompts == own.prompts


def test_a_target_that_has_nothing_new_to_say_is_not_asked_for_ever(
    writer: Callable[[Path], Writer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outpace.train.text.sources._BARREN", 2)
    monkeypatch.setattr("outpace.train.text.synthesis.prompt_from", lambda result: user_prompt("always this"))
    own = writer(tmp_path)
    assert list(own.write(20, lambda: True, 4))[-1] == 1
    assert own.dropped["exact"] == 23
