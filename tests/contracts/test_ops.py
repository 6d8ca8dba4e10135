"""The ops contract, for every implementation: the same bits for a row whatever else is in the call, and right numbers.

Bits are compared within one implementation; between implementations numbers may differ by rounding.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.errors import UsageError, WeightsError
from outpace.models import Transformer
from outpace.ops.compose import compose_decoder_layer
from outpace.ops.formats import dequantise
from outpace.ops.layers import DecoderLayer, QueryGrowth
from outpace.ops.protocol import Ops
from outpace.types import KVFormat, KVSpec, RawTensor, Segment
from tests.implementations import MAKERS
from tests.networks import NETWORKS
from tests.tiny import raw_tensor, tiny_config, tiny_model, tiny_tensors

BLOCK = 32  # slots in a block


@dataclass(frozen=True)
class Case:
    """A network (`tests.networks`), how its matrices are stored, how its keys and values are."""

    network: str
    format: str
    kv: KVFormat

    def __str__(self) -> str:
        return f"{self.network}-{self.format}-{self.kv}"


# Every model type with every kv format, every matrix format twice; odd widths where blocks allow them.
CASES = [
    Case("llama", "F32", "f32"),
    Case("llama", "Q8_0", "bf16"),
    Case("llama", "F16", "int8"),
    Case("mistral", "F32", "bf16"),
    Case("mistral", "BF16", "f32"),
    Case("mistral", "Q8_0", "int8"),
    Case("qwen2", "Q8_0", "f32"),
    Case("qwen2", "BF16", "bf16"),
    Case("qwen2", "F32", "int8"),
    Case("qwen3", "F16", "f32"),
    Case("qwen3", "F32", "bf16"),
    Case("qwen3", "Q8_0", "int8"),
    # Layers that are not plain, once each.
    Case("llama, biases", "F16", "bf16"),
    Case("gemma3_text, soft cap, linear, listed", "Q8_0", "bf16"),
    Case("granite, biases", "BF16", "f32"),
    Case("olmo3, listed, biases", "F32", "int8"),
    Case("glm4", "F16", "f32"),
    Case("phi3, longrope, part turns", "Q8_0", "int8"),
    Case("smollm3, listed, biases", "F32", "bf16"),
    # Experts.
    Case("qwen3_moe", "Q8_0", "bf16"),
    Case("qwen3_moe", "F32", "f32"),
    Case("qwen3_moe, some layers, biases, window", "F16", "int8"),
    Case("mixtral, window, one expert, wide heads", "F16", "bf16"),
    Case("gpt_oss", "BF16", "bf16"),
    Case("gpt_oss", "F32", "f32"),
    Case("gpt_oss, listed, no biases", "Q8_0", "int8"),
]
PLAIN = [case for case in CASES if "," not in case.network and case.network != "glm4"]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32}  # multiples of 32, for blocks


@pytest.fixture(scope="module", params=list(MAKERS))
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ops(implementation: str) -> Ops:
    return MAKERS[implementation](1)


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def lab(ops: Ops, case: Case) -> Lab:
    return Lab(ops, case)


class Lab:
    """A tiny model with a cache, where tests place blocks as they like."""

    def __init__(self, ops: Ops, case: Case, num_blocks: int = 24, **overrides: Any) -> None:
        model_type, own = NETWORKS[case.network]
        sizes = own | (SIZES if case.format == "Q8_0" else {})
        if "num_hidden_layers" in overrides:  # what is listed by layer is cut with them
            cut = overrides["num_hidden_layers"]
            sizes = {key: value[:cut] if isinstance(value, list) else value for key, value in sizes.items()}
        self.ops = ops
        self.model: Transformer = tiny_model(ops, model_type, format=case.format, **(sizes | overrides))
        self.spec: KVSpec = replace(self.model.spec(case.kv), block_size=BLOCK)
        self.kv = ops.kv_alloc(self.spec, num_blocks)

    def run(self, *segments: Segment) -> NDArray[np.float32]:
        """Return the logits of the segments' scored rows."""
        return self.ops.numpy(self.model.forward(self.ops.plan(segments, BLOCK), self.kv)[0])

    def chain(self, blocks: Sequence[int], tokens: Sequence[int], cuts: Sequence[int] = ()) -> NDArray[np.float32]:
        """Return the logits of every token of a text from its beginning on, run in pieces cut at `cuts`."""
        edges = [0, *cuts, len(tokens)]
        return np.concatenate([self.run(part(blocks, tokens, a, b)) for a, b in itertools.pairwise(edges)])


def part(blocks: Sequence[int], tokens: Sequence[int], start: int, end: int) -> Segment:
    """Return the segment that runs tokens[start:end], all of them scored, after the committed ones."""
    return Segment(blocks, start, tokens[start:end], num_scored=end - start)


def text(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 97, length).tolist()


