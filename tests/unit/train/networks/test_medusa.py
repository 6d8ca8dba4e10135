"""The training network is the network that runs: `models/medusa.py` on the ops, from the file that training wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import outpace
from outpace.drafters.medusa import MedusaDrafter
from outpace.errors import UsageError
from outpace.train.batch import make_batch
from outpace.train.build import build_network, fresh_network
from outpace.train.export import export, read_network
from outpace.train.networks.medusa import MedusaNetwork
from outpace.train.settings import TrainSettings
from outpace.train.target import EngineTarget
from outpace.train.text.corpus import Conversation
from outpace.weights.trained import Entries
from tests.training import tiny_lm, written_by


def random_network(target: EngineTarget, text: list[Conversation]) -> MedusaNetwork:
    network = fresh_network("medusa", target, text, TrainSettings(steps=1, head_rows=200, num_fixed=150))
    assert isinstance(network, MedusaNetwork)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for x in network.parameters():
            x += torch.randn(x.shape, generator=generator) * 0.1
    return network


@pytest.mark.parametrize("ops_name", ["reference", "native"])
def test_states_and_guesses_are_those_of_the_ops_network(ops_name: str, tmp_path: Path) -> None:
    lm = tiny_lm(tmp_path, ops=ops_name, kv="f32", spread=1.0)
    target, (text,) = EngineTarget(lm), written_by(lm, 1, 30)
    export(random_network(target, [text]), target.identity, tmp_path / "d.gguf", "Q8_0")
    network = read_network(tmp_path / "d.gguf", "medusa", target)
    drafter = outpace.load(lm.path, ops=lm.runner.ops, kv="f32", drafter=tmp_path / "d.gguf").loaded.trained
    assert isinstance(drafter, MedusaDrafter)
    ops, last = lm.runner.ops, lm.config.num_layers + 1
    batch = make_batch([text], target, network.taps, 4)
    assert batch is not None
    hidden = target.states([text.tokens], (last,))[last][0][text.num_prompt - 1 : -2]
    logits = drafter.network.logits(drafter.network.states(ops.array(hidden.numpy()), 4))
    with torch.no_grad():
        for expected, x in zip(map(ops.numpy, logits), network.states(batch, 4), strict=True):
            found = (x[0] @ network.head[: network.num_fixed].T).numpy()
            allowed = 1e-4 if ops_name == "reference" else 0.03
            assert np.linalg.norm(found - expected) <= allowed * np.linalg.norm(expected)
            same = (found.argmax(1) == expected.argmax(1)).mean()
            assert same == 1.0 if ops_name == "reference" else same > 0.9


def test_untrained_heads_repeat_the_targets_own_guess(target: EngineTarget, text: list[Conversation]) -> None:
    network = fresh_network("medusa", target, text, TrainSettings(steps=1))
    batch = make_batch(text[:3], target, network.taps, 4)
    assert batch is not None
    last = target.config.num_layers + 1
    for i, own in enumerate(text[:3]):
        final = target.states([own.tokens], (last,))[last][0][own.num_prompt - 1 : -2]
        for x in network.states(batch, 4):
            assert torch.allclose(x[i, : len(final)], final, atol=1e-4)


def test_accuracies_are_counted_on_text_and_never_rise_with_the_rank(
    target: EngineTarget, text: list[Conversation]
) -> None:
    network = random_network(target, text)
    network.calibrate(target, text[:20])
    assert network.accuracies.shape == (4, 10)
    assert (np.diff(network.accuracies, axis=1) <= 0).all()
    assert 0 < network.accuracies.sum(axis=1).max() <= 1
    one = text[0]
    network.calibrate(target, [one])
    batch = make_batch([one], target, network.taps, 4)
    assert batch is not None
    head = network.head[: network.num_fixed]
    with torch.no_grad():
        first = (network.states(batch, 4)[2][0] @ head.T).argmax(1)
    unseen = set(network.head_tokens[network.num_fixed :]) & set(one.tokens.tolist())
    if not unseen:  # the fixed rows are all that it looks at
        guesses = np.array(network.head_tokens)[first.numpy()][:-2]
        truth = one.tokens[one.num_prompt + 3 :]
        assert network.accuracies[2, 0] == pytest.approx((guesses == truth).mean())


def test_heads_with_rows_of_their_own_are_not_continued(target: EngineTarget, text: list[Conversation]) -> None:
    network = fresh_network("medusa", target, text, TrainSettings(steps=1))
    entries = Entries(network.numbers() | {"unembedding": "shared"}, "a.gguf")
    with pytest.raises(UsageError, match=r"a\.gguf: has an output matrix of its own"):
        build_network("medusa", entries, network.state_dict(), target)
