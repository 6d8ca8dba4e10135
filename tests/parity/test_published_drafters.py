"""Networks of published drafters against the code that they were published for; published/README.md says which."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from outpace import models
from outpace.drafters.layouts import open_trained
from outpace.models import block, eagle
from outpace.models.block import BlockConfig
from outpace.models.eagle import Eagle, EagleConfig
from outpace.ops.layers import Array
from outpace.ops.protocol import Ops
from outpace.ops.reference import ReferenceOps
from outpace.ops.sampling import SamplingBatch
from outpace.types import Segment
from tests.eagle import head_logits
from tests.implementations import MAKERS
from tests.published import (
    DFLASH,
    SPECULATORS,
    TAPS,
    VOCAB,
    WIDTH,
    dflash_tensors,
    flat_config,
    flat_tensors,
    gguf_entries,
    gguf_tensors,
    nested_dflash_config,
    write_folder,
    write_gguf,
)
from tests.tiny import raw_tensor, tiny_config, tiny_model, tiny_tensors, tiny_values

NAMES = sorted(path.name for path in SPECULATORS.iterdir())
BLOCKS = [0, 1, 2]
HEAD_WIDTH = 4  # of the target: the drafters' heads are 8 wide


def network(path: Path, ops: Ops) -> Eagle:
    target = tiny_model(
        ops, vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=4, head_dim=HEAD_WIDTH
    )
    file = open_trained(path)
    config = EagleConfig.read(file.entries, replace(file.target, num_layers=4))
    return eagle.build(config, file.tensors, target)


class Chain:
    """A drafter's network on one sequence, level by level."""

    def __init__(self, net: Eagle, states: NDArray[Any], tokens: list[int]) -> None:
        self.net, self.ops, self.length = net, net.ops, len(tokens)
        self.kv = self.ops.kv_alloc(net.spec("f32", 4), len(BLOCKS))
        taps = [np.ascontiguousarray(part) for part in np.split(states, len(TAPS), axis=1)]
        self.states = self._level(1, tokens, net.fuse([([self.ops.array(tap) for tap in taps], range(len(states)))]))

    def _level(self, start: int, tokens: list[int], features: Array) -> Array:
        plan = self.ops.plan([Segment(BLOCKS, start, tokens, num_scored=len(tokens))], 4)
        guesses = self.net.guess(features, self.kv, plan, [None], SamplingBatch.greedy(len(tokens)), 1)
        self.logits = head_logits(self.net, guesses)
        return guesses.states

    def go_on(self, token: int) -> None:
        """Compute the level after this one from the network's own last state."""
        last = self.ops.select(self.states, [self.length - 1]) if self.logits.shape[0] > 1 else self.states
        self.length += 1
        self.states = self._level(self.length, [token], last)


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
@pytest.mark.parametrize("name", NAMES)
def test_every_level_of_a_speculators_drafter_is_what_speculators_computes(name: str, make: Any) -> None:
    """Their training pass shows a chain's own keys to later levels whatever the window: only its first level counts."""
    expected = np.load(SPECULATORS / name / "expected.npz")
    tokens, states = expected["tokens"].tolist(), expected["states"]
    net = network(SPECULATORS / name, make(1))
    assert np.allclose(Chain(net, states, tokens).logits, expected["logits0"], atol=2e-5)
    if name != "window":
        for t in range(1, len(tokens) - 2):
            chain = Chain(net, states[:t], tokens[:t])
            for level in (1, 2):
                chain.go_on(tokens[t + level - 1])
                assert np.allclose(chain.logits, expected[f"logits{level}"][t - 1], atol=2e-5)


def logits_of(path: Path, name: str) -> NDArray[np.float32]:
    expected = np.load(SPECULATORS / name / "expected.npz")
    chain = Chain(network(path, ReferenceOps()), expected["states"], expected["tokens"].tolist())
    return chain.logits


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_flat_folder_is_the_same_network(form: str, tmp_path: Path) -> None:
    """The layout of SafeAILab and AngelSlim: other names, offsets of tokens, a config without nesting."""
    config = flat_config("plain", eagle_aux_hidden_state_layer_ids=list(TAPS))
    folder = write_folder(tmp_path / "flat", config, flat_tensors("plain"))
    if form == "bin":
        (folder / "model.safetensors").unlink()
        values = {name: torch.from_numpy(value) for name, value in flat_tensors("plain").items()}
        torch.save(values, folder / "pytorch_model.bin")
    assert np.array_equal(logits_of(folder, "plain"), logits_of(SPECULATORS / "plain", "plain"))


@pytest.mark.parametrize(
    ("name", "entries"),
    [("plain", {}), ("residual_normed", {"norm_before_residual": True}), ("whole_head", {})],
)
def test_a_gguf_file_of_llama_cpp_is_the_same_network(name: str, entries: dict[str, Any], tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "d.gguf", gguf_entries(**entries), gguf_tensors(name))
    assert np.array_equal(logits_of(path, name), logits_of(SPECULATORS / name, name))


