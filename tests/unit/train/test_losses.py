from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from outpace.train import losses
from outpace.train.batch import Batch, Depth, make_batch
from outpace.train.build import fresh_network
from outpace.train.losses import draft_loss, head_loss, target_probs
from outpace.train.settings import TrainSettings
from outpace.train.target import EngineTarget
from outpace.train.text.corpus import Conversation
from tests.training import tiny_lm


def test_the_loss_of_a_case_that_a_hand_can_compute() -> None:
    """Logits log 1, log 2, log 5 (softmax 1/8, 2/8, 5/8) against 0.5, 0.25, 0.125: 1/8 of the mass is elsewhere."""
    states = torch.tensor([[1.0]])
    head = torch.tensor([[math.log(1)], [math.log(2)], [math.log(5)]])
    probs = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.25, 0.125]])
    loss, choices = head_loss(states, head, probs, torch.tensor([1]))
    expected = 0.5 * math.log(8) + 0.25 * math.log(4) + 0.125 * math.log(8 / 5)
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert choices.tolist() == [2]


def test_the_slope_at_the_logits_is_softmax_times_mass_minus_probs() -> None:
    states = torch.ones(1, 1)
    head = torch.tensor([[math.log(1)], [math.log(2)], [math.log(5)]], requires_grad=True)
    loss, _ = head_loss(states, head, torch.tensor([[0.5, 0.25, 0.125]]), torch.tensor([0]))
    loss.backward()
    assert head.grad is not None
    expected = [1 / 8 * 7 / 8 - 0.5, 2 / 8 * 7 / 8 - 0.25, 5 / 8 * 7 / 8 - 0.125]
    assert head.grad.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_gradients_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_CHUNK", 3)  # several chunks, the last one not full
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(7, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    probs = torch.rand(5, 6, generator=generator, dtype=torch.float64) / 6
    labels = torch.tensor([0, 4, 4, 1, 2, 3, 0])
    assert torch.autograd.gradcheck(lambda x, y: 3 * head_loss(x, y, probs, labels)[0], (states, head))


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "granite", "glm4"])
def test_the_targets_mass_outside_the_head_is_left_out(model_type: str, tmp_path: Path) -> None:
    """Probabilities over all tokens, of some: as the engine has them, caps and scales of the logits included."""
    own = {"gemma3_text": {"final_logit_softcapping": 5.0}, "granite": {"logits_scaling": 3.0}}.get(model_type, {})
    lm = tiny_lm(tmp_path, model_type, ops="reference", kv="f32", sharpness=2.0, **own)
    target = EngineTarget(lm)
    result = lm.generate([5, 9, 100], max_new_tokens=12, strategy="none", ignore_eos=True, logprobs=0)
    (final,) = target.states([np.array([5, 9, 100, *result.tokens], np.int32)], (3,))[3]
    rows = list(dict.fromkeys([*result.tokens, 7, 8]))
    found = target_probs(target, final[2:-1], torch.tensor(rows), torch.float32)
    assert result.logprobs is not None
    for row, chosen in zip(found, result.logprobs, strict=True):
        assert float(row[rows.index(chosen.token)].log()) == pytest.approx(chosen.logprob, abs=1e-3)
    assert (found.sum(1) < 0.999).all()


class _Fixed:
    """A network whose states are given: what `draft_loss` needs of one."""

    decay, num_depths = 0.5, 3

    def __init__(self, states: list[torch.Tensor], head: torch.Tensor) -> None:
        self._states, self.head = states, head

    def states(self, batch: Batch, num_depths: int) -> list[torch.Tensor]:
        return self._states[:num_depths]


def test_a_depth_weighs_decay_to_the_depth_and_one_that_no_text_reaches_is_left_out() -> None:
    generator = torch.Generator().manual_seed(1)
    states = [torch.randn(1, 2, 3, generator=generator) for _ in range(3)]
    head, probs = torch.randn(4, 3, generator=generator), torch.rand(2, 4, generator=generator) / 4
    index = lambda *numbers: torch.tensor(numbers, dtype=torch.int64)  # noqa: E731
    depths = (
        Depth(index(0, 1), index(0, 1), index(7, 8)),
        Depth(index(0), index(1), index(8)),
        Depth(index(), index(), index()),
    )
    batch = Batch(index(0)[None], torch.zeros(1, 1, 3), index(1, 2)[None], depths, torch.zeros(2, 3))
    found = draft_loss(_Fixed(states, head), batch, probs, index(5, 6, 7, 8))  # type: ignore[arg-type]
    one, chosen = head_loss(states[0][0], head, probs, index(0, 1))
    two, _ = head_loss(states[1][0, :1], head, probs, index(1))
    assert float(found.total) == pytest.approx(float(one + 0.5 * two), rel=1e-6)
    assert [float(x) for x in found.by_depth] == pytest.approx([float(one), float(two)])
    right = [int(index(5, 6, 7, 8)[c]) == t for c, t in zip(chosen, (7, 8), strict=True)]
    assert float(found.accuracy[0]) == pytest.approx(sum(right) / 2)


def test_every_parameter_of_a_network_gets_the_gradient_of_finite_differences(
    target: EngineTarget, text: list[Conversation]
) -> None:
    """Along a random direction, through all depths: the unrolled network is differentiated whole."""
    network = fresh_network("eagle", target, text, TrainSettings(steps=1, head_rows=100, num_fixed=50))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for x in network.parameters():
            x += 0.05 * torch.randn(x.shape, generator=generator)
    batch = make_batch(text[:3], target, network.taps, network.num_depths)
    assert batch is not None
    tokens = torch.tensor(network.head_tokens)
    probs = target_probs(target, batch.final, tokens, torch.float32)
    draft_loss(network, batch, probs, tokens).total.backward()  # type: ignore[no-untyped-call]
    for name, x in network.named_parameters():
        assert x.grad is not None, name
        direction = torch.randn(x.shape, generator=generator)
        step = 1e-2 / float(direction.norm())
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                x += sign * step * direction
                ends.append(float(draft_loss(network, batch, probs, tokens).total))
                x -= sign * step * direction
        slope = (ends[0] - ends[1]) / (2 * step)
        scale = float(x.grad.norm()) + 1e-3
        assert slope == pytest.approx(float((x.grad * direction).sum()), abs=0.15 * scale), name


@pytest.mark.parametrize("kind", ["eagle", "medusa", "block"])
def test_computed_in_sixteen_bits_as_on_an_accelerator_it_is_close(
    target: EngineTarget, text: list[Conversation], kind: str
) -> None:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        network = fresh_network(kind, target, text, TrainSettings(steps=1, head_rows=100, num_fixed=50))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for x in network.parameters():
                x += 0.02 * torch.randn(x.shape, generator=generator)
        batch = make_batch(text[:6], target, network.taps, network.num_depths)
        assert batch is not None
        tokens = torch.tensor(network.head_tokens)
        probs = target_probs(target, batch.final, tokens, dtype)
        with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
            total = draft_loss(network, batch, probs, tokens).total
        total.backward()  # type: ignore[no-untyped-call]
        assert {x.dtype for x in network.parameters()} == {torch.float32}
        grads = [x.grad for x in network.parameters()]
        assert all(x is not None and x.dtype == torch.float32 for x in grads)
        found.append((float(total.detach()), torch.cat([x.flatten() for x in grads if x is not None])))
    (exact, slope), (rough, other) = found
    assert rough == pytest.approx(exact, rel=0.02)
    assert rough != exact
    assert float(torch.cosine_similarity(slope, other, dim=0)) > 0.98
