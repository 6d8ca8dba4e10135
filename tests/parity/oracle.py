"""Logits of transformers: computed, or where the one installed is too old for an architecture, recorded before.

To record them anew, in an environment with transformers 5 and this package: `python -m tests.parity.oracle`.
Weights and tokens are those of `tests.tiny`, so only logits are stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from outpace.models import architectures
from tests.networks import NETWORKS
from tests.tiny import tiny_config, tiny_values

RECORDED = ("ministral3",)
RECORDED_EVERY = 7  # of 150 tokens, so many apart are stored
_FILE = Path(__file__).with_name("recorded.npz")


def is_there(model_type: str) -> bool:
    """Whether the transformers that is installed has this architecture."""
    return model_type in CONFIG_MAPPING


def theirs(config: dict[str, Any], values: dict[str, NDArray[np.float32]], tokens: list[int]) -> NDArray[np.float32]:
    """Return transformers' logits of every token, [T, V]."""
    options = {key: value for key, value in config.items() if key != "model_type"} | {"pad_token_id": 0}
    own = transformers.AutoConfig.for_model(config["model_type"], **options)
    own._attn_implementation = "eager"
    with torch.no_grad():
        network = transformers.AutoModelForCausalLM.from_config(own, dtype=torch.float32).eval()
        names = architectures()[config["model_type"]]
        state = {names.folder_name(name): torch.from_numpy(value) for name, value in values.items()}
        if config["tie_word_embeddings"]:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        network.load_state_dict(state, strict=True)
        return network(torch.tensor([tokens])).logits[0].numpy()


def recorded(name: str) -> NDArray[np.float32]:
    """Return the logits of each RECORDED_EVERY-th token of a network, [22, V]."""
    with np.load(_FILE) as stored:
        logits: NDArray[np.float32] = stored[name]
    return logits


def record() -> None:
    """Write the logits of the architectures in RECORDED."""
    tokens = np.random.default_rng(0).integers(0, 97, 150).tolist()
    logits: dict[str, Any] = {}
    for name, (model_type, overrides) in NETWORKS.items():
        if model_type in RECORDED:
            config = tiny_config(model_type, **overrides)
            logits[name] = theirs(config, tiny_values(config, spread=1.0), tokens)[::RECORDED_EVERY]
    np.savez_compressed(_FILE, **logits)


if __name__ == "__main__":
    record()