def test_rotary_factors_and_a_norm_before_fc_come_with_a_gguf_file(tmp_path: Path) -> None:
    factors = {"rope_freqs.weight": np.array([1.0, 2.0, 3.0, 4.0], np.float32)}
    path = write_gguf(tmp_path / "d.gguf", gguf_entries(), gguf_tensors("plain") | factors)
    config = network(path, ReferenceOps()).config
    plain = network(SPECULATORS / "plain", ReferenceOps()).config
    assert config.inv_freq is not None
    assert plain.inv_freq is not None
    assert np.allclose(np.array(config.inv_freq) * factors["rope_freqs.weight"], plain.inv_freq)
    joint = write_gguf(tmp_path / "j.gguf", gguf_entries(norm_before_fc=True), gguf_tensors("joint"))
    assert np.allclose(logits_of(joint, "joint"), np.load(SPECULATORS / "joint" / "expected.npz")["logits0"], atol=2e-5)


def block_logits(path: Path, ops: Ops) -> NDArray[np.float32]:
    """Return the logits of every mask of a DFlash drafter, on a target with the embedding and output of the fixture."""
    expected = np.load(DFLASH / "expected.npz")
    config = tiny_config(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=4, head_dim=HEAD_WIDTH
    )
    own = {"model.embed_tokens.weight": expected["embedding"], "lm_head.weight": expected["output"]}
    tensors = tiny_tensors(config) | {name: raw_tensor(name, value) for name, value in own.items()}
    file = open_trained(path)
    read = BlockConfig.read(file.entries, replace(file.target, num_layers=4))
    net = block.build(read, file.tensors, models.build(models.normalise(config, "tiny"), tensors, ops))
    length, kv = len(expected["states"]), ops.kv_alloc(net.spec("f32", 8), 2)
    taps = [np.ascontiguousarray(part) for part in np.split(expected["states"], len(TAPS), axis=1)]
    anchor = expected["anchor"].tolist()
    net.store(ops.plan([Segment([0, 1], 0, [0] * length)], 8), [ops.array(tap) for tap in taps], length, kv)
    masks = [Segment([0, 1], length, anchor * (1 + read.num_masks), kind="full")]
    last = [ops.array(tap[-1:]) for tap in taps]
    anchors = ops.plan([Segment([0, 1], length, anchor)], 8)
    states = net.fill(anchors, ops.plan(masks, 8), [read.num_masks], last, kv)
    return ops.numpy(ops.linear(net.normed(states), net.head.fixed))


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_every_mask_of_a_dflash_drafter_is_what_its_own_package_computes(make: Any) -> None:
    assert np.allclose(block_logits(DFLASH, make(1)), np.load(DFLASH / "expected.npz")["logits"], atol=2e-5)


def test_dflash_in_the_layout_of_speculators_is_the_same_network(tmp_path: Path) -> None:
    """Also with a head of fewer rows of its own."""
    folder = write_folder(tmp_path / "d", nested_dflash_config(), dflash_tensors())
    whole = block_logits(folder, ReferenceOps())
    assert np.array_equal(whole, block_logits(DFLASH, ReferenceOps()))
    tokens = np.array([2, 3, 5, 30])
    rows = np.load(DFLASH / "expected.npz")["output"][tokens]
    own = dflash_tensors() | {"lm_head.weight": rows, "d2t": tokens - np.arange(4)}
    reduced = write_folder(tmp_path / "r", nested_dflash_config(draft_vocab_size=4), own)
    assert open_trained(reduced).entries.counts("head_tokens") == tuple(tokens.tolist())
    assert np.allclose(block_logits(reduced, ReferenceOps()), whole[:, tokens], atol=1e-6)


def test_the_usual_taps_are_the_hidden_states_that_safeailab_takes() -> None:
    """Those that go into layers 2, n / 2 and n - 3, counted from 0, as transformers counts its hidden states."""
    config = tiny_config(num_hidden_layers=8)
    file = open_trained(SPECULATORS / "plain")
    entries = replace(file.entries, raw={k: v for k, v in file.entries.raw.items() if k != "taps"})
    taps = EagleConfig.read(entries, replace(file.target, num_layers=8)).taps
    assert taps == (2, 4, 5)
    ops = ReferenceOps()
    target, tokens = tiny_model(ops, **config), [3, 1, 4, 1, 5]
    plan = ops.plan([Segment([0], 0, tokens)], 8)
    _, hidden = target.forward(plan, ops.kv_alloc(target.spec("f32"), 1), taps)
    options = {key: value for key, value in config.items() if key != "model_type"}
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**options))
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in tiny_values(config).items()})
    with torch.no_grad():
        states = theirs.eval()(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    for tap in taps:
        assert np.allclose(ops.numpy(hidden[tap]), states[tap][0].numpy(), atol=1e-4)
