from __future__ import annotations

import random

import pytest

from outpace.drafters.refine.block import Block, Guesses
from outpace.drafters.refine.rules import ByConfidence, MaskPredict, Rule

TOKENS = [10, 11, 12, 13, 14]


def after(
    rule: Rule, block: Block, probability: list[float], entropy: list[float] = (), kept: list[float] = ()
) -> Block:  # type: ignore[assignment]
    rule.refine(block, Guesses(TOKENS[: len(block)], probability, kept, entropy), (99,))
    block.num_passes += 1
    return block


def written(rule: Rule, probability: list[float], entropy: list[float] = ()) -> list[int]:  # type: ignore[assignment]
    """The places that a rule writes of a block of masks."""
    block = after(rule, Block.masked_from(0, len(probability)), probability, entropy)
    return [place for place in range(len(block)) if place not in block.masks]


def test_every_place_above_the_threshold_is_written() -> None:
    rule = ByConfidence(threshold=0.7)
    assert written(rule, [0.9, 0.2, 0.7, 0.69, 0.8]) == [0, 2, 4]


def test_the_surest_place_is_written_where_none_is_above_the_threshold_and_of_equals_the_first() -> None:
    assert written(ByConfidence(threshold=0.9), [0.1, 0.5, 0.3, 0.5]) == [1]


def test_confidence_order_is_respected_whatever_the_probabilities() -> None:
    """Nothing is written while something surer stays masked: 200 random blocks, every count of passes."""
    rng = random.Random(0)
    for _ in range(200):
        probability = [rng.random() for _ in range(5)]
        rule = ByConfidence(threshold=rng.random(), passes=rng.choice([None, 1, 2, 3, 5]))
        places = written(rule, probability)
        rest = set(range(5)) - set(places)
        assert places
        assert not rest or min(probability[i] for i in places) >= max(probability[i] for i in rest)


def test_what_is_written_stays_and_keeps_its_confidence() -> None:
    rule = ByConfidence(threshold=0.5)
    block = after(rule, Block.masked_from(0, 3), [0.9, 0.1, 0.1])
    rule.refine(block, Guesses([0, 8, 9], [0.0, 0.6, 0.2]), ())
    assert (block.tokens, block.confidence) == ([10, 8, -1], [0.9, 0.6, 0.0])


def test_the_factor_admits_the_largest_count_that_keeps_the_product_likely() -> None:
    # (n + 1) (1 - p_n): 2 * 0.05 = 0.1, 3 * 0.1 = 0.3, 4 * 0.3 = 1.2
    probability = [0.9, 0.7, 0.95]
    assert written(ByConfidence("factor", 0.5), probability) == [0, 2]
    assert written(ByConfidence("factor", 1.3), probability) == [0, 1, 2]
    assert written(ByConfidence("factor", 0.05), probability) == [2], "at least one"


def test_the_entropy_budget_counts_all_but_the_last() -> None:
    entropy = [0.3, 0.1, 1.0, 0.2]
    assert written(ByConfidence("entropy", 0.0), [0.1] * 4, entropy) == [1]
    assert written(ByConfidence("entropy", 0.15), [0.1] * 4, entropy) == [1, 3]
    assert written(ByConfidence("entropy", 0.35), [0.1] * 4, entropy) == [0, 1, 3]


@pytest.mark.parametrize(("length", "passes"), [(5, 2), (5, 3), (4, 8), (5, 5), (1, 3)])
def test_a_number_of_passes_is_kept_in_equal_parts(length: int, passes: int) -> None:
    rule, block, counts = ByConfidence(threshold=None, passes=passes), Block.masked_from(0, length), []
    while block.masks:
        before = len(block.masks)
        after(rule, block, [0.5] * length)
        counts.append(before - len(block.masks))
    assert len(counts) <= passes
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True), "the larger parts first, as LLaDA has it"


def test_dreams_schedule_rounds_down_and_ends_with_the_rest() -> None:
    rule, block, counts = ByConfidence(threshold=None, passes=4, schedule="linear"), Block.masked_from(0, 5), []
    for _ in range(4):
        before = len(block.masks)
        after(rule, block, [0.5] * 5)
        counts.append(before - len(block.masks))
    assert counts == [1, 1, 1, 2]  # 5 * 0.24975, 4 * 0.333, 3 * 0.499, the rest


def test_unlikely_tokens_are_masked_again_once_and_never_in_the_last_pass() -> None:
    rule = ByConfidence(threshold=0.5, passes=3, remask=0.2)
    block = after(rule, Block.masked_from(0, 3), [0.9, 0.8, 0.1], kept=[0, 0, 0])
    assert block.tokens == [10, 11, -1]
    after(rule, block, [0.1, 0.1, 0.1], kept=[0.1, 0.3, 0.0])
    assert block.tokens == [-1, 11, 12]
    after(rule, block, [0.1, 0.1, 0.1], kept=[0.0, 0.1, 0.1])
    assert block.tokens == [10, 11, 12]
    unlimited = ByConfidence(threshold=0.5, remask=0.2)
    block = Block.masked_from(0, 5)
    while block.masks:
        assert block.num_passes <= 10, "every place is masked again once at most"
        after(unlimited, block, [0.1] * 5, kept=[0.0] * 5)
    assert block.remasked


def test_mask_predict_masks_the_least_sure_again_and_fewer_each_time() -> None:
    rule, block = MaskPredict(passes=3), Block.masked_from(0, 5)
    after(rule, block, [0.9, 0.2, 0.8, 0.1, 0.3])
    assert block.masks == [1, 3, 4]  # 5 * 2 / 3
    after(rule, block, [0.0, 0.05, 0.0, 0.5, 0.6])
    assert block.masks == [1], "what stays keeps the confidence that it was written with"
    after(rule, block, [0.0] * 5)
    assert block.tokens == TOKENS


def test_mask_predict_may_predict_the_length() -> None:
    block = Block.masked_from(0, 4)
    rule = MaskPredict(passes=2, predicts_length=True)
    rule.refine(block, Guesses([5, 99, 6, 7], [0.9, 0.8, 0.1, 0.2]), (99,))
    assert block.tokens == [5, -1]
    block = Block.masked_from(0, 4)
    MaskPredict(passes=1, predicts_length=True).refine(block, Guesses([5, 6, 7, 8], [0.9] * 4), (99,))
    assert block.tokens == [5, 6, 7, 8]
