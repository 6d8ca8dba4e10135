from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from outpace.errors import UsageError
from outpace.train.text.corpus import MANIFEST, Batches, Conversation, Corpus, is_held_out, key_of
from tests.unit.train.text.test_npy import archive

VOCAB = 50


def conversation(seed: int, length: int | None = None, kind: str = "prose", prompt: int = 3) -> Conversation:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, length or int(rng.integers(4, 40)), np.int32)
    return Conversation(
        tokens, prompt, seed % 2 == 1, kind, temperature=0.8 * (seed % 2), min_p=0.03, seed=2**63 + seed
    )


def corpus_of(folder: Path, count: int = 60, per_shard: int = 7) -> Corpus:
    corpus = Corpus.create(folder, "fingerprint", VOCAB)
    own = [conversation(i, kind="code" if i % 3 else "prose") for i in range(count)]
    for start in range(0, count, per_shard):
        corpus.append(own[start : start + per_shard])
    return corpus


def same(a: Conversation, b: Conversation) -> bool:
    return bool(np.array_equal(a.tokens, b.tokens)) and all(
        getattr(a, name) == getattr(b, name)
        for name in ("num_prompt", "sampled", "kind", "temperature", "min_p", "seed")
    )


def test_what_was_appended_is_there_after_opening_again(tmp_path: Path) -> None:
    corpus_of(tmp_path)
    found = Corpus.open(tmp_path)
    assert len(found) == 60
    assert all(same(found[i], conversation(i, kind="code" if i % 3 else "prose")) for i in range(60))
    assert found.lengths.tolist() == [len(own.tokens) for own in found]
    assert found.num_learned == sum(len(own.tokens) - 3 for own in found)
    assert same(found[-1], found[59])
    assert [len(own.tokens) for own in found[10:13]] == found.lengths[10:13].tolist()
    with pytest.raises(IndexError):
        found[60]


def test_wide_vocabularies_keep_their_ids(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path, "f", 200_000)
    corpus.append([Conversation(np.array([1, 70_000, 199_999], np.int32), 1, False, "x")])
    assert Corpus.open(tmp_path)[0].tokens.tolist() == [1, 70_000, 199_999]


def test_a_shard_that_no_list_names_does_not_exist(tmp_path: Path) -> None:
    """Killed after the arrays and before the list: the next one takes the place."""
    corpus = corpus_of(tmp_path, 14)
    before = (tmp_path / MANIFEST).read_bytes()
    corpus.append([conversation(99)])
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / MANIFEST).write_bytes(before)
    again = Corpus.open(tmp_path)
    assert len(again) == 14
    again.append([conversation(99)])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == after


def test_a_split_depends_on_the_prompt_alone(tmp_path: Path) -> None:
    small, large = corpus_of(tmp_path / "a", 200), corpus_of(tmp_path / "b", 400)
    train, held_out = small.split(0.3, 5)
    assert len(train) + len(held_out) == 200
    assert 30 < len(held_out) < 90, "binomial(200, 0.3): beyond this once in 10^5 seeds"
    larger = {own.key for own in large.split(0.3, 5)[1]}
    assert {own.key for own in held_out} == {own.key for own in held_out} & larger
    assert {own.key for own in held_out} != {own.key for own in small.split(0.3, 6)[1]}
    assert train.lengths.tolist() == [len(own.tokens) for own in train]
    assert len(train[2:5]) == 3


def test_nothing_and_everything_can_be_held_out() -> None:
    keys = np.array([key_of([i]) for i in range(100)], np.uint64)
    assert not is_held_out(keys, 0.0, 1).any()
    assert is_held_out(keys, 1.0, 1).all()


def test_keys_of_the_callers_choice_keep_conversations_together(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path, "f", VOCAB)
    corpus.append([conversation(i) for i in range(40)], keys=[7] * 40)
    assert sorted(map(len, Corpus.open(tmp_path).split(0.5, 0))) == [0, 40]


def test_every_epoch_has_every_conversation_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, 100)
    batches = Batches(corpus, 128, seed=3)
    epochs = [[batches.batch(e * batches.per_epoch + i) for i in range(batches.per_epoch)] for e in range(3)]
    for epoch in epochs:
        assert sorted(place for batch in epoch for place in batch) == list(range(100))
        assert all(len(batch) * max(corpus.lengths[batch]) <= 128 for batch in epoch)
        assert all(max(corpus.lengths[batch]) <= 1.125 * min(corpus.lengths[batch]) + 8 for batch in epoch)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_batch_is_a_function_of_its_step(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, 100)
    batches = Batches(corpus, 128, seed=3)
    in_order = [batches.batch(step) for step in range(50)]
    assert [Batches(list(corpus), 128, seed=3).batch(step) for step in range(50)] == in_order
    assert [batches.batch(step) for step in reversed(range(50))] == in_order[::-1]
    assert [Batches(corpus, 128, seed=4).batch(step) for step in range(50)] != in_order


def test_a_conversation_longer_than_a_batch_is_a_batch_alone() -> None:
    batches = Batches([conversation(0, 500), conversation(1, 10), conversation(2, 10)], 30, seed=0)
    assert sorted(sorted(batches.batch(i)) for i in range(batches.per_epoch)) == [[0], [1, 2]]


def test_nothing_to_learn_from_is_an_error() -> None:
    with pytest.raises(UsageError, match="empty"):
        Batches([], 30, seed=0)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (MANIFEST, lambda text: b"{"),
        (MANIFEST, lambda text: b"[]"),
        (MANIFEST, lambda text: text.replace(b'"schema": 1', b'"schema": 2')),
        (MANIFEST, lambda text: text.replace(b'"tokens": ', b'"tokens": 1')),
        (MANIFEST, lambda text: text.replace(b'"kinds"', b'"sorts"')),
        (MANIFEST, lambda text: text.replace(b'"kinds": [', b'"kinds": [], "was": [')),
        (MANIFEST, lambda text: text.replace(b'"vocab_size": 50', b'"vocab_size": 20')),
        ("00001.tokens.npy", lambda data: data[:-10]),
        ("00001.index.npy", lambda data: data[:40]),
        ("00001.index.npy", lambda data: archive()),
    ],
)
def test_a_damaged_corpus_is_refused_with_the_reason(tmp_path: Path, name: str, change) -> None:  # type: ignore[no-untyped-def]
    corpus_of(tmp_path)
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    with pytest.raises(UsageError, match="damaged"):
        Corpus.open(tmp_path)


def test_a_folder_without_a_corpus_is_told_so(tmp_path: Path) -> None:
    assert not Corpus.is_one(tmp_path)
    with pytest.raises(UsageError, match="is no corpus"):
        Corpus.open(tmp_path)
    corpus_of(tmp_path, 3)
    assert Corpus.is_one(tmp_path)
    assert json.loads((tmp_path / MANIFEST).read_text())["shards"][0]["conversations"] == 3
