from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from outpace.drafters.refine.rules import ByConfidence
from outpace.engine.decode import Decoder
from outpace.errors import WeightsError
from outpace.models.adapter import build
from outpace.ops.protocol import Ops
from outpace.runner import ScheduledSequence
from tests.adapters import SCALE, adapter_on, checkpoint, shapes_of, values
from tests.decoding import decode, request, sequence_of, tiny_runner
from tests.implementations import MAKERS
from tests.refining import Dense, by_threshold, refine, refiner
from tests.tiny import tiny_config

PROMPT = [5, 6, 7, 8, 9]


@pytest.fixture(params=MAKERS)
def ops(request: Any) -> Ops:
    return MAKERS[request.param](2)


def dense_with(tensors: dict[str, Any]) -> Dense:
    """The dense network with the same adapter."""
    network = Dense()
    for name in shapes_of(network.config):
        if f"{name}.lora_a" not in tensors:
            continue
        a, b = tensors[f"{name}.lora_a"].astype(np.float64), tensors[f"{name}.lora_b"].astype(np.float64)
        network.changes[name] = lambda x, a=a, b=b: SCALE * (x @ a.T @ b.T)
    if "mask_embedding" in tensors:
        network.mask_embedding = tensors["mask_embedding"].astype(np.float64)
    return network


@pytest.mark.parametrize("has_embedding", [True, False])
def test_an_adapter_is_on_in_the_block_and_off_in_the_text_before(ops: Ops, has_embedding: bool) -> None:
    tensors = values(shapes_of(tiny_config()))
    if has_embedding:
        tensors["mask_embedding"] = np.random.default_rng(1).standard_normal(48, np.float32)
    runner = tiny_runner(ops=ops)
    runner.adapter = build(checkpoint(tensors), runner.model)
    text, passes = by_threshold(dense_with(tensors), PROMPT, 24, 4, 0.5)
    (g,) = refine(runner, [PROMPT], refiner(4, ByConfidence(threshold=0.5)), max_new_tokens=24)
    assert (g.output.tokens, g.stats.passes) == (text, passes)
    (plain,) = refine(tiny_runner(ops=ops), [PROMPT], refiner(4), max_new_tokens=24)
    assert plain.output.tokens != text


def test_an_adapter_may_change_some_matrices_only(ops: Ops) -> None:
    wanted = {
        name: shape for name, shape in shapes_of(tiny_config()).items() if "layers.1" in name and "o_proj" in name
    }
    tensors = values(wanted)
    runner = tiny_runner(ops=ops)
    runner.adapter = build(checkpoint(tensors), runner.model)
    text, _ = by_threshold(dense_with(tensors), PROMPT, 12, 4, 0.5)
    (g,) = refine(runner, [PROMPT], refiner(4, ByConfidence(threshold=0.5)), max_new_tokens=12)
    assert g.output.tokens == text


@pytest.mark.parametrize("quantised", [False, True])
def test_rows_without_the_adapter_are_the_networks_own_bit_for_bit(ops: Ops, quantised: bool) -> None:
    """Two requests in one pass: one refines with the adapter, and nothing of the other's logits changes."""
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16} if quantised else {}
    config = tiny_config(**sizes)
    runner = tiny_runner(ops=ops, format="Q8_0" if quantised else "F32", **sizes)
    runner.adapter = adapter_on(runner, config)

    def logits(with_canvas: bool) -> Any:
        table = runner.cache.open((), b"a")
        parts = [ScheduledSequence(table, request(PROMPT), PROMPT, 5)]
        if with_canvas:
            other = ScheduledSequence(runner.cache.open((), b"b"), request([3, 4]), [3, 4], 2)
            lay = refiner(4)
            other.canvas = lay.lay(sequence_of(request([3, 4]), runner), 8, 64)
            parts.append(other)
        found = runner.ops.numpy(runner.forward(parts).logits)[0]
        for part in parts:
            part.table.close()
        return found.view(np.uint32)

    assert (logits(False) == logits(True)).all()


