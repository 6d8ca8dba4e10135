from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from outpace import models
from outpace.errors import UsageError
from outpace.models.select import select
from outpace.ops.reference import ReferenceOps
from outpace.train.networks.transformer import Dequantised, Memory, TransformerNetwork, is_supported
from outpace.types import Segment
from tests.networks import NETWORKS
from tests.tiny import built, tiny_config, tiny_tensors, tiny_values

TOKENS = np.random.default_rng(0).integers(1, 97, (3, 60))  # theirs trains no embedding of 0, the padding
KINDS = ("llama", "mistral", "qwen2", "qwen3", "phi3")


def sizes(config: dict[str, Any]) -> models.ModelConfig:
    return models.sizes(models.normalise(config, "tiny"))


def network(config: dict[str, Any], **options: Any) -> TransformerNetwork:
    checked = models.normalise(config, "tiny")
    tensors = Dequantised(select(tiny_tensors(config, spread=1.0), checked, "folder", "tiny"))
    context = {"context": config["context"]} if "context" in config else {}
    return TransformerNetwork.of(models.sizes(checked | context), tensors, **options)


def supported() -> list[str]:
    return [name for name, (kind, own) in NETWORKS.items() if is_supported(sizes(tiny_config(kind, **own)))]


def test_every_kind_that_the_trainer_knows_is_supported() -> None:
    assert {NETWORKS[name][0] for name in supported()} == set(KINDS)


@pytest.mark.parametrize("name", supported())
def test_states_and_logits_are_those_of_the_reference_ops(name: str) -> None:
    model_type, overrides = NETWORKS[name]
    config = tiny_config(model_type, **overrides)
    ops = ReferenceOps()
    model, ours = built(ops, config, spread=1.0), network(config)
    taps = range(model.config.num_layers + 2)
    states = ours(torch.from_numpy(TOKENS), taps=taps)
    assert list(states) == list(taps)
    logits = ours.logits(states[ours.last_tap]).detach().numpy()
    for row, tokens in enumerate(TOKENS.tolist()):
        plan = ops.plan([Segment((0, 1), 0, tokens, num_scored=len(tokens))], 32)
        expected, hidden = model.forward(plan, ops.kv_alloc(model.spec("f32"), 2), taps)
        assert np.abs(ops.numpy(expected) - logits[row]).max() < 1e-4
        for tap in taps:
            assert np.abs(ops.numpy(hidden[tap]) - states[tap][row].detach().numpy()).max() < 1e-4, tap


@pytest.mark.parametrize("model_type", KINDS)
def test_logits_and_gradients_are_those_of_transformers(model_type: str) -> None:
    """Its own modules with the same numbers; the parameters' names are the same, phi3's fused ones aside."""
    config = tiny_config(model_type)
    options = {key: value for key, value in config.items() if key != "model_type"} | {"pad_token_id": 0}
    own = transformers.AutoConfig.for_model(model_type, **options)
    theirs = transformers.AutoModelForCausalLM.from_config(own, dtype=torch.float32, attn_implementation="eager")
    theirs.load_state_dict({name: torch.from_numpy(x) for name, x in tiny_values(config, spread=1.0).items()})
    ours, tokens = network(config), torch.from_numpy(TOKENS)
    expected = theirs.eval()(tokens).logits
    found = ours.logits(ours(tokens)[ours.last_tap])
    assert (found - expected).abs().max() < 1e-4
    for logits in (found, expected):
        torch.log_softmax(logits, dim=-1)[..., 5].mean().backward()
    gradients = {name: x.grad for name, x in theirs.named_parameters()}
    same = [name for name, _ in ours.named_parameters() if name in gradients]
    assert len(same) == len(gradients) - (4 if model_type == "phi3" else 0)
    for name in same:
        gradient = ours.get_parameter(name).grad
        assert gradient is not None
        assert gradients[name] is not None
        assert torch.allclose(gradient, gradients[name], atol=1e-6, rtol=1e-3), name


def test_names_are_those_of_a_folder() -> None:
    for tied in (False, True):
        config = tiny_config(tie_word_embeddings=tied)
        assert network(config).state_dict().keys() == tiny_values(config).keys()


def test_a_mask_says_who_sees_whom() -> None:
    ours, tokens = network(tiny_config()), torch.from_numpy(TOKENS[:2])
    causal = torch.ones(60, 60, dtype=torch.bool).tril()
    expected = ours(tokens)[3]
    assert torch.allclose(ours(tokens, mask=causal)[3], expected, atol=1e-5)
    assert torch.allclose(ours(tokens, mask=causal.expand(2, 1, 60, 60))[3], expected, atol=1e-5)
    opened = ours(tokens, mask=causal | torch.ones(60, 60, dtype=torch.bool).tril(3))[3]
    assert not torch.allclose(opened[:, 10], expected[:, 10], atol=1e-2)
    changed = tokens.clone()
    changed[:, 14] = (changed[:, 14] + 1) % 97
    hidden = causal.clone()
    hidden[20:, 14] = False  # two layers: 20 and later may hear of it through 15 to 19 alone
    hidden[15:20, 14] = False
    first, second = (ours(x, mask=hidden)[3] for x in (tokens, changed))
    assert torch.equal(first[:, 15:], second[:, 15:])
    assert not torch.equal(first[:, 14], second[:, 14])


