"""A tiny teacher as a folder, and a student out of it with fewer layers and neurons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from outpace import models
from outpace.models import sizes
from outpace.models.checkpoint import Checkpoint, open_checkpoint
from outpace.models.select import select
from outpace.train.distill.folder import Shape
from outpace.train.distill.shrink import busiest_neurons, narrowed, with_layers
from outpace.train.networks.transformer import Dequantised, TransformerNetwork
from tests.folder import make_folder
from tests.tiny import tiny_config, tiny_tensors

SHAPE = Shape((0, 2, 3), 64)
TOKENS = torch.from_numpy(np.random.default_rng(0).integers(1, 300, (1, 60)))
KINDS = {
    "llama": {},
    "mistral": {"tie_word_embeddings": True},
    "qwen2": {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2},
    "qwen3": {},
    "phi3": {"pad_token_id": 0},
}


def teacher_of(folder: Path, model_type: str = "llama", **overrides: Any) -> Checkpoint:
    own = {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 96, **KINDS[model_type], **overrides}
    return open_checkpoint(make_folder(folder / "teacher", model_type, **own))


def student_of(teacher: Checkpoint) -> TransformerNetwork:
    network = with_layers(TransformerNetwork.of(sizes(teacher.config), Dequantised(teacher.tensors)), SHAPE.layers)
    student = narrowed(network, busiest_neurons(network, [TOKENS], SHAPE.feed_forward_width))
    with torch.no_grad():
        for x in student.parameters():  # a folder is float16
            x.copy_(x.half().float())
    return student


def network(model_type: str = "llama", **overrides: Any) -> TransformerNetwork:
    """Return a tiny network with a vocabulary of 97 tokens."""
    config = tiny_config(model_type, **overrides)
    checked = models.normalise(config, "tiny")
    tensors = Dequantised(select(tiny_tensors(config, spread=1.0), checked, "folder", "tiny"))
    return TransformerNetwork.of(models.sizes(checked), tensors).requires_grad_(False)
