"""The student of a run: layers and neurons of its teacher, or a folder's network; and its files when it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outpace.api import LanguageModel
from outpace.errors import UsageError
from outpace.models.architecture import sizes
from outpace.models.checkpoint import Checkpoint, open_checkpoint
from outpace.models.config import Config
from outpace.tokenizer import Tokenizer
from outpace.train.distill.folder import Shape, student_config, write_folder
from outpace.train.distill.gguf_file import write_student
from outpace.train.distill.options import DistillOptions
from outpace.train.distill.shrink import busiest_neurons, layer_importance, most_important, narrowed, with_layers
from outpace.train.networks.transformer import Dequantised, TransformerNetwork, is_supported
from outpace.train.text.corpus import Conversation

_SEQUENCES, _TOKENS = 16, 128  # of the text that importance is measured on


@dataclass(frozen=True, slots=True)
class Student:
    """An untrained student. source: the checkpoint whose tokenizer and config it has.

    layers: those of the teacher that it has; None where it is a folder of its own.
    """

    network: TransformerNetwork
    source: Checkpoint
    shape: Shape
    layers: tuple[int, ...] | None

    @property
    def config(self) -> Config:
        """Its config.json."""
        return student_config(self.source, self.shape)

    def write(self, folder: Path, state: Mapping[str, Tensor], name: str, format: str) -> str | None:
        """Write what was trained as folder/student and folder/student.gguf; return why there is no such file, if so."""
        numbers = {key: x.float() for key, x in state.items()}
        write_folder(folder / "student", self.source, self.config, numbers)
        try:
            write_student(folder / "student.gguf", self.source, self.shape, self.config, numbers, name, format.upper())
        except UsageError as error:
            return str(error)
        return None


def student_of(
    options: DistillOptions,
    lm: LanguageModel,
    text: Sequence[Conversation],
    device: torch.device,
    known: Mapping[str, Any],
) -> tuple[Student, dict[str, Any]]:
    """Return the student that the options describe, and what was chosen for it, in plain values.

    known: what an interrupted run has chosen, which is chosen again.
    """
    if options.student is not None:
        return _from_folder(options.student, lm, device), {}
    teacher = open_checkpoint(lm.path)
    if not is_supported(lm.config):
        raise UsageError(
            f"{lm.name}: a {lm.config.model_type} network cannot run in PyTorch yet, so no student can be made of it"
        )
    compute = torch.float32 if device.type == "cpu" else torch.bfloat16
    whole = TransformerNetwork.of(lm.config, Dequantised(teacher.tensors), device=device, compute=compute)
    whole.requires_grad_(False)
    sample = _sample(text, device)
    layers, chosen = _layers(options, whole, sample, known)
    part = with_layers(whole, layers)
    width = lm.config.feed_forward_width if options.width is None else options.width
    if options.width is not None:
        neurons = known.get("neurons") or [own.tolist() for own in busiest_neurons(part, sample, width)]
        chosen["neurons"] = neurons
        part = narrowed(part, [torch.tensor(own, device=device) for own in neurons])
    network = TransformerNetwork.of(part.config, part.state_dict(), device=device, compute=compute)
    student = Student(network, teacher, Shape(layers, width), layers)
    _ = student.config  # refused now, and not when it has been trained
    return student, chosen


def _layers(
    options: DistillOptions, whole: TransformerNetwork, sample: Sequence[Tensor], known: Mapping[str, Any]
) -> tuple[tuple[int, ...], dict[str, Any]]:
    if options.given_layers is not None:
        return options.given_layers, {"layers": list(options.given_layers)}
    importance = known.get("importance")
    if importance is None:
        importance = [round(float(x), 6) for x in layer_importance(whole, sample, options.importance)]
    assert options.num_layers is not None
    layers = most_important(np.array(importance), options.num_layers)
    return layers, {"layers": list(layers), "importance": importance}


def _sample(text: Sequence[Conversation], device: torch.device) -> list[Tensor]:
    """Return the beginnings of some conversations, spread over the text."""
    chosen = [text[i] for i in range(0, len(text), max(1, len(text) // _SEQUENCES))][:_SEQUENCES]
    rows = [own.tokens[:_TOKENS] for own in chosen if len(own.tokens) > 1]
    return [torch.from_numpy(row.astype("int64"))[None].to(device) for row in rows]


def _from_folder(path: Path, lm: LanguageModel, device: torch.device) -> Student:
    source = open_checkpoint(path)
    config = sizes(source.config)
    if source.gguf is not None:
        raise UsageError(f"--student: {path} is a GGUF file, must be a Hugging Face folder")
    if not is_supported(config):
        raise UsageError(f"--student: a {config.model_type} network cannot run in PyTorch yet")
    if config.vocab_size != lm.config.vocab_size or not Tokenizer.from_folder(path).same_vocabulary(lm.tokenizer):
        raise UsageError(f"--student: {path} has another vocabulary than {lm.name}: no distribution can be compared")
    compute = torch.float32 if device.type == "cpu" else torch.bfloat16
    network = TransformerNetwork.of(config, Dequantised(source.tensors), device=device, compute=compute)
    return Student(network, source, Shape(tuple(range(config.num_layers)), config.feed_forward_width), None)
