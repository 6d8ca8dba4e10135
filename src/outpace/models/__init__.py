"""Networks, written over ops: one file per `model_type`, and what opens and builds them.

A checkpoint speaks one language whatever it came from: the keys of a Hugging Face config, Hugging Face tensor
names, and tensors as the file stores them. Nothing in a file is trusted.
"""

from outpace.models.architecture import Architecture, architectures, normalise, sizes
from outpace.models.checkpoint import Checkpoint, open_checkpoint
from outpace.models.config import ModelConfig
from outpace.models.transformer import Transformer, build

__all__ = [
    "Architecture",
    "Checkpoint",
    "ModelConfig",
    "Transformer",
    "architectures",
    "build",
    "normalise",
    "open_checkpoint",
    "sizes",
]