def test_finished_blocks_leave_the_keys_and_values_of_plain_decoding(ops: Ops) -> None:
    """What a refined text leaves in the cache serves plain decoding: same text with the prefix and without."""
    runner = tiny_runner(ops=ops)
    runner.adapter = adapter_on(runner, tiny_config())
    (g,) = refine(runner, [PROMPT], refiner(4), max_new_tokens=90)
    prompt = g.tokens[:80]
    (found,) = decode(runner, [prompt], max_new_tokens=30)
    (expected,) = decode(tiny_runner(ops=ops), [prompt], max_new_tokens=30)
    assert found.stats.cached_tokens == 64
    assert found.output.tokens == expected.output.tokens


def test_an_adapter_that_is_always_on_makes_another_model(ops: Ops) -> None:
    tensors = values(shapes_of(tiny_config()))
    runner = tiny_runner(ops=ops)
    runner.adapter = build(checkpoint(tensors, kind="jacobi"), runner.model)
    (g,) = decode(runner, [PROMPT], max_new_tokens=12)
    network, text = dense_with(tensors), list(PROMPT)
    for _ in range(12):
        sees = np.tril(np.ones((len(text),) * 2, np.bool_))
        text.append(int(network.logits(text, range(len(text)), sees, np.ones(len(text), np.bool_))[-1].argmax()))
    assert g.output.tokens == text[5:]


def test_neighbours_do_not_change_a_text_with_an_adapter(ops: Ops) -> None:
    prompts = [PROMPT, [3] * 40, [1, 2]]
    config = tiny_config()

    def texts(batch: list[list[int]], **options: Any) -> list[list[int]]:
        runner = tiny_runner(ops=ops)
        runner.adapter = adapter_on(runner, config)
        return [g.output.tokens for g in refine(runner, batch, refiner(4), max_new_tokens=20, **options)]

    assert texts(prompts, decoder={"token_budget": 5}) == [texts([prompt])[0] for prompt in prompts]


def test_plain_requests_are_untouched_by_an_adapter_in_the_same_passes(ops: Ops) -> None:
    (expected,) = decode(tiny_runner(ops=ops), [PROMPT], max_new_tokens=30)
    runner = tiny_runner(ops=ops)
    runner.adapter = adapter_on(runner, tiny_config())
    loop = Decoder(runner)
    plain = sequence_of(request(PROMPT, max_new_tokens=30), runner)
    loop.add([plain])
    loop.add([sequence_of(request([7] * 30, max_new_tokens=30), runner, refiner=refiner(4))])
    for _ in loop.run():
        pass
    assert plain.output.tokens == expected.output.tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.0.mlp.up_proj.lora_b"), "has one of lora_a and lora_b only"),
        (lambda t: t.update({"model.layers.7.mlp.up_proj.lora_b": np.zeros((2, 2), np.float32)}), "changes nothing"),
        (lambda t: t.update({"mask_embedding": np.zeros(7, np.float32)}), r"must have shape \(48,\), has \(7,\)"),
        (
            lambda t: t.update({"model.layers.0.mlp.up_proj.lora_b": np.zeros((80, 3), np.float32)}),
            r"must have lora_a \(4, 48\) and lora_b \(80, 4\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change: Any, message: str) -> None:
    tensors = values(shapes_of(tiny_config()))
    change(tensors)
    with pytest.raises(WeightsError, match=message):
        build(checkpoint(tensors), tiny_runner().model)


def test_a_layer_with_experts_has_no_mlp_to_change() -> None:
    runner = tiny_runner("qwen3_moe")
    tensors = values({"model.layers.0.mlp.up_proj": (80, 48)})
    with pytest.raises(WeightsError, match=r"mlp\.up_proj\.lora_a' changes nothing that this network has"):
        build(checkpoint(tensors), runner.model)
    build(checkpoint(values({"model.layers.0.self_attn.o_proj": (48, 64)})), runner.model)
