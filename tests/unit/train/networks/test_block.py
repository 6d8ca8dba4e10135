"""The training network is the network that runs: `models/block.py` on the ops, from the file that training wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import outpace
from outpace.drafters.block import BlockDrafter
from outpace.train.batch import make_batch
from outpace.train.build import fresh_network
from outpace.train.export import export, read_network
from outpace.train.networks.network import DraftNetwork
from outpace.train.settings import TrainSettings
from outpace.train.target import EngineTarget
from outpace.train.text.corpus import Conversation
from outpace.types import Segment
from tests.training import tiny_lm, written_by


def random_network(target: EngineTarget, text: list[Conversation]) -> DraftNetwork:
    network = fresh_network("block", target, text, TrainSettings(steps=1, head_rows=200, num_fixed=150))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for x in network.parameters():
            x += torch.randn(x.shape, generator=generator) * (0.1 if x.ndim == 1 else x.shape[1] ** -0.5)
    return network


@pytest.mark.parametrize("ops_name", ["reference", "native"])
def test_states_and_guesses_are_those_of_the_ops_network(ops_name: str, tmp_path: Path) -> None:
    lm = tiny_lm(tmp_path, ops=ops_name, kv="f32", spread=1.0)
    target, (text,) = EngineTarget(lm), written_by(lm, 1, 30)
    export(random_network(target, [text]), target.identity, tmp_path / "d.gguf", "Q8_0")
    network = read_network(tmp_path / "d.gguf", "block", target)
    drafter = outpace.load(lm.path, ops=lm.runner.ops, kv="f32", drafter=tmp_path / "d.gguf").loaded.trained
    assert isinstance(drafter, BlockDrafter)
    model, ops, size = drafter.network, lm.runner.ops, 16
    depths = model.config.num_masks
    batch = make_batch([text], target, network.taps, depths)
    assert batch is not None
    with torch.no_grad():
        states = torch.stack(network.states(batch, depths), dim=2)[0]  # [A, masks, D]
        found = (states @ network.head[: network.num_fixed].T).numpy()
    taps = {tap: x[0].numpy() for tap, x in target.states([text.tokens], network.taps).items()}
    allowed = 1e-4 if ops_name == "reference" else 0.03
    for at, anchor in enumerate(batch.anchors[0].tolist()):
        blocks = list(range(-(-(anchor + 1 + depths) // size)))
        kv = ops.kv_alloc(model.spec("f32", size), len(blocks))
        context = ops.plan([Segment(blocks, 0, text.tokens[:anchor].tolist())], size)
        before = [ops.array(np.ascontiguousarray(taps[tap][:anchor])) for tap in network.taps]
        model.store(context, before, anchor, kv)
        own = ops.plan([Segment(blocks, anchor, [int(text.tokens[anchor])])], size)
        masks = Segment(blocks, anchor, [int(text.tokens[anchor])] + [0] * depths, kind="full")
        rows = [ops.array(np.ascontiguousarray(taps[tap][anchor - 1 : anchor])) for tap in network.taps]
        filled = model.fill(own, ops.plan([masks], size), [depths], rows, kv)
        expected = ops.numpy(ops.linear(model.normed(filled), model.head.fixed))
        assert np.linalg.norm(found[at] - expected) <= allowed * np.linalg.norm(expected)
        assert (found[at].argmax(1) == expected.argmax(1)).mean() >= (1.0 if ops_name == "reference" else 0.7)


def test_an_anchor_sees_its_own_past_alone(target: EngineTarget, text: list[Conversation]) -> None:
    network = random_network(target, text)
    own = text[0]
    other = Conversation(own.tokens.copy(), own.num_prompt, False, "x")
    cut = own.num_prompt + 12
    other.tokens[cut:] = other.tokens[cut:][::-1]
    with torch.no_grad():
        found = []
        for conversation in (own, other):
            batch = make_batch([conversation], target, network.taps, 7)
            assert batch is not None
            found.append(network.states(batch, 7))
    same = cut - own.num_prompt  # anchors before the first changed token
    for x, y in zip(*found, strict=True):
        assert torch.allclose(x[0, :same], y[0, :same], atol=1e-5)
        assert not torch.allclose(x[0, same], y[0, same], atol=1e-3)


def test_it_learns_from_a_sixth_of_the_positions(target: EngineTarget, text: list[Conversation]) -> None:
    network = random_network(target, text)
    rng = np.random.default_rng(0)
    batch = make_batch(text[:6], target, network.taps, network.num_depths, rng, network.share)
    assert batch is not None
    assert len(batch.depths[0].rows) == pytest.approx(batch.num_learned / 6, rel=0.25)
