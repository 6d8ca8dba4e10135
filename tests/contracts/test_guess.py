"""The contract of the ops of drafter networks: `fuse`, `guess` and `best_of_columns`, for every implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from outpace.errors import UsageError
from outpace.ops.compose import compose_best, compose_fuse, compose_states, compose_store
from outpace.ops.layers import DecoderLayer, FusionParts, Guesses, GuessLayer, HeadPart
from outpace.ops.protocol import Ops
from outpace.ops.sampling import SamplingBatch, SamplingRows
from outpace.types import KVSpec, SamplingParams, Segment
from tests.implementations import MAKERS
from tests.tiny import raw_tensor

VOCAB, WIDTH, EMBEDDED, HEADS, GROUPS, HEAD, FIXED, BLOCK = 211, 64, 96, 4, 2, 16, 70, 8


@pytest.fixture(params=list(MAKERS))
def ops(request: pytest.FixtureRequest) -> Ops:
    return MAKERS[request.param](1)


class Lab:
    """A random guess layer, keys and values for 12 blocks."""

    def __init__(self, ops: Ops, format: str = "F32", kv: str = "bf16", has_more: bool = False) -> None:
        self.ops, self.format = ops, format
        self.rng = np.random.default_rng(5)
        inputs, queries, keys = EMBEDDED + WIDTH, HEADS * HEAD, GROUPS * HEAD
        layer = DecoderLayer(
            index=0,
            attn_norm=self.vector(EMBEDDED),
            wq=self.matrix(queries, inputs),
            wk=self.matrix(keys, inputs),
            wv=self.matrix(keys, inputs),
            wo=self.matrix(WIDTH, queries),
            mlp_norm=self.vector(WIDTH),
            gate=self.matrix(160, WIDTH),
            up=self.matrix(160, WIDTH),
            down=self.matrix(WIDTH, 160),
            rope=ops.rope(1e4 ** (-np.arange(0, HEAD, 2) / HEAD), 1.0, 200),
            num_heads=HEADS,
            num_kv_heads=GROUPS,
            head_width=HEAD,
            eps=1e-5,
            first=1,
            window=9 if has_more else None,
            **({"bq": self.vector(queries), "k_norm": self.vector(HEAD)} if has_more else {}),
        )
        tokens = self.rng.permutation(VOCAB)
        self.embedding = self.matrix(VOCAB, EMBEDDED)
        self.layer = GuessLayer(
            layer,
            self.embedding,
            self.vector(WIDTH),
            self.vector(WIDTH),
            HeadPart(self.matrix(FIXED, WIDTH), tuple(tokens[:FIXED].tolist())),
            residual_is_normed=has_more,
            output_is_normed=has_more,
            bo=self.vector(WIDTH) if has_more else None,
        )
        self.guesser = ops.guesser(self.layer)
        self.more = [None, *(self.part(tokens[FIXED + 9 * i : FIXED + 9 * i + 5 + i].tolist()) for i in range(3))]
        self.spec = KVSpec(1, GROUPS, HEAD, kv, BLOCK)  # type: ignore[arg-type]
        self.kv = ops.kv_alloc(self.spec, 16)

    def matrix(self, rows: int, columns: int) -> Any:
        x = self.rng.standard_normal((rows, columns), np.float32) * np.float32(1.5 / np.sqrt(columns))
        return self.ops.pack(raw_tensor("matrix", x, self.format))

    def vector(self, size: int) -> Any:
        return self.ops.vector(raw_tensor("vector", 1 + self.rng.standard_normal(size, np.float32) / 10))

    def part(self, tokens: list[int]) -> HeadPart:
        return HeadPart(self.matrix(len(tokens), WIDTH), tuple(tokens))

    def features(self, rows: int, seed: int = 0) -> Any:
        return self.ops.array(np.random.default_rng(seed).standard_normal((rows, WIDTH), np.float32))

    def guess(
        self, features: Any, segments: Sequence[Segment], more: Sequence[int], batch: SamplingBatch, k: int = 3
    ) -> Guesses:
        ops = self.ops
        further = [part and ops.head_rows(part) for part in (self.more[i] for i in more)]
        return ops.guess(features, self.guesser, self.kv, ops.plan(segments, BLOCK), further, batch, k)

    def composed(
        self, features: Any, segments: Sequence[Segment], more: Sequence[int], batch: SamplingBatch, k: int = 3
    ) -> Guesses:
        ops, plan = self.ops, self.ops.plan(segments, BLOCK)
        kv = ops.kv_alloc(self.spec, 16)
        queries = compose_store(ops, features, self.layer, kv, plan)
        states = compose_states(ops, queries, features, self.layer, kv, plan)
        counts = [segment.num_scored for segment in segments]
        best = compose_best(ops, states, self.layer, [self.more[i] for i in more], counts, VOCAB, batch, k)
        if self.layer.output_is_normed:
            states = ops.rms_norm(states, self.layer.head_norm, self.layer.layer.eps)
        return Guesses(states, *best)


def same(ops: Ops, a: Guesses, b: Guesses) -> bool:
    bits = [ops.numpy(guesses.states).view(np.uint32) for guesses in (a, b)]
    return np.array_equal(*bits) and (a.tokens, a.logprobs, a.scores) == (b.tokens, b.logprobs, b.scores)


def sampled(rows: int, **given: Any) -> SamplingBatch:
    batch = SamplingRows()
    for row in range(rows):
        params = SamplingParams(**({"temperature": 0.8, "top_p": 0.9} | given))
        batch.add(params, 7, 0, [20 + row], prompt=range(VOCAB), output=[row, 3, 3])
    return batch.build()


# Three sequences: a prefill of which only the end is guessed behind, one token, a tree.
PARENTS = [-1, 0, 0, -1, 2]
SEGMENTS = [
    Segment([0, 1], 1, list(range(11)), num_scored=2),
    Segment([2], 1, [100]),
    Segment([3, 4], 1, [5, 6, *range(50, 55)], PARENTS, num_scored=6),
    Segment([5], 1, [8, 9], num_scored=0),
]
ROWS, SCORED = 21, 9


@pytest.mark.parametrize("has_more", [False, True], ids=["plain", "with every option"])
@pytest.mark.parametrize(("format", "kv"), [("F32", "f32"), ("Q8_0", "bf16"), ("BF16", "int8")])
@pytest.mark.parametrize("batch", [SamplingBatch.greedy(SCORED), sampled(SCORED)], ids=["greedy", "sampled"])
def test_a_guess_has_the_bits_of_the_composed_one(
    ops: Ops, format: str, kv: str, has_more: bool, batch: SamplingBatch
) -> None:
    lab = Lab(ops, format, kv, has_more)
    arguments = (lab.features(ROWS), SEGMENTS, [1, 0, 2, 3], batch)
    guesses = lab.guess(*arguments)
    assert same(ops, guesses, lab.composed(*arguments))
    assert len({token for row in guesses.tokens for token in row}) > 10


def test_a_sequence_alone_has_the_guesses_that_it_has_in_a_batch(ops: Ops) -> None:
    lab, more, first, scored = Lab(ops, "Q8_0"), [1, 0, 2, 3], 0, 0
    features = lab.features(ROWS)
    together = lab.guess(features, SEGMENTS, more, sampled(SCORED))
    for segment, own in zip(SEGMENTS[:3], more, strict=False):
        rows = range(first, first + len(segment.tokens))
        batch = sampled(SCORED).select(range(scored, scored + segment.num_scored))
        alone = Lab(ops, "Q8_0").guess(ops.select(features, rows), [segment], [own], batch)
        part = slice(scored, scored + segment.num_scored)
        of_batch = Guesses(
            ops.select(together.states, range(part.start, part.stop)),
            together.tokens[part],
            together.logprobs[part],
            together.scores[part],
        )
        assert same(ops, alone, of_batch)
        first, scored = rows.stop, part.stop


@pytest.mark.parametrize("name", MAKERS)
def test_threads_change_no_guess(name: str) -> None:
    one, three = (
        Lab(MAKERS[name](threads), "Q8_0").guess(
            Lab(MAKERS[name](1)).features(ROWS), SEGMENTS, [1, 0, 2, 3], sampled(SCORED)
        )
        for threads in (1, 3)
    )
    assert same(MAKERS[name](1), one, three)


def test_without_scored_rows_only_keys_and_values_are_written(ops: Ops) -> None:
    lab, features = Lab(ops), Lab(ops).features(10)
    stored = lab.guess(
        ops.select(features, range(9)), [Segment([0, 1], 1, list(range(9)), num_scored=0)], [0], sampled(0)
    )
    assert ops.numpy(stored.states).shape == (0, WIDTH)
    assert (stored.tokens, stored.logprobs, stored.scores) == ([], [], [])
    then = lab.guess(ops.select(features, [9]), [Segment([0, 1], 10, [9])], [0], sampled(1))
    at_once = Lab(ops).guess(features, [Segment([0, 1], 1, list(range(10)))], [0], sampled(1))
    assert same(ops, then, at_once)


def test_a_draft_that_grows_level_by_level_sees_what_it_sees_at_once(ops: Ops) -> None:
    """Nodes of earlier levels lie in slots; a node sees its own ancestors among them alone."""
    tokens, parents = [11, 12, 13, 14, 15, 16, 17, 18], [-1, -1, 0, 0, 1, 3, 4, 4]
    lab, features = Lab(ops, "Q8_0"), Lab(ops).features(12)
    whole = Lab(ops, "Q8_0").guess(
        features, [Segment([0, 1, 2], 1, [1, 2, 3, 4, *tokens], parents, num_scored=8)], [1], sampled(8)
    )
    lab.guess(ops.select(features, range(4)), [Segment([0, 1, 2], 1, [1, 2, 3, 4], num_scored=0)], [0], sampled(0))
    for begin, end in ((0, 2), (2, 5), (5, 8)):
        segment = Segment([0, 1, 2], 5, tokens[begin:end], parents[begin:end], end - begin, stored=parents[:begin])
        level = lab.guess(
            ops.select(features, range(4 + begin, 4 + end)), [segment], [1], sampled(8).select(range(begin, end))
        )
        part = slice(begin, end)
        states = ops.select(whole.states, range(begin, end))
        assert same(ops, level, Guesses(states, whole.tokens[part], whole.logprobs[part], whole.scores[part]))


def test_guesses_are_best_first_and_know_only_their_rows_tokens(ops: Ops) -> None:
    lab = Lab(ops)
    guesses = lab.guess(
        lab.features(2), [Segment([0], 1, [1]), Segment([1], 1, [2])], [2, 0], sampled(2, top_p=1.0), 70
    )
    known = set(lab.layer.head.tokens)
    assert {*guesses.tokens[1]} == known
    assert {*guesses.tokens[0]} - known
    assert {*guesses.tokens[0]} <= known | {*lab.more[2].tokens}
    for scores, logprobs in zip(guesses.scores, guesses.logprobs, strict=True):
        assert scores == sorted(scores, reverse=True)
        assert max(logprobs) <= 0
    assert sum(np.exp(guesses.logprobs[1])) == pytest.approx(1.0, abs=1e-4)


def test_what_cannot_be_guessed_is_refused(ops: Ops) -> None:
    lab = Lab(ops)
    with pytest.raises(UsageError, match="211 is outside"):
        lab.guess(lab.features(1), [Segment([0], 1, [VOCAB])], [0], sampled(1))
    with pytest.raises(UsageError, match="token for each of the 3 rows"):
        ops.head_rows(HeadPart(lab.matrix(3, WIDTH), (1, 2)))


# -- fuse ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norms", ["each", "joint", "none"])
@pytest.mark.parametrize("adds_last", [False, True])
def test_features_have_the_bits_of_the_composed_ones(ops: Ops, norms: str, adds_last: bool) -> None:
    lab = Lab(ops, "Q8_0")
    each = tuple(lab.vector(WIDTH) for _ in range(3)) if norms == "each" else ()
    joint = lab.vector(3 * WIDTH) if norms == "joint" else None
    parts = FusionParts(lab.matrix(WIDTH, 3 * WIDTH), 1e-5, adds_last, each, joint)
    passes = [[lab.features(rows, seed) for seed in range(3)] for rows in (9, 4, 2)]
    picked = [[8, 0, 1], [3], [1, 0]]
    given = list(zip(passes, picked, strict=True))
    fused = ops.numpy(ops.fuse(ops.fusion(parts), given))
    assert fused.shape == (6, WIDTH)
    assert np.array_equal(fused.view(np.uint32), ops.numpy(compose_fuse(ops, parts, given)).view(np.uint32))
    alone = [ops.numpy(ops.fuse(ops.fusion(parts), [(taps, [row])])) for taps, rows in given for row in rows]
    assert np.array_equal(fused.view(np.uint32), np.concatenate(alone).view(np.uint32))


# -- logits of some tokens -----------------------------------------------------------------------------------------


PARAMS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 1.3},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 0.8, "top_k": 9},
    {"temperature": 1.0, "top_k": 500},
    {"temperature": 1.0, "min_p": 0.02},
    {"temperature": 1.0, "typical_p": 0.7},
    {"temperature": 1.0, "top_n_sigma": 1.5},
    {"temperature": 0.9, "top_p": 0.8, "repetition_penalty": 1.4},
    {"temperature": 0.9, "presence_penalty": 0.7, "frequency_penalty": 0.2},
    {"temperature": 0.0, "repetition_penalty": 1.7},
    {"temperature": 1.0, "logit_bias": {3: 9.0, 999: 4.0, 5: -50.0, 77: float("-inf")}},
]


@pytest.mark.parametrize("given", PARAMS, ids=str)
@pytest.mark.parametrize("k", [1, 4])
def test_the_best_of_columns_are_those_of_the_wide_row(ops: Ops, given: dict[str, Any], k: int) -> None:
    vocab, columns, rows = 1000, 130, 12
    rng = np.random.default_rng(1)
    logits = (2 * rng.standard_normal((rows, columns))).astype(np.float32)
    logits[:, 1::9] = logits[:, :1]  # ties
    tokens = np.stack([rng.permutation(vocab)[:columns] for _ in range(rows)]).astype(np.int32)
    tokens[::2, -7:] = -1
    wide = np.full((rows, vocab), -np.inf, np.float32)
    for row in range(rows):
        own = tokens[row] >= 0
        wide[row, tokens[row, own]] = logits[row, own]
    batch = SamplingRows()
    for row in range(rows):
        batch.add(SamplingParams(**given), 3, 1, [row], prompt=[3, 5, 999, 8], output=[int(t) for t in tokens[row, :9]])
    built = batch.build()
    found, logprobs, scores = ops.best_of_columns(ops.array(logits), tokens, vocab, built, k)
    expected = ops.sample(ops.array(wide), built, k)
    possible = ops.probs(ops.array(wide), built) > 0
    for row in range(rows):
        wanted = expected[row].tolist()
        if given["temperature"]:
            wanted = [token for token in wanted if possible[row, token]]
        assert [token for token in found[row] if token >= 0] == wanted
        assert all(np.isfinite(logprobs[row][: len(wanted)]))
        assert scores[row] == sorted(scores[row], reverse=True)


def test_a_row_without_a_possible_token_has_no_best_one(ops: Ops) -> None:
    logits = np.zeros((3, 4), np.float32)
    logits[1, 2] = np.nan
    tokens = np.arange(12, dtype=np.int32).reshape(3, 4)
    batch = SamplingRows()
    banned = dict.fromkeys(range(4), float("-inf"))
    for bias in (banned, {}, {}):
        batch.add(SamplingParams(temperature=1.0, logit_bias=bias), 0, 0, [0])
    found, logprobs, scores = ops.best_of_columns(ops.array(logits), tokens, 12, batch.build(), 2)
    assert found[:2] == [[-1, -1], [-1, -1]]
    assert logprobs[0] == scores[1] == [-np.inf, -np.inf]
    assert {*found[2]} <= {8, 9, 10, 11}


def test_log_probabilities_are_of_the_row_before_its_filters(ops: Ops) -> None:
    logits = np.array([[1.0, 3.0, 2.0]], np.float32)
    batch = SamplingRows()
    batch.add(SamplingParams(temperature=0.5, top_k=1), 0, 0, [0])
    tokens, logprobs, _ = ops.best_of_columns(ops.array(logits), np.array([[7, 4, 9]], np.int32), 10, batch.build(), 2)
    assert tokens == [[4, -1]]
    assert np.exp(logprobs[0][0]) == pytest.approx(np.exp(6) / np.exp([2, 6, 4]).sum(), rel=1e-5)
