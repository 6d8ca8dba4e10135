from __future__ import annotations

import string
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outpace.errors import TokenizerError
from outpace.tokenizer import Tokenizer
from outpace.tokenizer.sentencepiece import FREE, merges, prefix_links
from tests.vocabularies import sentencepiece_metadata

pieces = st.lists(st.text("abc", min_size=1, max_size=6), unique=True, max_size=40)


def by_definition(scores: dict[str, float]) -> list[tuple[str, str]]:
    found = [
        (score, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for _, left, right in sorted(found, key=lambda merge: -merge[0])]


@given(pieces, st.data())
def test_merges_are_all_pairs_of_pieces_that_make_a_piece_in_order(texts: list[str], data: st.DataObject) -> None:
    scores = {text: data.draw(st.sampled_from([-1.0, -2.0, 0.0, float("-inf")])) for text in texts}
    assert merges(scores) == by_definition(scores)


@given(pieces)
def test_a_link_leads_to_the_longest_other_text_that_begins_a_text(texts: list[str]) -> None:
    for i, link in enumerate(prefix_links(texts)):
        shorter = [k for k in range(len(texts)) if k != i and texts[i].startswith(texts[k])]
        assert link == max(shorter, key=lambda k: len(texts[k]), default=-1)


class Counting(str):
    """A text that counts how often it is compared, and how many characters are cut out of it."""

    comparisons = cut = 0

    def startswith(self, *args: object) -> bool:  # type: ignore[override]
        Counting.comparisons += 1
        return str.startswith(self, *args)  # type: ignore[arg-type]

    def __getitem__(self, key: object) -> Counting:  # type: ignore[override]
        part = str.__getitem__(self, key)  # type: ignore[index]
        Counting.cut += len(part)
        return Counting(part)


def work(texts: list[str]) -> tuple[int, int]:
    Counting.comparisons = Counting.cut = 0
    merges({Counting(text): 0.0 for text in texts})
    return Counting.comparisons, Counting.cut


@pytest.mark.parametrize("kind", ["one long piece", "many pieces", "pieces within pieces"])
def test_the_work_grows_with_the_vocabulary_and_not_with_its_square(kind: str) -> None:
    def vocabulary(n: int) -> list[str]:
        if kind == "one long piece":
            return ["a", "x" * n]
        if kind == "many pieces":
            return [f"{i:05d}" for i in range(n // 5)]
        return [letter * k for letter in string.ascii_letters[: n // 500] for k in range(1, 20)]

    (comparisons, cut), (twice_comparisons, twice_cut) = work(vocabulary(5_000)), work(vocabulary(10_000))
    assert twice_comparisons <= 2.1 * comparisons + 10
    assert twice_cut <= 2.1 * cut + 100


def test_one_piece_of_half_a_million_characters_is_loaded() -> None:
    """By way of slices of every length this would copy 125 thousand million characters."""
    old = sentencepiece_metadata()
    tokens, scores, types = (old[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type"))
    tokenizer = Tokenizer.from_gguf(
        sentencepiece_metadata(tokens=[*tokens, "x" * 500_000], scores=[*scores, -1e4], token_type=[*types, 1])
    )
    assert tokenizer.encode("the fox") == Tokenizer.from_gguf(old).encode("the fox")


def test_merges_that_would_take_far_more_than_the_vocabulary_are_refused() -> None:
    runs = {"a" * k: 0.0 for k in range(1, 400)}
    assert sum(len(left) + len(right) for left, right in by_definition(runs)) > FREE
    with pytest.raises(TokenizerError, match=r"tokenizer\.ggml\.tokens makes \d+ merges and more, with over 16 times"):
        merges(runs)


def test_a_run_of_spaces_as_in_real_vocabularies_is_within_the_bound() -> None:
    runs = {"▁" * k: -float(k) for k in range(1, 32)}
    assert merges(runs) == by_definition(runs)


@pytest.mark.parametrize("texts", [[f"{i:06d}" for i in range(20_000)], [f"{i:03x}" for i in range(4096)]])
def test_merging_takes_memory_in_proportion_to_the_vocabulary(texts: list[str]) -> None:
    scores = dict.fromkeys([*texts, *"0123456789abcdef"], 0.0)
    size = sum(8 + len(text) for text in scores)  # as stored
    tracemalloc.start()
    try:
        merges(scores)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 * size + (1 << 20)
