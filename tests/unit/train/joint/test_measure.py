from __future__ import annotations

import math

import pytest
import torch

from outpace import LanguageModel
from outpace.errors import UsageError
from outpace.train.joint.measure import divergence
from outpace.train.joint.target import TrainableTarget
from outpace.train.text.corpus import Conversation
from tests.unit.train.joint.conftest import tuned_of


def test_a_target_that_has_learned_nothing_is_the_original(lm: LanguageModel, held_out: list[Conversation]) -> None:
    own = tuned_of(lm)
    found = divergence(own.tuned_network, own.adapter, held_out)
    assert (found.top1, found.kl) == (1.0, 0.0)
    assert found.perplexity == found.original_perplexity


def test_the_figures_are_those_of_a_plain_loop_over_positions(lm: LanguageModel, held_out: list[Conversation]) -> None:
    own = tuned_of(lm)
    with torch.no_grad():
        for x in own.adapter.tensors().values():
            x.add_(torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    original, network = TrainableTarget(lm, torch.device("cpu")).network, own.tuned_network
    kls, surprises, same = [], [], []
    for text in held_out[:3]:
        tokens = torch.from_numpy(text.tokens.astype("int64"))[None]
        with torch.no_grad():
            p, q = (net.logits(net(tokens)[net.last_tap])[0].double().log_softmax(-1) for net in (original, network))
        for i in range(text.num_prompt - 1, len(text.tokens) - 1):
            kls.append(float((p[i].exp() * (p[i] - q[i])).sum()))
            surprises.append(-float(q[i, text.tokens[i + 1]]))
            same.append(int(p[i].argmax()) == int(q[i].argmax()))
    found = divergence(network, own.adapter, held_out[:3])
    assert found.positions == len(kls)
    assert found.kl == pytest.approx(sum(kls) / len(kls), rel=1e-3)
    assert found.kl > 0.01
    assert found.top1 == sum(same) / len(same) < 1
    assert found.perplexity == pytest.approx(math.exp(sum(surprises) / len(surprises)), rel=1e-4)


def test_without_a_response_there_is_nothing_to_compare(lm: LanguageModel, held_out: list[Conversation]) -> None:
    own = tuned_of(lm)
    with pytest.raises(UsageError, match="held-out text"):
        divergence(own.tuned_network, own.adapter, [])
