from __future__ import annotations

import pytest
import torch

from outpace import LanguageModel
from outpace.models.checkpoint import open_checkpoint
from outpace.train.networks.transformer import Dequantised, TransformerNetwork
from tests.adapting import blocks_of, conversation, learner_of, settings_of, shaken

TOKENS = torch.tensor([[5, 9, 30, 2, 77, 41, 3, 3]])


@pytest.fixture(scope="module")
def plain(lm: LanguageModel) -> torch.Tensor:
    network = TransformerNetwork.of(lm.config, Dequantised(open_checkpoint(lm.path).tensors))
    return network(TOKENS)[network.last_tap].detach()


@pytest.mark.parametrize("weights", ["lora", "full"])
@pytest.mark.parametrize("kind", ["diffusion", "jacobi"])
def test_the_original_stays_what_it_was_and_the_network_moves(
    lm: LanguageModel, plain: torch.Tensor, kind: str, weights: str
) -> None:
    learner = learner_of(lm, settings_of(kind, weights=weights), 96 if weights == "full" else None)
    assert torch.allclose(learner.clean(TOKENS).states, plain, atol=1e-4)
    shaken(learner)
    assert torch.allclose(learner.original(TOKENS).states, plain, atol=1e-4)
    assert not torch.allclose(learner.clean(TOKENS).states, plain, atol=0.1)


def test_the_originals_rows_are_its_own_too(lm: LanguageModel) -> None:
    learner = learner_of(lm, settings_of())
    blocks = blocks_of([conversation(3, 16)])
    before = learner.original_rows(blocks, blocks.inputs, learner.original(blocks.tokens))
    shaken(learner)
    after = learner.original_rows(blocks, blocks.inputs, learner.original(blocks.tokens))
    assert torch.equal(before, after)


def test_a_masked_slot_has_an_embedding_of_its_own_or_of_a_token(lm: LanguageModel) -> None:
    tokens, is_masked = torch.tensor([[7, 8]]), torch.tensor([[False, True]])
    apart = shaken(learner_of(lm, settings_of()))
    assert apart.mask is not None
    row = apart.network.model.embed_tokens.weight[7]
    assert torch.equal(apart.embedded(tokens, is_masked)[0], torch.stack([row, apart.mask]))
    full = learner_of(lm, settings_of(weights="full"), mask_token=96)
    assert torch.equal(full.embedded(tokens, is_masked)[0], full.network.model.embed_tokens.weight[[7, 96]])
    assert learner_of(lm, settings_of("jacobi")).mask is None


def test_a_state_goes_into_another_learner(lm: LanguageModel) -> None:
    settings = settings_of()
    one, other = shaken(learner_of(lm, settings)), learner_of(lm, settings)
    other.load({name: own.clone() for name, own in one.state().items()})
    assert torch.equal(one.clean(TOKENS).states, other.clean(TOKENS).states)


def test_the_passes_of_an_accelerator_are_near_those_of_float32(lm: LanguageModel) -> None:
    """Frozen matrices in bfloat16, what learns in float32, products by autocast: the path of a GPU, on the CPU."""
    settings = settings_of()
    blocks = blocks_of([conversation(3, 16), conversation(5, 21)])
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        learner = shaken(learner_of(lm, settings, dtype=dtype), spread=0.01)
        embedded = learner.embedded(blocks.inputs, blocks.is_row)
        states = learner.rows(blocks, embedded, learner.original(blocks.tokens), is_causal=False)
        states.square().mean().backward()
        assert all(own.grad is not None and own.dtype == torch.float32 for own in learner.parameters.values())
        found.append(states.detach()[blocks.is_row])
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 0.05
