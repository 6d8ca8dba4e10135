"""What comes from Python is checked before a kernel sees it: every mistake is an error that says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from outpace.errors import UsageError
from outpace.ops.layers import DecoderLayer, Experts, FusionParts, GuessLayer, HeadPart
from outpace.ops.sampling import Ragged, SamplingBatch, SamplingRows
from outpace.types import NUMERIC_PARAMS, KVSpec, SamplingParams, Segment
from tests.tiny import raw_tensor

pytest.importorskip("outpace.ops.native._native")
from outpace.ops.native import NativeOps

BLOCK = 4
SPEC = KVSpec(num_layers=2, num_kv_heads=2, head_width=8, format="f32", block_size=BLOCK)


@pytest.fixture(scope="module")
def ops() -> NativeOps:
    return NativeOps(threads=2)


def zeros(*shape: int) -> Any:
    return raw_tensor("w", np.zeros(shape, np.float32))


def decoder_layer(ops: NativeOps, **changes: Any) -> DecoderLayer:
    """Return a layer 32 wide with 4 heads, 2 of keys and values, and a feed-forward of 48."""
    square, narrow = ops.pack(zeros(32, 32)), ops.pack(zeros(16, 32))
    norm = ops.vector(zeros(32))
    layer = DecoderLayer(
        index=0,
        attn_norm=norm,
        wq=square,
        wk=narrow,
        wv=narrow,
        wo=square,
        mlp_norm=norm,
        gate=ops.pack(zeros(48, 32)),
        up=ops.pack(zeros(48, 32)),
        down=ops.pack(zeros(32, 48)),
        rope=ops.rope(np.ones(4), 1.0, 64),
        num_heads=4,
        num_kv_heads=2,
        head_width=8,
        eps=1e-5,
    )
    return replace(layer, **changes)


def segment(**changes: Any) -> Segment:
    return replace(Segment(blocks=[0, 1], start=3, tokens=[1, 2, 3], parents=[-1], num_scored=1), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": [], "parents": []}, "no tokens"),
        ({"start": -1}, "start"),
        ({"start": 6}, "does not cover 9 tokens"),
        ({"start": 2**31}, "start"),
        ({"start": "x"}, "integer"),
        ({"blocks": [0]}, "does not cover 6 tokens"),
        ({"blocks": [-2, 1]}, "block"),
        ({"blocks": [0, -1]}, "freed"),
        ({"blocks": [0, 2**40]}, "block"),
        ({"parents": [0]}, "parent 0 of draft node 0"),
        ({"parents": [-1, 1]}, "parent 1 of draft node 1"),
        ({"parents": [-2]}, "parent"),
        ({"parents": [-1, 0, 1, 2]}, "4 parents"),
        ({"num_scored": 4}, "num_scored"),
        ({"num_scored": -1}, "num_scored"),
        ({"kind": "full"}, "full segment has no draft"),
        ({"kind": "forest"}, "kind"),
        ({"tokens": [1, 2.5, 3]}, "integer"),
        ({"stored": [-1]}, "no pending tokens"),
        ({"stored": [0], "parents": [-1, -1, -1]}, "parent 0 of draft node 0"),
        ({"stored": [-1], "parents": [-1, 0, 3]}, "parent 3 of draft node 3"),
        ({"stored": [-1] * 3, "parents": [-1] * 3}, "does not cover 9 tokens"),
    ],
    ids=str,
)
def test_a_segment_that_cannot_be_run_is_refused(ops: NativeOps, changes: dict[str, Any], message: str) -> None:
    ops.plan([segment()], BLOCK)
    with pytest.raises(UsageError, match=message):
        ops.plan([segment(**changes)], BLOCK)


@pytest.mark.parametrize("block_size", [0, -1, 2**21])
def test_a_block_size_out_of_range_is_refused(ops: NativeOps, block_size: int) -> None:
    with pytest.raises(UsageError, match="block_size"):
        ops.plan([], block_size)


Call = Callable[[NativeOps, Any, Any, Any], object]  # of ops, x [3, 32], a layer's handle, the KV storage


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ops, x, layer, kv: ops.decoder_layers(x, [layer], kv, ops.plan([segment()], 8)), "block size"),
        (
            lambda ops, x, layer, kv: ops.decoder_layers(x, [layer], kv, ops.plan([segment(blocks=[0, 9])], 4)),
            "block 9",
        ),
        (lambda ops, x, layer, kv: ops.decoder_layers(x, [layer], kv, ops.plan([], 4)), r"x must be \[0, 32\]"),
        (lambda ops, x, layer, kv: ops.decoder_layers(x, [], kv, ops.plan([segment()], 4)), "at least one layer"),
        (lambda ops, x, layer, kv: ops.attend(x, layer, kv, ops.plan([segment(blocks=[-1, 1], start=4)], 4)), "freed"),
        (
            lambda ops, x, layer, kv: ops.attend(x, layer, kv, ops.plan([segment(blocks=[0] * 17, start=62)], 4)),
            r"position 6\d is outside the rotary table",
        ),
        (
            lambda ops, x, layer, kv: ops.attend(
                ops.add(x, x), layer, ops.kv_alloc(replace(SPEC, head_width=4), 4), plan(ops)
            ),
            "heads",
        ),
        (lambda ops, x, layer, kv: ops.attend(x, layer, ops.kv_alloc(replace(SPEC, num_layers=1), 4), plan(ops)), None),
        (lambda ops, x, layer, kv: ops.attend(array(ops, 3, 31), layer, kv, plan(ops)), r"q must be \[3, 32\]"),
        (lambda ops, x, layer, kv: ops.rope_store(x, x, x, layer, kv, plan(ops)), r"k must be \[3, 16\]"),
        (lambda ops, x, layer, kv: ops.gated_mlp(array(ops, 3, 16), layer), "wide"),
        (lambda ops, x, layer, kv: ops.linear(x, ops.pack(zeros(5, 31))), "does not fit"),
        (lambda ops, x, layer, kv: ops.linear(x, ops.pack(zeros(5, 32)), ops.vector(zeros(4))), "bias"),
        (lambda ops, x, layer, kv: ops.rms_norm(x, ops.vector(zeros(31)), 1e-5), "does not fit"),
        (lambda ops, x, layer, kv: ops.add(x, array(ops, 3, 31)), "cannot be added"),
        (
            lambda ops, x, layer, kv: ops.logits(x, ops.vector(zeros(31)), 1e-5, ops.pack(zeros(9, 32)), plan(ops)),
            "norm",
        ),
        (lambda ops, x, layer, kv: ops.kv_move(kv, [0, 1], [2]), "2 sources"),
        (lambda ops, x, layer, kv: ops.kv_move(kv, [16], [2]), "source slot"),
        (lambda ops, x, layer, kv: ops.kv_move(kv, [0], [-1]), "target slot"),
        (lambda ops, x, layer, kv: ops.kv_grow(kv, 3), "never shrinks"),
        (lambda ops, x, layer, kv: ops.kv_alloc(replace(SPEC, head_width=7), 1), "even"),
        (lambda ops, x, layer, kv: ops.kv_alloc(replace(SPEC, num_layers=0), 1), "sizes"),
        (lambda ops, x, layer, kv: ops.kv_alloc(SPEC, -1), "number of blocks"),
        (lambda ops, x, layer, kv: ops.rope(np.ones(4), 1.0, 0), "context"),
        (lambda ops, x, layer, kv: ops.rope(np.ones(0), 1.0, 8), "frequency"),
        (lambda ops, x, layer, kv: ops.array(np.zeros(3, np.float32)), "two dimensions"),
        (lambda ops, x, layer, kv: ops.array(np.zeros((3, 3))), "float32"),  # type: ignore[arg-type]
        (lambda ops, x, layer, kv: ops.read_bandwidth(1, 1), "num_bytes"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(ops: NativeOps, call: Call, message: str | None) -> None:
    x, layer, kv = array(ops, 3, 32), ops.layer(decoder_layer(ops)), ops.kv_alloc(SPEC, 4)
    if message is None:
        call(ops, x, layer, kv)
        return
    with pytest.raises(UsageError, match=message):
        call(ops, x, layer, kv)


def array(ops: NativeOps, *shape: int) -> Any:
    return ops.array(np.zeros(shape, np.float32))


def plan(ops: NativeOps) -> Any:
    return ops.plan([segment()], BLOCK)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("wk", (32, 32), "wk"),
        ("wv", (16, 31), "wv"),
        ("wo", (31, 32), "wo"),
        ("gate", (48, 31), "gate"),
        ("up", (47, 32), "up"),
        ("down", (32, 47), "down"),
        ("attn_norm", (31,), "norms"),
        ("bq", (31,), "biases"),
        ("bk", (32,), "biases"),
    ],
)
def test_weights_of_a_layer_that_do_not_fit_are_refused_when_it_runs(
    ops: NativeOps, name: str, shape: tuple[int, ...], message: str
) -> None:
    wrong = ops.pack(zeros(*shape)) if len(shape) == 2 else ops.vector(zeros(*shape))
    layer = ops.layer(decoder_layer(ops, **{name: wrong}))
    with pytest.raises(UsageError, match=message):
        ops.decoder_layers(array(ops, 3, 32), [layer], ops.kv_alloc(SPEC, 4), plan(ops))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, "multiple"),
        ({"num_heads": 0}, "multiple"),
        ({"head_width": 7}, "even"),
        ({"window": 0}, "window"),
        ({"index": -1}, "index"),
        ({"eps": None}, "eps"),
        ({"wq": None}, "wq is missing"),
        ({"wq": "a string"}, "wq is not a handle"),
        ({"bq": 3}, "bq is not a handle"),
    ],
)
def test_a_layer_whose_heads_or_handles_are_wrong_is_refused(
    ops: NativeOps, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        ops.layer(decoder_layer(ops, **changes))


def test_a_layer_past_those_of_the_storage_is_refused(ops: NativeOps) -> None:
    layer = ops.layer(decoder_layer(ops, index=2))
    with pytest.raises(UsageError, match="layers of the KV storage"):
        ops.attend(array(ops, 3, 32), layer, ops.kv_alloc(SPEC, 4), plan(ops))


def batch(**changes: Any) -> SamplingBatch:
    """Return a batch of two rows over nine tokens that has every array."""
    rows = SamplingRows()
    params = SamplingParams(temperature=1.0, presence_penalty=1.0, logit_bias={3: 1.0})
    rows.add(params, 1, 0, [5, 6], prompt=[1], output=[2], masks=[np.full(1, 2**32 - 1, np.uint32)] * 2)
    return replace(rows.build(), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_rows": 1}, r"params must be a contiguous array of float64 \[1, "),
        ({"num_rows": -1}, "num_rows"),
        ({"params": np.zeros((2, 3))}, "params"),
        ({"params": np.zeros((2, len(NUMERIC_PARAMS)), np.float32)}, "params must be .* float64"),
        ({"params": np.zeros((4, len(NUMERIC_PARAMS)))[::2]}, "params"),
        ({"params": [[0.0]]}, "params"),
        ({"seeds": np.zeros(2, np.int64)}, "seeds must be .* uint64"),
        ({"seeds": None}, "seeds"),
        ({"sample_indices": np.zeros(3, np.uint32)}, "sample_indices"),
        ({"positions": np.zeros((2, 1), np.uint32)}, "positions"),
        ({"positions": np.zeros(4, np.uint32)[::2]}, "positions"),
        ({"streams": np.zeros(2)}, "streams"),
        ({"masks": np.zeros((2, 1), np.int32)}, "masks"),
        ({"masks": np.zeros((2, 2), np.uint32)}, r"masks must be uint32 \[2, 1\], got uint32 \[2, 2\]"),
        ({"masks": np.zeros(2, np.uint32)}, "masks"),
        ({"has_mask": None}, "has_mask"),
        ({"has_mask": np.ones(2, np.uint8)}, "has_mask must be .* bool"),
        ({"prompts": Ragged(np.zeros(2, np.int64), np.zeros((2, 2), np.int64))}, "prompts must be .* int32"),
        ({"prompts": Ragged(np.zeros(2, np.int32), np.zeros((2, 2), np.int32))}, "prompts must be .* int64"),
        ({"prompts": Ragged(np.zeros(2, np.int32), np.zeros(4, np.int64))}, "prompts"),
        ({"prompts": Ragged(np.zeros(2, np.int32), np.array([[0, 1], [0, 3]]))}, "prompts have bounds outside"),
        ({"outputs": Ragged(np.zeros(2, np.int32), np.array([[0, 1], [2, 1]]))}, "outputs have bounds outside"),
        ({"outputs": Ragged(np.zeros(2, np.int32), np.array([[-1, 1], [0, 1]]))}, "outputs have bounds outside"),
        ({"outputs": None}, "outputs"),
        ({"bias_tokens": Ragged(np.zeros(2, np.int32), np.array([[0, 2], [0, 1]]))}, "equally long"),
        ({"biases": Ragged(np.zeros(2), np.array([[0, 1], [0, 1]]))}, "biases must be .* float32"),
        ({"biases": None}, "biases"),
    ],
)
def test_a_sampling_batch_whose_arrays_do_not_fit_is_refused(
    ops: NativeOps, changes: dict[str, Any], message: str
) -> None:
    assert ops.sample(array(ops, 2, 9), batch()).shape == (2, 1)
    for call in (ops.sample, ops.probs):
        with pytest.raises(UsageError, match=message):
            call(array(ops, 2, 9), batch(**changes))


def guess_layer(ops: NativeOps, **changes: Any) -> GuessLayer:
    """Return a guess layer 32 wide over embeddings of 64 numbers, with a head of 5 rows."""
    wide, keys = ops.pack(zeros(32, 96)), ops.pack(zeros(16, 96))
    own = decoder_layer(ops, wq=wide, wk=keys, wv=keys, attn_norm=ops.vector(zeros(64)))
    norm = ops.vector(zeros(32))
    head = HeadPart(ops.pack(zeros(5, 32)), (0, 1, 2, 3, 4))
    return replace(GuessLayer(own, ops.pack(zeros(9, 64)), norm, norm, head), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda ops: {"layer": decoder_layer(ops)}, "wq must be"),
        (lambda ops: {"embedding": ops.pack(zeros(9, 32))}, "wq must be"),
        (lambda ops: {"feature_norm": ops.vector(zeros(64))}, "norms must have the layer's width"),
        (lambda ops: {"head_norm": ops.vector(zeros(64))}, "norms must have the layer's width"),
        (lambda ops: {"bo": ops.vector(zeros(64))}, "bo must be"),
        (lambda ops: {"head": HeadPart(ops.pack(zeros(5, 64)), (0, 1, 2, 3, 4))}, "head must be as wide"),
        (lambda ops: {"head": HeadPart(ops.pack(zeros(5, 32)), (0, 1, 2, 3, 9))}, "rows in the embedding"),
        (lambda ops: {"head": HeadPart(ops.pack(zeros(5, 32)), (0, 1, 2, 3))}, "token for each of the 5 rows, got 4"),
        (lambda ops: {"head": HeadPart(ops.pack(zeros(2, 32)), (0, -1))}, "a token must be in"),
    ],
)
def test_a_guess_layer_that_does_not_fit_together_is_refused(ops: NativeOps, changes: Any, message: str) -> None:
    ops.guesser(guess_layer(ops))
    with pytest.raises(UsageError, match=message):
        ops.guesser(guess_layer(ops, **changes(ops)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": (3, 31)}, r"features must be \[2, 32\], got \[3, 31\]"),
        ({"further": []}, "for each segment"),
        ({"further": (5, 64, 0)}, "further rows must be"),
        ({"further": (5, 32, 9)}, "further rows must be"),
        ({"batch": 2}, "scored rows"),
        ({"k": 6}, "number of tokens"),
        ({"k": 0}, "number of tokens"),
        ({"tokens": [1, 9]}, "token id 9 is outside the embedding"),
        ({"blocks": [5]}, "names block 5"),
    ],
)
def test_a_guess_whose_parts_do_not_fit_is_refused(ops: NativeOps, changes: dict[str, Any], message: str) -> None:
    def call(features: Any = (2, 32), further: Any = None, batch: int = 1, k: int = 5, **own: Any) -> None:
        rows: list[Any] = [None]
        if further is not None:
            rows = list(further)
        if rows and further:
            count, width, first = further
            part = HeadPart(ops.pack(zeros(count, width)), tuple(range(first, first + count)))
            rows = [ops.head_rows(part)]
        given = ops.plan([Segment(own.get("blocks", [1]), 1, own.get("tokens", [1, 2]))], BLOCK)
        guesser, kv = ops.guesser(guess_layer(ops)), ops.kv_alloc(SPEC, 4)
        ops.guess(array(ops, *features), guesser, kv, given, rows, SamplingBatch.greedy(batch), k)

    call()
    with pytest.raises(UsageError, match=message):
        call(**changes)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (np.zeros((2, 3), np.int32), "columns must be int32 of the logits' shape"),
        (np.full((1, 3), 9, np.int32), "token must be in"),
        (np.array([[1, -1, 2]], np.int32), "-1 behind the last"),
        (np.array([[1, -2, -1]], np.int32), "token must be in"),
    ],
)
def test_columns_that_are_no_tokens_are_refused(ops: NativeOps, columns: Any, message: str) -> None:
    ops.best_of_columns(array(ops, 1, 3), np.array([[3, 1, -1]], np.int32), 9, SamplingBatch.greedy(1), 2)
    with pytest.raises(UsageError, match=message):
        ops.best_of_columns(array(ops, 1, 3), columns, 9, SamplingBatch.greedy(1), 2)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "at least one row"),
        ([((2, 32), [0])], "as wide together as fc"),
        ([((2, 16), [2])], "a row must be in"),
    ],
)
def test_hidden_states_that_do_not_fit_are_refused(ops: NativeOps, parts: Any, message: str) -> None:
    fusion = ops.fusion(FusionParts(ops.pack(zeros(16, 32)), 1e-5, True, (ops.vector(zeros(16)),) * 2))
    ops.fuse(fusion, [([array(ops, 2, 16)] * 2, [1])])
    with pytest.raises(UsageError, match=message):
        ops.fuse(fusion, [([array(ops, *shape)] * 2, rows) for shape, rows in parts])


def test_handles_of_other_things_are_refused(ops: NativeOps) -> None:
    with pytest.raises(TypeError):
        ops.linear(np.zeros((1, 32), np.float32), ops.pack(zeros(4, 32)))
    with pytest.raises(TypeError):
        ops.embed(ops.vector(zeros(4)), plan(ops))


def experts(ops: NativeOps, **changes: Any) -> Experts:
    """Return three experts 32 wide with a feed-forward of 48, two for each row."""
    inner, outer = ops.pack(zeros(48, 32)), ops.pack(zeros(32, 48))
    made = Experts(
        router=ops.pack(zeros(3, 32)),
        gate=(inner,) * 3,
        up=(inner,) * 3,
        down=(outer,) * 3,
        num_chosen=2,
        is_normalised=True,
    )
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda ops: {"gate": ()}, "gate must have a matrix for each row of router"),
        (lambda ops: {"gate": (ops.pack(zeros(48, 32)),) * 2}, "gate must have a matrix for each row of router"),
        (lambda ops: {"gate": (*(ops.pack(zeros(48, 32)),) * 2, ops.pack(zeros(40, 32)))}, "gate must be"),
        (lambda ops: {"up": (ops.pack(zeros(48, 16)),) * 3}, "up must have the shape of gate"),
        (lambda ops: {"down": (ops.pack(zeros(48, 32)),) * 3}, "down must be"),
        (lambda ops: {"down": (ops.pack(zeros(32, 48)), None, None)}, "down must hold handles of the native ops"),
        (lambda ops: {"down": (np.zeros((32, 48)),) * 3}, "down must hold handles of the native ops"),
        (lambda ops: {"router": None}, "router is missing"),
        (lambda ops: {"router_bias": ops.vector(zeros(4))}, "router_bias must have a number for each row"),
        (lambda ops: {"gate_bias": (ops.vector(zeros(48)),) * 2}, "biases must be as long"),
        (lambda ops: {"down_bias": (ops.vector(zeros(48)),) * 3}, "biases must be as long"),
        (lambda ops: {"num_chosen": 0}, "num_chosen must be in"),
        (lambda ops: {"num_chosen": 4}, "num_chosen must be in"),
    ],
)
def test_experts_that_do_not_fit_together_are_refused(
    ops: NativeOps, changes: Callable[[NativeOps], dict[str, Any]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        ops.layer(decoder_layer(ops, gate=None, up=None, down=None, experts=experts(ops, **changes(ops))))


def test_a_layer_runs_what_it_has(ops: NativeOps) -> None:
    dense, x = ops.layer(decoder_layer(ops)), ops.array(np.zeros((2, 32), np.float32))
    sparse = ops.layer(decoder_layer(ops, gate=None, up=None, down=None, experts=experts(ops)))
    with pytest.raises(UsageError, match="gate is missing"):
        ops.gated_mlp(x, sparse)
    with pytest.raises(UsageError, match="experts is missing"):
        ops.experts(x, dense)
    with pytest.raises(UsageError, match="x must be as wide as the layer, 32"):
        ops.experts(ops.array(np.zeros((2, 16), np.float32)), sparse)
    with pytest.raises(UsageError, match="gate is missing"):
        ops.layer(decoder_layer(ops, gate=None))
    with pytest.raises(UsageError, match=r"sinks must be \[num_heads\]"):
        ops.layer(decoder_layer(ops, sinks=ops.vector(zeros(2))))
    assert ops.numpy(ops.experts(ops.array(np.zeros((0, 32), np.float32)), sparse)).shape == (0, 32)
