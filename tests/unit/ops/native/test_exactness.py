"""Principle 3 on odd shapes: widths, groups and block sizes that no vector divides, each beside the reference.

A row's bits may depend neither on the batch nor on threads, block placement or the kind of its segment; so the loops
that make kernels quick (whole vectors, shared keys, ranges cut between threads) are met from all sides here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.ops.layers import DecoderLayer
from outpace.ops.protocol import Ops
from outpace.ops.reference import ReferenceOps
from outpace.types import KVFormat, KVSpec, Segment
from tests.tiny import raw_tensor, tiny_model
from tests.unit.ops.native.instruction_sets import NAMES, assert_passes

pytest.importorskip("outpace.ops.native._native")
from outpace.ops.native import NativeOps

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """Heads and a cache."""

    heads: int
    groups: int
    width: int
    kv: KVFormat
    block: int
    window: int | None = None

    def __str__(self) -> str:
        return f"{self.heads}x{self.groups}x{self.width}-{self.kv}-{self.block}-{self.window}"


SHAPES = [
    Shape(2, 2, 2, "f32", 1),
    Shape(9, 3, 64, "bf16", 32),
    Shape(9, 3, 64, "int8", 32, window=133),
    Shape(14, 2, 6, "bf16", 3, window=7),
    Shape(5, 1, 24, "bf16", 17),
    Shape(5, 1, 24, "int8", 17, window=40),
    Shape(4, 4, 80, "f32", 40, window=129),
    Shape(4, 2, 96, "int8", 8),
    Shape(3, 1, 256, "bf16", 16, window=1),
]
PARENTS = [-1, -1, 0, 0, 1, 2, 4, 5, 7, 6]  # two branches that lie across each other


class Bench:
    """One layer's attention: the same queries, keys and values, laid out as a test likes."""

    def __init__(self, shape: Shape, ops: Ops) -> None:
        self.shape, self.ops = shape, ops
        self.spec = KVSpec(1, shape.groups, shape.width, shape.kv, shape.block)
        one = ops.pack(raw_tensor("w", np.ones((32, 32), np.float32)))
        head = ops.vector(raw_tensor("h", np.linspace(0.5, 1.5, shape.width, dtype=np.float32)))
        rope = ops.rope(0.1 ** np.arange(shape.width // 2), 1.0, 1000)
        matrices = dict.fromkeys(("wq", "wk", "wv", "wo", "gate", "up", "down"), one)
        sizes = {"num_heads": shape.heads, "num_kv_heads": shape.groups, "head_width": shape.width}
        layer = DecoderLayer(index=0, rope=rope, eps=1e-5, window=shape.window, q_norm=head, **matrices, **sizes)
        self.layer = ops.layer(layer)

    def run(self, kv: object, pieces: Sequence[tuple[Segment, Sequence[int]]]) -> list[Floats]:
        """Return the attention of each segment's rows; a segment comes with the seeds of its rows' numbers."""
        rows = [seed for _, seeds in pieces for seed in seeds]
        plan = self.ops.plan([segment for segment, _ in pieces], self.shape.block)
        q, k, v = (
            self._numbers(rows, heads, part)
            for part, heads in enumerate((self.shape.heads,) + (self.shape.groups,) * 2)
        )
        turned = self.ops.rope_store(q, k, v, self.layer, kv, plan)
        found = self.ops.numpy(self.ops.attend(turned, self.layer, kv, plan))
        ends = list(itertools.accumulate(len(seeds) for _, seeds in pieces))
        return np.split(found, ends[:-1])

    def _numbers(self, rows: Sequence[int], heads: int, part: int) -> object:
        width = heads * self.shape.width
        return self.ops.array(
            np.stack([np.random.default_rng([row, part]).standard_normal(width, np.float32) for row in rows])
        )

    def blocks(self, tokens: int, first: int = 0) -> list[int]:
        return [first + b for b in range(-(-tokens // self.shape.block))][::-1]

    def storage(self, tokens: int) -> object:
        return self.ops.kv_alloc(self.spec, -(-tokens // self.shape.block))

    def prefill(self, length: int) -> Floats:
        segment = Segment(self.blocks(length), 0, [0] * length)
        return self.run(self.storage(length), [(segment, range(length))])[0]

    def decode(self, length: int, step: int) -> Floats:
        kv = self.storage(length)
        pieces = [range(a, min(a + step, length)) for a in range(0, length, step)]
        return np.concatenate(
            [self.run(kv, [(Segment(self.blocks(length), p[0], [0] * len(p)), p)])[0] for p in pieces]
        )


@pytest.fixture(params=SHAPES, ids=str)
def shape(request: pytest.FixtureRequest) -> Shape:
    return request.param


@pytest.fixture
def bench(shape: Shape) -> Bench:
    return Bench(shape, NativeOps(threads=1))


def bits(x: Floats) -> NDArray[np.uint32]:
    return x.view(np.uint32)


def test_attention_is_near_the_reference(bench: Bench) -> None:
    tolerance = 1e-5 if bench.shape.kv != "bf16" else 0.02  # queries and weights may be rounded to bfloat16 too
    expected = Bench(bench.shape, ReferenceOps()).prefill(300)
    np.testing.assert_allclose(bench.prefill(300), expected, atol=tolerance * np.abs(expected).max(), rtol=tolerance)


@pytest.mark.parametrize("step", [1, 7, 64, 129])
def test_a_prefill_has_the_bits_of_any_decoding(bench: Bench, step: int) -> None:
    assert (bits(bench.decode(300, step)) == bits(bench.prefill(300))).all()


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_ranges_cut_between_threads_have_the_bits_of_one_thread(bench: Bench, threads: int) -> None:
    many = Bench(bench.shape, NativeOps(threads=threads))
    assert (bits(many.prefill(300)) == bits(bench.prefill(300))).all()
    assert (bits(many.decode(300, 149)) == bits(bench.decode(300, 149))).all()  # the last two rows come alone


@pytest.mark.parametrize("committed", [0, 1, 62, 126, 255])
def test_a_path_of_a_tree_has_the_bits_of_a_chain(bench: Bench, committed: int) -> None:
    root = committed + 2
    kv, length = bench.storage(3 * 300), root + len(PARENTS)
    table = bench.blocks(length)
    if committed:
        bench.run(kv, [(Segment(table, 0, [0] * committed), range(committed))])
    segment = Segment(table, committed, [0] * (length - committed), PARENTS)
    tree = bench.run(kv, [(segment, range(committed, length))])[0]
    for node in range(len(PARENTS)):
        path = [node]
        while PARENTS[path[0]] >= 0:
            path.insert(0, PARENTS[path[0]])
        rows = [*range(root), *(root + n for n in path)]
        chain = Segment(bench.blocks(300, first=-(-300 // bench.shape.block)), 0, [0] * len(rows))
        assert (bits(bench.run(kv, [(chain, rows)])[0][-1]) == bits(tree[2 + node])).all(), f"node {node}"


def test_rows_of_a_full_segment_have_their_bits_in_any_batch(bench: Bench) -> None:
    kv = bench.storage(600)
    offset = -(-200 // bench.shape.block)
    context = (Segment(bench.blocks(200), 0, [0] * 150), range(150))
    full = (Segment(bench.blocks(200), 150, [0] * 37, kind="full"), range(150, 187))
    other = (Segment(bench.blocks(200, offset), 0, [0] * 70), range(300, 370))
    bench.run(kv, [context])
    alone = bench.run(kv, [full])[0]
    assert (bits(bench.run(kv, [other, full])[1]) == bits(alone)).all()
    assert np.isfinite(alone).all()


def test_a_whole_network_of_odd_widths_has_the_same_bits_on_any_number_of_threads() -> None:
    sizes = {"hidden_size": 75, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 10, "vocab_size": 1001}
    tokens = np.random.default_rng(0).integers(0, 1001, 200).tolist()
    results = []
    for threads, cuts in ((1, (0, 200)), (2, (0, 1, 2, 9, 200)), (5, (0, 131, 199, 200))):
        model = tiny_model(NativeOps(threads), "qwen3", intermediate_size=133, **sizes)
        kv = model.ops.kv_alloc(model.spec("bf16"), 7)
        parts = [
            model.forward(model.ops.plan([Segment(range(7), a, tokens[a:b], num_scored=b - a)], 32), kv)[0]
            for a, b in itertools.pairwise(cuts)
        ]
        results.append(np.concatenate([model.ops.numpy(part) for part in parts]))
    assert (bits(results[0]) == bits(results[1])).all()
    assert (bits(results[0]) == bits(results[2])).all()


@pytest.mark.parametrize("isa", NAMES)
def test_all_of_this_holds_for_each_instruction_set(isa: str) -> None:
    assert_passes(__file__, isa)