def bits(x: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return the bits of float32 numbers, for comparisons where -0 is not 0 and NaN is NaN."""
    assert x.dtype == np.float32
    return np.ascontiguousarray(x).view(np.uint32)


def same(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return a.shape == b.shape and bool((bits(a) == bits(b)).all())


def test_an_implementation_says_what_it_computes_on(ops: Ops, implementation: str) -> None:
    assert ops.name == implementation
    assert ops.device == "cpu"
    assert ops.threads == 1
    assert isinstance(ops.isa, str)
    assert ops.memory_bytes > 1 << 20
    ops.synchronize()


def test_the_clock_counts_work(ops: Ops) -> None:
    started = ops.clock()
    ops.linear(ops.array(np.ones((64, 256), np.float32)), ops.pack(raw_tensor("w", np.ones((256, 256), np.float32))))
    assert ops.clock() > started


def test_the_bandwidth_probe_reports_each_repeat(ops: Ops) -> None:
    speeds = ops.read_bandwidth(1 << 20, 5)
    assert len(speeds) == 5
    assert all(speed > 0 for speed in speeds)


# -- the same bits whatever else is in the call -------------------------------------------


def test_a_token_alone_has_the_bits_that_it_has_in_a_prefill(lab: Lab) -> None:
    tokens = text(150)
    one_by_one = lab.chain(range(0, 5), tokens, cuts=range(1, 150))
    assert same(one_by_one, lab.chain(range(5, 10), tokens))
    assert len(set(one_by_one.argmax(axis=1).tolist())) > 10, "the model has no opinions: the test could not fail"


@pytest.mark.parametrize("cuts", [(7, 8, 71, 134), (64, 128), (63, 65), (149,), (1, 2, 3)], ids=str)
def test_a_prefill_may_be_cut_anywhere(lab: Lab, cuts: tuple[int, ...]) -> None:
    tokens = text(150)
    assert same(lab.chain(range(0, 5), tokens), lab.chain(range(5, 10), tokens, cuts))


def test_a_row_does_not_depend_on_its_neighbours_in_the_batch_or_their_order(lab: Lab) -> None:
    texts = [text(n, seed) for seed, n in enumerate((70, 1, 33, 8))]
    blocks = [range(0, 3), range(3, 4), range(4, 6), range(6, 7)]
    alone = [lab.chain(b, t) for b, t in zip(blocks, texts, strict=True)]
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 0)):
        rows = lab.run(*(part(blocks[i], texts[i], 0, len(texts[i])) for i in order))
        assert same(rows, np.concatenate([alone[i] for i in order]))


def test_only_the_scored_rows_get_logits_and_the_same_ones(lab: Lab) -> None:
    tokens = text(40)
    everything = lab.chain(range(0, 2), tokens)
    for num_scored in (0, 1, 5):
        rows = lab.run(Segment(range(2, 4), 0, tokens, num_scored=num_scored))
        assert same(rows, everything[len(tokens) - num_scored :])


def test_blocks_may_lie_anywhere(lab: Lab) -> None:
    tokens = text(150)
    assert same(lab.chain(range(0, 5), tokens), lab.chain((23, 7, 19, 6, 11), tokens, cuts=(50,)))


def test_requests_that_share_cached_blocks_have_the_bits_of_those_that_do_not(lab: Lab) -> None:
    prefix, ends = text(64), [text(20, seed) for seed in (1, 2)]
    lab.chain((0, 1), prefix)
    shared = lab.run(*(part((0, 1, 2 + i), prefix + end, 64, 84) for i, end in enumerate(ends)))
    own = [lab.chain(range(5 + 3 * i, 8 + 3 * i), prefix + end)[64:] for i, end in enumerate(ends)]
    assert same(shared, np.concatenate(own))


#          root
#        0      1          the draft of the tree tests, behind `pending` tokens
#      2   3    4
#      5        6
PARENTS = (-1, -1, 0, 0, 1, 2, 4)
DRAFT = (11, 12, 13, 14, 13, 15, 16)


def paths() -> list[list[int]]:
    """Return the nodes from the root down to each node of the draft."""
    found: list[list[int]] = []
    for node, parent in enumerate(PARENTS):
        found.append([*(found[parent] if parent >= 0 else []), node])
    return found


@pytest.mark.parametrize("committed", [0, 3, 61, 120])
def test_a_path_of_a_tree_has_the_bits_of_the_chain(lab: Lab, committed: int) -> None:
    context, pending = text(committed), text(3, seed=1)
    if committed:
        lab.chain(range(0, 5), context)
    rows = lab.run(Segment(range(0, 5), committed, [*pending, *DRAFT], PARENTS, num_scored=8))
    for node, path in enumerate(paths()):
        chain = lab.chain(range(5, 10), [*context, *pending, *(DRAFT[i] for i in path)])
        assert same(rows[1 + node], chain[-1]), f"node {node}"
        assert same(rows[0], chain[-1 - len(path)]), "the last pending token"


def test_a_draft_does_not_touch_its_neighbours_in_the_batch(lab: Lab) -> None:
    tokens, other = text(30), text(45, seed=1)
    alone = lab.chain(range(0, 2), other)
    tree = Segment(range(2, 4), 0, [*tokens, *DRAFT], PARENTS, num_scored=8)
    tree_alone = lab.run(tree)
    rows = lab.run(part(range(4, 6), other, 0, 45), tree)
    assert same(rows, np.concatenate([alone, tree_alone]))


@pytest.mark.parametrize("node", [3, 5, 6])
def test_moving_an_accepted_path_into_place_makes_it_the_past(lab: Lab, node: int) -> None:
    context, after = text(60), text(10, seed=3)
    lab.run(Segment(range(0, 4), 0, [*context, *DRAFT], PARENTS))
    path = paths()[node]
    # Block 0 is physical block 0 here, so logical and physical slots are the same numbers.
    lab.ops.kv_move(lab.kv, [60 + i for i in path], [60 + depth for depth in range(len(path))])
    kept = [*context, *(DRAFT[i] for i in path)]
    rows = lab.run(part(range(0, 4), kept + after, len(kept), len(kept) + 10))
    assert same(rows, lab.chain(range(4, 8), kept + after)[-10:])


def test_slots_are_moved_in_the_order_given(lab: Lab) -> None:
    tokens = text(8)
    lab.chain([0], tokens)
    lab.ops.kv_move(lab.kv, [5, 6, 7], [32, 5, 6])  # 5 is read before 6 overwrites it
    lab.ops.kv_move(lab.kv, [6, 5, 32], [7, 6, 5])  # and back
    assert same(lab.run(part([0], [*tokens, 1], 8, 9)), lab.chain([2], [*tokens, 1])[-1:])


def test_a_full_segment_of_one_token_is_a_tree_of_one(lab: Lab) -> None:
    tokens = text(70)
    lab.chain(range(0, 3), tokens)
    full = lab.run(Segment(range(0, 3), 70, [5], kind="full"))
    assert same(full, lab.run(Segment(range(0, 3), 70, [5])))


def test_the_last_token_of_a_full_segment_sees_what_a_chain_sees(ops: Ops, case: Case) -> None:
    lab = Lab(ops, case, num_hidden_layers=1)  # deeper layers differ: there the earlier tokens saw more
    tokens = text(90)
    lab.chain(range(0, 3), tokens[:70])
    chain = lab.run(part(range(0, 3), tokens, 70, 90))
    full = lab.run(Segment(range(0, 3), 70, tokens[70:], num_scored=20, kind="full"))
    assert same(full[-1], chain[-1])
    assert not same(full[0], chain[0]), "the first token must see the later ones"


def test_a_full_segment_does_not_depend_on_its_neighbours(lab: Lab) -> None:
    tokens, other = text(75), text(20, seed=1)
    full = Segment(range(0, 3), 0, tokens, num_scored=75, kind="full")
    alone = lab.run(full)
    assert same(lab.run(part([3], other, 0, 20), full), np.concatenate([lab.chain([4], other), alone]))


def test_a_chain_and_a_full_segment_behind_it_are_one_pass_or_two(lab: Lab) -> None:
    """What one segment of a sequence writes, another of the same pass sees: text that a canvas stands behind."""
    tokens, block = text(75), text(9, seed=2)
    chain = Segment(range(0, 3), 0, tokens, num_scored=75)
    full = Segment(range(0, 3), 75, block, num_scored=9, kind="full")
    apart = np.concatenate([lab.run(chain), lab.run(full)])
    poison(lab, range(0, 3))
    assert same(lab.run(chain, full), apart)


def test_what_a_slot_held_before_cannot_be_told(lab: Lab) -> None:
    tokens = text(90)
    fresh = lab.chain(range(0, 3), tokens)
    poison(lab, range(4, 8))
    assert same(lab.chain(range(4, 7), tokens, cuts=(13,)), fresh)
    tree = Segment(range(4, 8), 90, [3, *DRAFT], PARENTS, num_scored=8)
    assert np.isfinite(lab.run(tree)).all()


def poison(lab: Lab, blocks: Sequence[int]) -> None:
    """Fill blocks with the worst that their format holds: NaN, or the largest int8 scales."""
    tokens = len(blocks) * BLOCK
    plan = lab.ops.plan([Segment(blocks, 0, [0] * tokens)], BLOCK)
    worst = np.float32(1e18 if lab.spec.format == "int8" else np.nan)
    kv = lab.ops.array(np.full((tokens, lab.spec.num_kv_heads * lab.spec.head_width), worst, np.float32))
    q = lab.ops.array(np.zeros((tokens, lab.model.config.num_heads * lab.spec.head_width), np.float32))
    for layer in lab.model.layers:
        with np.errstate(invalid="ignore"):
            lab.ops.rope_store(q, kv, kv, layer.handle, lab.kv, plan)


def test_blocks_below_the_window_may_be_freed(ops: Ops) -> None:
    lab = Lab(ops, Case("mistral", "F32", "bf16"))
    window = lab.model.max_window
    assert window == 24
    tokens = text(150)
    kept = lab.chain(range(0, 5), tokens)
    table = [5, 6, 7, 8, 9]
    lab.chain(table, tokens[:100])
    table[:2] = [-1, -1]  # positions 0-63; the token at 100 sees 77-100
    poison(lab, [5, 6])
    assert same(lab.run(part(table, tokens, 100, 130)), kept[100:130])
    table[2] = -1  # positions 64-95; the token at 130 sees 107-130
    poison(lab, [7])
    tree = Segment(table, 130, [*tokens[130:133], *DRAFT], PARENTS, num_scored=8)
    assert same(lab.run(tree)[0], kept[132])


def test_a_windowed_token_sees_itself_and_the_window_less_one_before_it(ops: Ops) -> None:
    lab = Lab(ops, Case("mistral", "F32", "f32"), num_hidden_layers=1)
    tokens = text(60)
    rows = lab.chain(range(0, 2), tokens)
    for changed, reached in ((36, True), (35, False)):  # the token at 59 sees 36-59
        others = [*tokens[:changed], (tokens[changed] + 1) % 97, *tokens[changed + 1 :]]
        assert same(lab.chain(range(2, 4), others)[59], rows[59]) is not reached


def test_a_cache_grows_without_losing_what_it_holds(lab: Lab) -> None:
    tokens = text(100)
    expected = lab.chain(range(0, 4), tokens)
    lab.kv = lab.ops.kv_alloc(lab.spec, 2)
    lab.chain((1, 0), tokens[:50])
    for num_blocks in (3, 9):
        lab.ops.kv_grow(lab.kv, num_blocks)
    assert same(lab.run(part((1, 0, 2, 8), tokens, 50, 100)), expected[50:])


def test_threads_change_no_bit(implementation: str, case: Case) -> None:
    tokens = text(130)
    one, three = (Lab(MAKERS[implementation](threads), case) for threads in (1, 3))
    assert same(one.chain(range(5), tokens, cuts=(129,)), three.chain(range(5), tokens, cuts=(129,)))


@pytest.mark.parametrize("plain", PLAIN, ids=str)
def test_a_fused_layer_has_the_bits_of_the_composed_one(ops: Ops, plain: Case) -> None:
    lab = Lab(ops, plain)
    layer = lab.model.layers[0]
    plan = ops.plan([Segment(range(0, 3), 0, [*text(70), *DRAFT], PARENTS), Segment([3], 0, [1])], BLOCK)
    x = ops.embed(lab.model.embedding, plan)
    composed = ops.numpy(compose_decoder_layer(ops, x, layer.parts, layer.handle, lab.kv, plan))
    fused = ops.numpy(ops.decoder_layers(x, [layer.handle], lab.kv, plan))
    assert same(fused, composed)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_layers_in_one_call_have_the_bits_of_one_call_each(ops: Ops, count: int) -> None:
    lab = Lab(ops, PLAIN[0])
    layers = [lab.model.layers[i % len(lab.model.layers)].handle for i in range(count)]
    plan = ops.plan([Segment(range(0, 3), 0, [*text(70), *DRAFT], PARENTS), Segment([3], 0, [1])], BLOCK)
    x = ops.embed(lab.model.embedding, plan)
    together = ops.numpy(ops.decoder_layers(x, layers, lab.kv, plan))
    each = x
    for layer in layers:
        each = ops.decoder_layers(each, [layer], lab.kv, plan)
    assert same(together, ops.numpy(each))


# -- right numbers, by plain formulas in float64 -------------------------------------------------------

# Row by row, activations may be rounded too: to 8 bits for quantised weights, to bfloat16 for bfloat16 ones.
TOLERANCE = {"F32": 1e-5, "F16": 1e-5, "BF16": 0.01, "Q8_0": 0.02}


def close(found: NDArray[Any], expected: NDArray[Any], tolerance: float) -> bool:
    """Whether the largest difference is within the tolerance times the largest number."""
    return bool(np.abs(found - expected).max() <= tolerance * np.abs(expected).max())


@pytest.mark.parametrize("format", list(TOLERANCE))
@pytest.mark.parametrize(("out", "width"), [(1, 32), (7, 96), (130, 64), (64, 1056)])
def test_a_product_is_the_product(ops: Ops, format: str, out: int, width: int) -> None:
    rng = np.random.default_rng(0)
    tensor = raw_tensor("w", rng.standard_normal((out, width), np.float32), format)
    x, bias = rng.standard_normal((5, width), np.float32), rng.standard_normal(out, np.float32)
    found = ops.numpy(ops.linear(ops.array(x), ops.pack(tensor), ops.vector(raw_tensor("b", bias))))
    assert close(found, x.astype(np.float64) @ dequantise(tensor).T + bias, TOLERANCE[format])


@pytest.mark.parametrize("format", list(TOLERANCE))
def test_an_embedding_is_the_row_of_its_token(ops: Ops, format: str) -> None:
    tensor = raw_tensor("w", np.random.default_rng(0).standard_normal((50, 64), np.float32), format)
    plan = ops.plan([Segment([0], 0, [49, 0, 7])], BLOCK)
    assert same(ops.numpy(ops.embed(ops.pack(tensor), plan)), dequantise(tensor)[[49, 0, 7]])


@pytest.mark.parametrize("token", [-1, 50])
def test_a_token_outside_the_vocabulary_is_refused(ops: Ops, token: int) -> None:
    weight = ops.pack(raw_tensor("w", np.zeros((50, 64), np.float32)))
    with pytest.raises(UsageError, match="vocabulary"):
        ops.embed(weight, ops.plan([Segment([0], 0, [1, token])], BLOCK))


def test_an_unknown_format_is_refused_by_name(ops: Ops) -> None:
    tensor = RawTensor("w", np.zeros((2, 20), np.uint8), "IQ9_Z", (2, 32))
    with pytest.raises(WeightsError, match="IQ9_Z"):
        ops.pack(tensor)


def test_an_rms_norm_is_the_formula(ops: Ops) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((6, 75), np.float32), rng.standard_normal(75, np.float32)
    found = ops.numpy(ops.rms_norm(ops.array(x), ops.vector(raw_tensor("w", weight)), 1e-3))
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True) + 1e-3) * weight
    assert close(found, expected, 1e-6)


def test_numbers_are_scaled_and_capped_by_the_formulas(ops: Ops) -> None:
    x = 40 * np.random.default_rng(0).standard_normal((6, 75), np.float32)
    assert same(ops.numpy(ops.scale(ops.array(x), 0.3)), x * np.float32(0.3))
    assert close(ops.numpy(ops.soft_cap(ops.array(x), 30.0)), 30 * np.tanh(x.astype(np.float64) / 30), 1e-6)
    far = ops.numpy(ops.soft_cap(ops.array(np.array([[1e30, -1e30, 0]], np.float32)), 30.0))
    assert far.tolist() == [[30, -30, 0]]


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_a_gate_is_the_formula(ops: Ops, activation: Any) -> None:
    rng = np.random.default_rng(0)
    gate, up = 5 * rng.standard_normal((6, 75), np.float32), rng.standard_normal((6, 75), np.float32)
    gate[0, :3] = 100, -100, 0
    x = gate.astype(np.float64)
    with np.errstate(over="ignore"):
        tanh = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
        expected = {"silu": x / (1 + np.exp(-x)), "gelu_tanh": x * (1 + tanh) / 2}[activation]
    assert close(ops.numpy(ops.gate(ops.array(gate), ops.array(up), activation)), expected * up, 1e-6)


def test_an_activation_of_a_layer_is_that_of_the_gate(ops: Ops) -> None:
    rng = np.random.default_rng(0)
    x, (gate, up, down) = rng.standard_normal((5, 32), np.float32), rng.standard_normal((3, 32, 32), np.float32)
    one = one_layer(ops, KVSpec(2, 1, 16, "f32", BLOCK), 1)
    packed = [ops.pack(raw_tensor("w", matrix)) for matrix in (gate, up, down)]
    layer = replace(one, gate=packed[0], up=packed[1], down=packed[2], activation="gelu_tanh")
    sides = [ops.linear(ops.array(x), matrix) for matrix in packed[:2]]
    composed = ops.linear(ops.gate(*sides, "gelu_tanh"), packed[2])
    assert same(ops.numpy(ops.gated_mlp(ops.array(x), ops.layer(layer))), ops.numpy(composed))


def test_arrays_are_put_one_below_another(ops: Ops) -> None:
    a, b = np.random.default_rng(0).standard_normal((7, 5), np.float32), np.ones((2, 5), np.float32)
    assert same(ops.numpy(ops.stack([ops.array(a), ops.array(b), ops.array(a)])), np.concatenate([a, b, a]))
    with pytest.raises(ValueError, match=r"one below another|must match"):
        ops.stack([ops.array(a), ops.array(np.ones((2, 4), np.float32))])
    with pytest.raises(ValueError, match="at least one array"):
        ops.stack([])


@pytest.mark.parametrize("window", [None, 3])
def test_positions_before_a_layers_first_are_never_read(ops: Ops, window: int | None) -> None:
    """The same numbers as in a sequence that starts there, and not a bit of what lies in the slots before."""
    target = tiny_model(ops)
    rng, tensors = np.random.default_rng(0), tiny_tensors(tiny_config())
    names = {"wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj", "wo": "self_attn.o_proj"}
    names |= {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    norm = ops.vector(tensors["model.norm.weight"])
    layer = DecoderLayer(
        index=0, attn_norm=norm, mlp_norm=norm, num_heads=4, num_kv_heads=2, head_width=12, eps=1e-5,
        rope=ops.rope(np.array(target.config.inv_freq, np.float64), 1.0, 64), window=window, first=2,
        **{ours: ops.pack(tensors[f"model.layers.0.{theirs}.weight"]) for ours, theirs in names.items()},
    )  # fmt: skip
    x = rng.standard_normal((6, 48), np.float32)

    def run(kept: float) -> NDArray[np.float32]:
        kv = ops.kv_alloc(KVSpec(1, 2, 12, "f32", 4), 2)
        full = ops.layer(replace(layer, first=0))
        before = ops.plan([Segment([0, 1], 0, [0, 0], num_scored=0)], 4)
        ops.decoder_layers(ops.array(np.full((2, 48), kept, np.float32)), [full], kv, before)
        return ops.numpy(
            ops.decoder_layers(ops.array(x), [ops.layer(layer)], kv, ops.plan([Segment([0, 1], 2, [0] * 6)], 4))
        )

    found = run(1.0)
    assert same(found, run(np.nan))
    kv = ops.kv_alloc(KVSpec(1, 2, 12, "f32", 4), 2)
    alone = ops.decoder_layers(
        ops.array(x), [ops.layer(replace(layer, first=0))], kv, ops.plan([Segment([0, 1], 0, [0] * 6)], 4)
    )
    assert close(found, ops.numpy(alone), 1e-5)  # rotations are relative


def test_arrays_are_added(ops: Ops) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 5, 17), np.float32)
    assert same(ops.numpy(ops.add(ops.array(a), ops.array(b))), a + b)
    with pytest.raises(ValueError, match=r"cannot be added|broadcast"):
        ops.add(ops.array(a), ops.array(b[:, :16]))


def test_silu_is_x_times_its_sigmoid(ops: Ops) -> None:
    x = np.concatenate([np.linspace(-20, 20, 41, dtype=np.float32), [-200, -0.0, 200]]).reshape(4, 11)
    expected = x.astype(np.float64) / (1 + np.exp(-x.astype(np.float64)))
    found = ops.numpy(ops.silu(ops.array(x.astype(np.float32))))
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-12)
    assert same(ops.numpy(ops.silu(ops.array(x[2:3].astype(np.float32)))), found[2:3])


def test_arrays_stand_side_by_side(ops: Ops) -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal((5, width), np.float32) for width in (7, 1, 16))
    joined = ops.numpy(ops.concat([ops.array(a), ops.array(b), ops.array(c)]))
    assert same(joined, np.concatenate([a, b, c], axis=1))
    assert same(ops.numpy(ops.concat([ops.array(a)])), a)


def test_arrays_of_other_lengths_do_not_stand_side_by_side(ops: Ops) -> None:
    one, two = (ops.array(np.zeros((rows, 3), np.float32)) for rows in (1, 2))
    with pytest.raises(ValueError, match=r"side by side|must match"):
        ops.concat([one, two])
    with pytest.raises(ValueError, match="at least one array"):
        ops.concat([])


def test_arrays_go_there_and_back(ops: Ops) -> None:
    x = np.random.default_rng(0).standard_normal((3, 17), np.float32)
    assert same(ops.numpy(ops.array(x)), x)


def one_layer(ops: Ops, spec: KVSpec, num_heads: int, window: int | None = None, scale: float = 1.0) -> DecoderLayer:
    """Return a layer for `rope_store` and `attend`; its other weights are never used."""
    unused = ops.pack(raw_tensor("w", np.ones((32, 32), np.float32)))
    norm = ops.vector(raw_tensor("n", np.ones(32, np.float32)))
    inv_freq = 100.0 ** (-np.arange(spec.head_width // 2) / (spec.head_width // 2))
    return DecoderLayer(
        index=1,
        attn_norm=norm,
        wq=unused,
        wk=unused,
        wv=unused,
        wo=unused,
        mlp_norm=norm,
        gate=unused,
        up=unused,
        down=unused,
        rope=ops.rope(inv_freq, scale, 4096),
        num_heads=num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_width=spec.head_width,
        eps=1e-5,
        window=window,
    )


def rotated(x: NDArray[np.float64], positions: NDArray[np.int64], scale: float) -> NDArray[np.float64]:
    """Return heads [T, n, K] turned as complex numbers."""
    half = x.shape[-1] // 2
    inv_freq = 100.0 ** (-np.arange(half) / half)
    turn = scale * np.exp(1j * positions[:, None] * inv_freq)[:, None]
    z = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([z.real, z.imag], axis=-1)


@pytest.mark.parametrize(("heads", "groups", "width"), [(4, 4, 16), (9, 3, 64), (6, 1, 24), (2, 2, 128)])
@pytest.mark.parametrize("window", [None, 5, 70])
@pytest.mark.parametrize(("kv", "tolerance"), [("f32", 1e-5), ("bf16", 0.02), ("int8", 0.03)])
def test_attention_is_softmax_of_rotated_products(
    ops: Ops, heads: int, groups: int, width: int, window: int | None, kv: KVFormat, tolerance: float
) -> None:
    rng = np.random.default_rng(0)
    length = 140
    q, k, v = (rng.standard_normal((length, n, width), np.float32) for n in (heads, groups, groups))
    spec = KVSpec(2, groups, width, kv, BLOCK)
    layer, storage = ops.layer(one_layer(ops, spec, heads, window, scale=1.2)), ops.kv_alloc(spec, 5)
    plan = ops.plan([Segment((3, 1, 4, 0, 2), 0, [0] * length)], BLOCK)
    turned = ops.rope_store(*(ops.array(x.reshape(length, -1)) for x in (q, k, v)), layer, storage, plan)
    found = ops.numpy(ops.attend(turned, layer, storage, plan)).reshape(length, heads, width)

    positions = np.arange(length)
    q64, k64 = (rotated(x.astype(np.float64), positions, 1.2) for x in (q, k))
    k64, v64 = (np.repeat(x, heads // groups, axis=1) for x in (k64, v.astype(np.float64)))
    scores = np.einsum("qhk,mhk->hqm", q64, k64) / np.sqrt(width)
    distance = positions[:, None] - positions
    scores[:, (distance < 0) | (distance >= (window or length))] = -np.inf
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    expected = np.einsum("hqm,mhk->qhk", weights / weights.sum(axis=2, keepdims=True), v64)
    assert close(ops.numpy(turned), q64.reshape(length, -1), 1e-6)
    assert close(found, expected, tolerance)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("length", [3, 140])
def test_a_sink_takes_its_part_of_the_softmax_and_gives_nothing(ops: Ops, window: int | None, length: int) -> None:
    rng, spec, heads = np.random.default_rng(0), KVSpec(2, 2, 16, "f32", BLOCK), 6
    q, k, v = (rng.standard_normal((length, n, 16), np.float32) for n in (heads, 2, 2))
    sinks = np.array([0.5, -1, 3, 30, -90, 0], np.float32)
    layer = replace(one_layer(ops, spec, heads, window), sinks=ops.vector(raw_tensor("s", sinks)))
    own, storage = ops.layer(layer), ops.kv_alloc(spec, 5)
    plan = ops.plan([Segment((3, 1, 4, 0, 2), 0, [0] * length)], BLOCK)
    turned = ops.rope_store(*(ops.array(x.reshape(length, -1)) for x in (q, k, v)), own, storage, plan)
    found = ops.numpy(ops.attend(turned, own, storage, plan)).reshape(length, heads, 16)

    positions = np.arange(length)
    q64, k64 = (rotated(x.astype(np.float64), positions, 1.0) for x in (q, k))
    k64, v64 = (np.repeat(x, 3, axis=1) for x in (k64, v.astype(np.float64)))
    scores = np.einsum("qhk,mhk->hqm", q64, k64) / 4
    distance = positions[:, None] - positions
    scores[:, (distance < 0) | (distance >= (window or length))] = -np.inf
    weights = np.exp(scores)
    totals = weights.sum(axis=2, keepdims=True) + np.exp(sinks.astype(np.float64))[:, None, None]
    expected = np.einsum("hqm,mhk->qhk", weights / totals, v64)
    for head in range(heads):  # each by its own size: one of them is nearly all sink
        assert close(found[:, head], expected[:, head], 1e-5)


def test_products_of_queries_and_keys_have_the_layer_s_scale(ops: Ops) -> None:
    """Scaling the queries instead is the same."""
    rng, spec = np.random.default_rng(0), KVSpec(2, 1, 16, "f32", BLOCK)
    q, k, v = (ops.array(rng.standard_normal((20, 16), np.float32)) for _ in range(3))
    plan, results = ops.plan([Segment([0], 0, [0] * 20)], BLOCK), []
    for scale, factor in ((0.5, 1.0), (None, 2.0)):  # 1 / sqrt(16) = 0.5 / 2
        layer, storage = ops.layer(replace(one_layer(ops, spec, 1), scale=scale)), ops.kv_alloc(spec, 1)
        turned = ops.rope_store(ops.scale(q, factor), k, v, layer, storage, plan)
        results.append(ops.numpy(ops.attend(turned, layer, storage, plan)))
    assert same(*results)


@pytest.mark.parametrize("start", [0, 90])
def test_queries_grow_with_their_position_alone_and_in_a_batch(ops: Ops, start: int) -> None:
    rng, spec, heads, length = np.random.default_rng(0), KVSpec(2, 2, 16, "f32", BLOCK), 6, 40
    plain = one_layer(ops, spec, heads)
    growing = replace(plain, query_growth=QueryGrowth(0.3, 25), key_scale=ops.vector(raw_tensor("s", np.full(32, 2.0))))
    q, k, v = (rng.standard_normal((length, n), np.float32) for n in (heads * 16, 32, 32))

    def turned(parts: DecoderLayer, first: int, end: int) -> NDArray[np.float32]:
        segment = Segment((3, 1, 4, 0, 2), start + first, [0] * (end - first))
        arrays = (ops.array(x[first:end]) for x in (q, k, v))
        own, storage = ops.layer(parts), ops.kv_alloc(spec, 5)
        return ops.numpy(ops.rope_store(*arrays, own, storage, ops.plan([segment], BLOCK)))

    whole = turned(growing, 0, length)
    growth = 1 + 0.3 * np.log(1 + (start + np.arange(length)) // 25)
    assert growth.max() > 1.2
    assert close(whole, turned(plain, 0, length).astype(np.float64) * 2 * growth[:, None], 1e-6)
    assert same(whole, np.concatenate([turned(growing, i, i + 1) for i in range(length)]))


def test_a_pair_of_frequency_0_neither_turns_nor_is_scaled(ops: Ops) -> None:
    spec = KVSpec(2, 1, 8, "f32", BLOCK)
    rope = ops.rope(np.array([1.0, 0.0, 0.5, 0.0]), 1.5, 100)
    layer = ops.layer(replace(one_layer(ops, spec, 1), rope=rope))
    x = np.random.default_rng(0).standard_normal((5, 8), np.float32)
    plan = ops.plan([Segment([0], 0, [0] * 5)], BLOCK)
    turned = ops.numpy(ops.rope_store(*[ops.array(x)] * 3, layer, ops.kv_alloc(spec, 1), plan))
    still = [1, 3, 5, 7]
    assert same(turned[:, still], x[:, still])
    assert not same(turned[:, [0, 2, 4, 6]], x[:, [0, 2, 4, 6]])


@pytest.mark.parametrize("start", [0, 1000, 2040, 4000])
def test_rotary_rows_are_those_of_their_positions_wherever_a_sequence_begins(ops: Ops, start: int) -> None:
    """Tables are made in stretches: 2040 begins in one and ends in the next."""
    length, width = 30, 16
    x = np.random.default_rng(0).standard_normal((length, 1, width), np.float32)
    spec = KVSpec(2, 1, width, "f32", BLOCK)
    num_blocks = (start + length) // BLOCK + 1
    layer, storage = ops.layer(one_layer(ops, spec, 1)), ops.kv_alloc(spec, num_blocks)
    plan = ops.plan([Segment(list(range(num_blocks)), start, [0] * length)], BLOCK)
    flat = ops.array(x.reshape(length, -1))
    turned = ops.numpy(ops.rope_store(flat, flat, flat, layer, storage, plan))
    assert close(turned, rotated(x.astype(np.float64), start + np.arange(length), 1.0).reshape(length, -1), 1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_a_rotary_table_takes_memory_for_the_positions_in_use_and_not_for_the_context(name: str) -> None:
    """A process that may have 512 MiB more of addresses makes a table that would take 512 GiB."""
    code = f"""
import resource
import numpy as np
from tests.implementations import MAKERS
ops = MAKERS[{name!r}](1)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20),) * 2)
tables = [ops.rope(np.ones(64), 1.0, (1 << 31) - 1) for _ in range(4)]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def stored(ops: Ops, kv: KVFormat, v: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return values [T, G, K] as the cache gives them back: a token that sees only itself attends to its value."""
    tokens, groups, width = v.shape
    spec = KVSpec(2, groups, width, kv, BLOCK)
    layer, storage = ops.layer(one_layer(ops, spec, groups)), ops.kv_alloc(spec, tokens)
    plan = ops.plan([Segment([i], 0, [0]) for i in range(tokens)], BLOCK)
    x = ops.array(v.reshape(tokens, -1))
    q = ops.rope_store(x, x, x, layer, storage, plan)
    return ops.numpy(ops.attend(q, layer, storage, plan)).reshape(v.shape)


def test_float32_values_are_stored_as_they_are(ops: Ops) -> None:
    v = np.random.default_rng(0).standard_normal((5, 2, 64), np.float32)
    assert same(stored(ops, "f32", v), v)


def test_bfloat16_values_are_rounded_to_nearest_even(ops: Ops) -> None:
    v = np.random.default_rng(0).standard_normal((5, 2, 64), np.float32)
    one = np.float32(1).view(np.uint32)
    ties = np.array([one + 0x8000, one + 0x18000, one + 0x7FFF, one + 0x8001], np.uint32).view(np.float32)
    v[0, 0, :4] = ties  # a step of bfloat16 is 0x10000
    found = stored(ops, "bf16", v)
    assert bits(found[0, 0, :4]).tolist() == [one, one + 0x20000, one, one + 0x10000]
    assert (bits(found) & 0xFFFF == 0).all()
    assert (np.abs(found - v) <= np.abs(v) * 2.0**-8).all()


@pytest.mark.parametrize(("width", "group"), [(64, 32), (32, 32), (48, 48), (16, 16)])
def test_int8_values_have_a_scale_per_token_head_and_group(ops: Ops, width: int, group: int) -> None:
    v = np.random.default_rng(0).standard_normal((5, 2, width), np.float32)
    v[1, 1] = 0  # no scale to divide by
    v[2, 0, :group] = np.arange(group) * 2.5  # a group of its own size, with ties: see the last assertion
    v[2, 0, group - 1] = 127 * 5
    groups = v.reshape(5, 2, -1, group)
    scale = np.abs(groups).max(axis=3, keepdims=True) / np.float32(127)
    expected = np.rint(groups / np.where(scale == 0, 1, scale)) * scale
    found = stored(ops, "int8", v).reshape(groups.shape)
    assert close(found, expected, 1e-6)
    assert (found[1, 1] == 0).all()
    assert found[2, 0, 0, [1, 2, 3]].tolist() == [0, 5, 10]  # 2.5 / 5 = 0.5 and 7.5 / 5 = 1.5 go to the even number
