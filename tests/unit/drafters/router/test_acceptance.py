from __future__ import annotations

import random

import pytest

from outpace.drafters.router.acceptance import CALIBRATED_VARIANCE, Acceptance, Counts, OpenProposal, bucket_of
from outpace.types.tree import DraftTree, TreeBuilder


def test_an_unknown_drafter_is_believed_in_part() -> None:
    acceptance = Acceptance(Counts())
    assert 0.4 < acceptance.chance(0, 0.6, 10) < 0.6
    assert acceptance.chance(0, 0.9, 10) > acceptance.chance(0, 0.3, 10)
    assert acceptance.chance(0, 1.0, 10) < 1.0


def test_chances_approach_what_is_seen_by_depth_and_confidence() -> None:
    dice, counts = random.Random(1), Counts()
    truth = {(0, 0.5): 0.2, (0, 0.9): 0.95, (4, 0.5): 0.6}
    for _ in range(20):
        acceptance = Acceptance(counts)
        for length in range(60):
            for (depth, confidence), chance in truth.items():
                acceptance.learn([(depth, confidence, dice.random() < chance)], length)
    fresh = Acceptance(counts)
    for (depth, confidence), chance in truth.items():
        assert fresh.chance(depth, confidence, 0) == pytest.approx(chance, abs=0.12)


def test_a_change_of_the_text_is_followed_within_few_surprises() -> None:
    counts = Counts()
    for length in range(200):
        Acceptance(counts).learn([(0, 0.8, length % 2 == 0)], length)  # half of all guesses, over all requests
    acceptance = Acceptance(counts)
    for length in range(16):
        acceptance.learn([(0, 0.8, True)], length)
    assert acceptance.chance(0, 0.8, 16) > 0.7
    assert acceptance.chance(0, 0.6, 16) > Acceptance(counts).chance(0, 0.6, 16), "other buckets share the offset"
    for length in range(16, 32):
        acceptance.learn([(0, 0.8, False)], length)
    assert acceptance.chance(0, 0.8, 32) < 0.4


def test_a_calibrated_confidence_is_believed_from_the_first_and_moved_little_by_surprises() -> None:
    usual, calibrated = Acceptance(Counts()), Acceptance(Counts(is_calibrated=True), CALIBRATED_VARIANCE)
    assert usual.chance(0, 0.5, 0) == pytest.approx(0.4)
    assert calibrated.chance(0, 0.5, 0) == pytest.approx(0.5)
    for length in range(4):
        for acceptance in (usual, calibrated):
            acceptance.learn([(0, 0.5, False)], length)
    assert usual.offset(4) < 3 * calibrated.offset(4) < 0.0


def test_an_offset_fades_with_the_sequence() -> None:
    acceptance = Acceptance(Counts())
    before = acceptance.chance(0, 0.5, 0)
    for length in range(4):
        acceptance.learn([(0, 0.5, True)], length)
    fresh = acceptance.chance(0, 0.1, 4)  # a bucket of its own: only the offset has moved it
    assert fresh > acceptance.chance(0, 0.1, 100) > acceptance.chance(0, 0.1, 400) > 0.08 - 1e-9
    assert acceptance.chance(0, 0.1, 10_000) == pytest.approx(0.08)
    assert acceptance.chance(0, 0.5, 10_000) > before, "counts stay"


def test_a_long_silence_makes_the_next_judgement_count_for_more() -> None:
    counts = Counts()
    for _ in range(200):
        counts.learn(bucket_of(0, 0.5), 0.5, was_right=False)
    offsets = []
    for silence in (1, 500):
        acceptance = Acceptance(counts)
        for length in range(60):
            acceptance.learn([(1, 0.9, length % 2 == 0)], length)
        before = acceptance.offset(60 + silence)
        acceptance.learn([(0, 0.5, True)], 60 + silence)
        offsets.append(acceptance.offset(60 + silence) - before)
    assert offsets[1] > 2 * offsets[0]


def test_counts_forget_what_is_long_ago() -> None:
    counts = Counts()
    bucket = bucket_of(0, 0.5)
    for _ in range(3000):
        counts.learn(bucket, 0.5, True)
    for _ in range(600):
        counts.learn(bucket, 0.5, False)
    assert counts.chance(bucket, 0.5) < 0.3


def test_a_depth_that_was_never_judged_is_as_likely_as_the_one_above_it() -> None:
    counts = Counts()
    for _ in range(100):
        counts.learn(bucket_of(0, 0.5), 0.5, True)
    assert counts.chance(bucket_of(6, 0.5), 0.5) > 0.95
    counts.learn(bucket_of(6, 0.5), 0.5, False)
    assert 0.5 < counts.chance(bucket_of(6, 0.5), 0.5) < 0.75
    assert counts.chance(bucket_of(6, 0.9), 0.9) == pytest.approx(0.72), "another confidence: its own word"


def test_only_nodes_whose_parent_is_on_the_texts_path_are_judged() -> None:
    tree = TreeBuilder()
    a = tree.add(-1, 5, 0.1)
    b = tree.add(-1, 6, 0.2)
    tree.add(a, 7, 0.3)
    d = tree.add(b, 7, 0.4)
    tree.add(d, 9, 0.5)
    guess = OpenProposal(tree.build("x"), 2)
    assert guess.judge([1, 2, 6, 7, 8]) == [(0, 0.1, False), (0, 0.2, True), (1, 0.4, True), (2, 0.5, False)]
    assert not guess.is_open


def test_a_proposal_stays_open_until_the_text_has_passed_or_refuted_it() -> None:
    guess = OpenProposal(DraftTree.chain([5, 6, 7], "x", [0.1, 0.2, 0.3]), 2)
    text = [1, 2]
    assert guess.judge(text) == []
    assert guess.is_open
    text += [5]
    assert guess.judge(text) == [(0, 0.1, True)]
    assert guess.is_open
    text += [6, 8, 9]
    assert guess.judge(text) == [(1, 0.2, True), (2, 0.3, False)]
    assert not guess.is_open
    assert guess.judge([*text, 7]) == []


def test_only_guesses_that_nobody_else_had_count_as_new() -> None:
    proposal = OpenProposal(DraftTree.chain([5, 6, 7, 8], "x"), 0, common=frozenset({0}))
    proposal.judge([5, 6, 1])
    assert (proposal.num_right, proposal.num_new) == (1, 2)


def test_a_proposal_that_came_true_to_its_end_is_closed() -> None:
    guess = OpenProposal(DraftTree.chain([5, 6], "x"), 0)
    assert guess.judge([5, 6, 7, 8]) == [(0, 0.5, True), (1, 0.5, True)]
    assert not guess.is_open


def test_the_chances_of_a_tree_are_those_of_its_nodes() -> None:
    dice, acceptance = random.Random(2), Acceptance(Counts())
    for length in range(100):
        acceptance.learn([(dice.randrange(6), dice.random(), dice.random() < 0.6)], length)
    tree = TreeBuilder()
    for node in range(20):
        tree.add(dice.randrange(-1, node), node, dice.random())
    built = tree.build("x")
    assert acceptance.chances(built, 100) == pytest.approx(
        [acceptance.chance(d, c, 100) for d, c in zip(built.depths(), built.confidence, strict=True)]
    )
