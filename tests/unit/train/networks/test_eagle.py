"""The training network is the network that runs: `models/eagle.py` on the ops, from the file that training wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import outpace
from outpace import LanguageModel
from outpace.drafters.eagle import EagleDrafter
from outpace.errors import UsageError
from outpace.models.eagle import Eagle
from outpace.ops.sampling import SamplingBatch
from outpace.train.batch import make_batch
from outpace.train.build import build_network, fresh_network
from outpace.train.export import export, read_network
from outpace.train.networks.network import DraftNetwork
from outpace.train.settings import TrainSettings
from outpace.train.target import EngineTarget
from outpace.train.text.corpus import Conversation
from outpace.types import Segment
from outpace.weights.trained import Entries
from tests.eagle import head_logits
from tests.training import tiny_lm, written_by

DEPTHS = 4


@pytest.fixture(scope="module", params=["reference llama", "native llama", "reference glm4", "reference gemma3_text"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageModel, Path]:
    """A target, and the file of a drafter with random weights everywhere."""
    ops_name, model_type = request.param.split()
    folder = tmp_path_factory.mktemp(model_type)
    lm = tiny_lm(folder, model_type, ops=ops_name, kv="f32", spread=1.0)
    target = EngineTarget(lm)
    network = fresh_network("eagle", target, written_by(lm, 4), TrainSettings(steps=1, head_rows=200, num_fixed=150))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for x in network.parameters():
            x += torch.randn(x.shape, generator=generator) * (0.1 if x.ndim == 1 else x.shape[1] ** -0.5)
    export(network, target.identity, folder / "eagle.gguf", "Q8_0")
    return lm, folder / "eagle.gguf"


def ops_logits(
    lm: LanguageModel, network: Eagle, tokens: NDArray[np.int32], taps: dict[int, NDArray[np.float32]], anchor: int
) -> list[NDArray[np.float32]]:
    """Return the logits of the head's fixed rows at each depth behind an anchor, by the ops network."""
    ops, size = lm.runner.ops, 16
    blocks = list(range(-(-len(tokens) // size)))
    kv = ops.kv_alloc(network.spec("f32", size), len(blocks))
    hidden = [ops.array(np.ascontiguousarray(taps[tap])) for tap in network.config.taps]
    features, start, found = network.fuse([(hidden, range(anchor))]), 1, []
    for end in range(anchor + 1, anchor + 1 + DEPTHS):
        plan = ops.plan([Segment(blocks, start, tokens[start:end].tolist())], size)
        guesses = network.guess(features, kv, plan, [None], SamplingBatch.greedy(1), 1)
        found.append(head_logits(network, guesses)[0])
        features, start = guesses.states, end
    return found


def test_states_and_guesses_are_those_of_the_ops_network(made: tuple[LanguageModel, Path]) -> None:
    """With features from the engine's own pass, at every depth. Native ops round activations to 8 bits: 3 % there."""
    plain, path = made
    lm = outpace.load(plain.path, ops=plain.runner.ops, kv="f32", drafter=path)
    drafter = lm.loaded.trained
    assert isinstance(drafter, EagleDrafter)
    target = EngineTarget(lm)
    network = read_network(path, "eagle", target)
    (text,) = written_by(lm, 1, 30)
    batch = make_batch([text], target, network.taps, DEPTHS)
    assert batch is not None
    with torch.no_grad():
        states = network.states(batch, DEPTHS)
        logits = [(x[0] @ network.head[: network.num_fixed].T).numpy() for x in states]
    taps = {tap: x[0].numpy() for tap, x in target.states([text.tokens], network.taps).items()}
    allowed = 1e-4 if plain.runner.ops.name == "reference" else 0.03
    same = []
    for at, anchor in enumerate(batch.anchors[0, :-DEPTHS].tolist()):
        for expected, found in zip(ops_logits(lm, drafter.network, text.tokens, taps, anchor), logits, strict=True):
            assert np.linalg.norm(found[at] - expected) <= allowed * np.linalg.norm(expected)
            same.append(int(found[at].argmax()) == int(expected.argmax()))
    assert np.mean(same) == 1.0 if plain.runner.ops.name == "reference" else np.mean(same) > 0.9


def test_a_guess_looks_at_nothing_that_comes_behind_it(target: EngineTarget, text: list[Conversation]) -> None:
    network: DraftNetwork = fresh_network("eagle", target, text, TrainSettings(steps=1))
    with torch.no_grad():
        for x in network.parameters():
            x += 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(x.numel()))
    own = text[0]
    other = Conversation(own.tokens.copy(), own.num_prompt, False, "x")
    cut = own.num_prompt + 12
    other.tokens[cut:] = other.tokens[cut:][::-1]
    with torch.no_grad():
        found = []
        for conversation in (own, other):
            batch = make_batch([conversation], target, network.taps, 3)
            assert batch is not None
            found.append(network.states(batch, 3))
    for depth, (x, y) in enumerate(zip(*found, strict=True)):
        same = cut - own.num_prompt - depth  # the guess at depth + 1 after anchor i has been fed token i + depth
        assert torch.allclose(x[0, :same], y[0, :same], atol=1e-5)
        assert not torch.allclose(x[0, same : same + 1], y[0, same : same + 1], atol=1e-3)


def test_a_network_of_another_form_is_not_continued(target: EngineTarget, text: list[Conversation]) -> None:
    network = fresh_network("eagle", target, text, TrainSettings(steps=1))
    entries = Entries(network.numbers() | {"norm_output": True}, "a.gguf")
    with pytest.raises(UsageError, match=r"a\.gguf: is an eagle of another form"):
        build_network("eagle", entries, network.state_dict(), target)