def test_a_window_holds_under_a_mask_too() -> None:
    ours, tokens = network(tiny_config("mistral")), torch.from_numpy(TOKENS[:2])
    assert ours.config.windows == (24, 24)
    causal = torch.ones(60, 60, dtype=torch.bool).tril()
    assert torch.allclose(ours(tokens, mask=causal)[3], ours(tokens)[3], atol=1e-5)


def test_positions_of_their_own_turn_each_row() -> None:
    """Rotary attention sees distances alone: a shift changes nothing, a stretch does."""
    ours, tokens = network(tiny_config("mistral")), torch.from_numpy(TOKENS[:2])
    expected, steps = ours(tokens)[3], torch.arange(60)
    assert torch.allclose(ours(tokens, torch.stack([steps, steps + 7]))[3], expected, atol=1e-4)
    assert torch.allclose(ours(tokens, steps + 100)[3], expected, atol=1e-4)
    assert not torch.allclose(ours(tokens, 2 * steps)[3], expected, atol=1e-2)


@pytest.mark.parametrize("model_type", ["mistral", "qwen3"])
def test_a_memory_gives_what_one_pass_gives(model_type: str) -> None:
    """Three rows of 30, 26 and 22 tokens, padded, then token by token; mistral's window is shorter than the text."""
    ours, tokens = network(tiny_config(model_type)), torch.from_numpy(TOKENS)
    starts, memory, places = torch.tensor([30, 26, 22]), Memory(), torch.arange(30)
    positions = torch.where(places < starts[:, None], places, Memory.NOBODY)
    with torch.no_grad():
        expected = ours(tokens)[3]
        ours(tokens[:, :30], positions, memory=memory)
        for i in range(20):
            at = starts + i
            found = ours(tokens.gather(1, at[:, None]), at[:, None], memory=memory)[3][:, 0]
            assert torch.allclose(found, expected[torch.arange(3), at], atol=1e-5)


def test_checkpointed_layers_give_the_same_gradients() -> None:
    plain, thrifty = network(tiny_config("qwen3")), network(tiny_config("qwen3"), is_checkpointed=True)
    for ours in (plain, thrifty):
        ours(torch.from_numpy(TOKENS))[3].square().mean().backward()
    for (name, x), (_, y) in zip(plain.named_parameters(), thrifty.named_parameters(), strict=True):
        if name != "lm_head.weight":
            assert x.grad is not None
            assert y.grad is not None
            assert torch.allclose(x.grad, y.grad, atol=1e-6), name


def test_layers_may_multiply_in_bfloat16_while_the_residual_stays_float32() -> None:
    exact = network(tiny_config())
    trained, frozen = network(tiny_config(), compute=torch.bfloat16), network(tiny_config(), dtype=torch.bfloat16)
    assert trained.model.layers[0].mlp.up_proj.weight.dtype == torch.float32
    assert frozen.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    expected = exact(torch.from_numpy(TOKENS))[3]
    for rough in (trained, frozen):
        found = rough(torch.from_numpy(TOKENS))[3]
        assert found.dtype == torch.float32
        assert not torch.equal(found, expected)
        assert torch.cosine_similarity(found, expected, dim=-1).min() > 0.999
        assert rough.logits(found).dtype == torch.bfloat16
    trained(torch.from_numpy(TOKENS))[3].square().mean().backward()
    gradient = trained.get_parameter("model.layers.0.mlp.up_proj.weight").grad
    assert gradient is not None
    assert gradient.dtype == torch.float32


def test_a_copy_shares_nothing_with_the_network_that_it_comes_from() -> None:
    ours = network(tiny_config())
    copy = TransformerNetwork.of(ours.config, ours.state_dict())
    with torch.no_grad():
        copy.model.norm.weight.zero_()
    assert ours.model.norm.weight.abs().min() > 0.1


def test_other_networks_and_other_tensors_are_refused() -> None:
    with pytest.raises(UsageError, match="a granite network cannot run in PyTorch yet"):
        TransformerNetwork(sizes(tiny_config("granite")))
    state = network(tiny_config()).state_dict()
    less = {name: x for name, x in state.items() if name != "model.norm.weight"}
    with pytest.raises(UsageError, match=r"has other tensors: 'model.norm.weight' differs"):
        TransformerNetwork.of(sizes(tiny_config()), less)
    with pytest.raises(UsageError, match=r"model.norm.weight must be \[48\], is \[4\]"):
        TransformerNetwork.of(sizes(tiny_config()), state | {"model.norm.weight": torch.ones(4)})
