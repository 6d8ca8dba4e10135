from __future__ import annotations

from outpace.measure.certify import effort


def test_a_batch_is_cheaper_than_its_sequences_alone_but_dearer_than_one() -> None:
    one, four = effort.of_decoding([10], 20), effort.of_decoding([10] * 4, 20)
    assert one < four < 4 * one


def test_a_cached_prompt_is_not_read_again() -> None:
    assert effort.of_decoding([100, 50], 20) - effort.of_decoding([100, 50], 20, cached=True) == 150


def test_without_a_cache_every_token_reads_its_sequence_again() -> None:
    """Two tokens after 100: passes over 100 and 101 rows, and what two passes cost by themselves."""
    assert effort.of_recomputing([100], 2) == 2 * effort.of_decoding([0], 1) + 2 * 100
    assert effort.of_recomputing([100], 40) > 10 * effort.of_decoding([100], 40)


def test_scoring_reads_prompts_and_what_follows() -> None:
    assert effort.of_scoring([10, 20], 5) - effort.of_scoring([10, 20], 0) == 10
