"""Reference logits against transformers' own networks, on the same weights, in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace import models
from outpace.models.checkpoint import open_checkpoint
from outpace.ops.formats import dequantise
from outpace.ops.reference import ReferenceOps
from outpace.tokenizer import Tokenizer
from outpace.types import KVFormat, Segment
from tests.networks import LLAMA3, NETWORKS
from tests.parity.oracle import RECORDED_EVERY, is_there, recorded, theirs
from tests.tiny import built, tiny_config, tiny_model, tiny_values


def ours(model: models.Transformer, ops: ReferenceOps, tokens: list[int], kv: KVFormat = "f32") -> NDArray[np.float32]:
    """Return our logits of every token, [T, V]: a prefill in two pieces, the second of them long."""
    cut, storage = 37, ops.kv_alloc(model.spec(kv), 7)
    rows = []
    for start, end in ((0, cut), (cut, len(tokens))):
        segment = Segment((6, 0, 5, 1, 4, 2, 3), start, tokens[start:end], num_scored=end - start)
        rows.append(ops.numpy(model.forward(ops.plan([segment], 32), storage)[0]))
    return np.concatenate(rows)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_logits_are_those_of_transformers(name: str) -> None:
    model_type, overrides = NETWORKS[name]
    config = tiny_config(model_type, **overrides)
    tokens = np.random.default_rng(0).integers(0, 97, 150).tolist()
    ops = ReferenceOps()
    found = ours(built(ops, config, spread=1.0), ops, tokens)
    if is_there(model_type):
        expected = theirs(config, tiny_values(config, spread=1.0), tokens)
    else:  # a newer transformers has it: its logits are recorded
        found, expected = found[::RECORDED_EVERY], recorded(name)
    assert np.abs(expected).max() > 1
    assert np.abs(found - expected).max() < 1e-4


def test_factors_are_llama3_s_scaling_in_another_form() -> None:
    """GGUF stores the frequencies' divisors instead of the four numbers that they come from."""
    llama3, plain = (tiny_model(ReferenceOps(), rope_scaling=scaling) for scaling in (LLAMA3, None))
    factors = (np.array(plain.config.inv_freq) / llama3.config.inv_freq).tolist()
    assert max(factors) > 2
    same = tiny_model(ReferenceOps(), rope_scaling={"rope_type": "factors", "factors": factors})
    np.testing.assert_allclose(same.config.inv_freq, llama3.config.inv_freq, rtol=1e-12)


# What transformers computes in float32 differs from float64 by 1e-5 to 1e-3 itself, the more the stranger the text.
PROSE = """The keeper of the lighthouse had written in the same book for thirty years. Every evening he noted the
wind, the colour of the water and the ships that had passed, and on most evenings there was nothing else to say. On the
ninth of March a boat came in without a light. He saw it only because the moon stood low behind it, and by the time he
had reached the stairs it lay against the rocks. Two women climbed out. The older one carried a box under her coat, the
younger one a lamp that had gone out, and neither of them would tell him where they had come from. They asked for paper
and for something warm to drink. He gave them both, and a chair by the stove, and then he went up again to look after
the light, because that was the rule. When he came down in the morning the chairs were empty. The box stood on the
table, and on its lid somebody had drawn, quite carefully, a map of the island with one house too many."""


def test_the_default_model_gives_the_logits_of_transformers_over_200_tokens(default_model_path: Path) -> None:
    checkpoint = open_checkpoint(default_model_path)
    assert checkpoint.gguf is not None
    tokens = Tokenizer.from_gguf(checkpoint.gguf).encode(PROSE)[:200]
    assert len(tokens) == 200
    ops = ReferenceOps()
    found = ours(models.build(checkpoint.config, checkpoint.tensors, ops), ops, tokens)
    values = {name: dequantise(tensor) for name, tensor in checkpoint.tensors.items()}
    expected = theirs(checkpoint.config, values, tokens)
    assert np.abs(found - expected).max() < 1e-4
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
