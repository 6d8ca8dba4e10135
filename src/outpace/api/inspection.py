"""Say what a trained drafter is, for which model, and what a step with it costs, without loading a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from outpace.api.trained import with_vocabulary
from outpace.drafters.layouts import open_trained
from outpace.drafters.layouts.export import LAYOUTS, export_speculators
from outpace.errors import UsageError, one_of
from outpace.models import block, eagle, medusa
from outpace.models.block import BlockConfig
from outpace.models.checkpoint import Checkpoint, open_checkpoint
from outpace.models.eagle import EagleConfig
from outpace.models.medusa import MedusaConfig
from outpace.tokenizer import Tokenizer
from outpace.weights.catalog import resolve, resolve_drafter
from outpace.weights.drafter import DrafterCheckpoint
from outpace.weights.trained import DrafterTarget, check_shapes

_ANY_DEPTH = 1 << 16  # layers of a target that nobody named: which taps there are does not change what is checked


@dataclass(frozen=True, slots=True)
class Network:
    """What is known of a drafter's network. Bytes: of the weights that the first level of a draft reads, and each
    further one. taps: None where they follow from how many layers the target has.
    """

    taps: tuple[int, ...] | None
    head_rows: int
    fixed_rows: int
    first_level_bytes: int
    further_level_bytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a drafter is.

    model: the one that it was held against; pass_bytes: of its weights that a pass reads. vocabulary: "same" as the
    model's, token by token; "not stated": the drafter says nothing beyond its size. None: it was held against none.
    tuned_by: fingerprint, in hex, of the adapter that its target was tuned by beside it (Medusa-2), if it was;
    is_tuned: whether the model is merged with that.
    """

    path: str
    kind: str
    layout: str
    made_for: str
    target: DrafterTarget
    num_parameters: int
    num_bytes: int
    formats: dict[str, int]  # format -> bytes
    network: Network
    model: str | None = None
    vocabulary: str | None = None
    pass_bytes: int | None = None
    tuned_by: str | None = None
    is_tuned: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def inspect_drafter(name_or_path: str, model: str | None = None) -> Inspection:
    """Return what a drafter is; with a model, also whether it is one for that, and what a step with it costs.

    Raises UsageError, with the reason, for a drafter of another model, WeightsError for one that is malformed.
    """
    file = with_vocabulary(open_trained(resolve_drafter(name_or_path)))
    checkpoint = None if model is None else open_checkpoint(resolve(model))
    target, vocabulary = file.target, None
    if checkpoint is not None and model is not None:
        target = _fitting(file, checkpoint, model)
        vocabulary = "not stated" if file.target.vocabulary is None else "same"
    return Inspection(
        path=str(file.path),
        kind=file.kind,
        layout=file.layout,
        made_for=file.target_name,
        target=file.target,
        num_parameters=file.num_parameters,
        num_bytes=file.num_bytes,
        formats=_formats(file),
        network=_network(file, target),
        model=model,
        vocabulary=vocabulary,
        pass_bytes=None if checkpoint is None else _pass_bytes(checkpoint),
        tuned_by=file.tuned_by,
        is_tuned=None if checkpoint is None or file.tuned_by is None else checkpoint.tuned_by == file.tuned_by,
    )


def export_drafter(name_or_path: str, model: str, layout: str, folder: Path, *, name: str) -> None:
    """Write the drafter of a model in another layout; raises UsageError for what cannot be said there.

    name: what the files call the model, for tools that fetch it by that.
    """
    one_of("layout", layout, LAYOUTS)
    file = with_vocabulary(open_trained(resolve_drafter(name_or_path)))
    if file.kind != "eagle":
        raise UsageError(f"{file.path}: is of the kind {file.kind}: only eagle has a place in the layout {layout}")
    checkpoint = open_checkpoint(resolve(model))
    target = _fitting(file, checkpoint, model)
    config = EagleConfig.read(file.entries, target)
    eagle.check_tensors(config, file.tensors, target.width, target.vocab_size)
    export_speculators(file, config, checkpoint.config, name, folder)


def _fitting(file: DrafterCheckpoint, checkpoint: Checkpoint, model: str) -> DrafterTarget:
    """Return the model as a drafter's target; raises UsageError if it is not this drafter's."""
    config = checkpoint.config
    tokenizer = Tokenizer.from_gguf(checkpoint.gguf) if checkpoint.gguf else Tokenizer.from_folder(checkpoint.path)
    target = DrafterTarget(
        tokenizer.fingerprint,
        config["model_type"],
        config["vocab_size"],
        config["hidden_size"],
        config["num_hidden_layers"],
    )
    file.check_target(model, target)
    return target


def _formats(file: DrafterCheckpoint) -> dict[str, int]:
    formats: dict[str, int] = {}
    for tensor in file.tensors.values():
        formats[tensor.format] = formats.get(tensor.format, 0) + tensor.data.nbytes
    return dict(sorted(formats.items(), key=lambda item: -item[1]))


def _pass_bytes(checkpoint: Checkpoint) -> int:
    """Return how many bytes of weights a pass reads: all but an embedding of which it takes single rows."""
    embedding = checkpoint.tensors["model.embed_tokens.weight"].data.nbytes
    return checkpoint.num_bytes - (0 if checkpoint.config["tie_word_embeddings"] else embedding)


def _network(file: DrafterCheckpoint, target: DrafterTarget) -> Network:
    if file.kind not in _KINDS:
        raise file.entries.error("kind", f"is {file.kind!r}, supported are {', '.join(_KINDS)}")
    return _KINDS[file.kind](file, target)


def _eagle(file: DrafterCheckpoint, target: DrafterTarget) -> Network:
    is_known = "taps" in file.entries.raw or target.num_layers is not None
    config = EagleConfig.read(file.entries, target if is_known else replace(target, num_layers=_ANY_DEPTH))
    eagle.check_tensors(config, file.tensors, target.width, target.vocab_size)
    first, further = eagle.level_bytes(config, file.tensors)
    return Network(config.taps if is_known else None, len(config.head_tokens), config.num_fixed, first, further)


def _medusa(file: DrafterCheckpoint, target: DrafterTarget) -> Network:
    config = MedusaConfig.read(file.entries, target)
    check_shapes("medusa", file.tensors, config.shapes(target.width))
    first, further = medusa.level_bytes(config, file.tensors)
    taps = None if target.num_layers is None else (target.num_layers + 1,)
    return Network(taps, len(config.head_tokens), config.num_fixed, first, further)


def _block(file: DrafterCheckpoint, target: DrafterTarget) -> Network:
    depth = _ANY_DEPTH if target.num_layers is None else target.num_layers
    config = BlockConfig.read(file.entries, replace(target, num_layers=depth))
    block.check_tensors(config, file.tensors, target.width)
    first, further = block.level_bytes(config, file.tensors)
    return Network(config.taps, len(config.head_tokens), config.num_fixed, first, further)


_KINDS: dict[str, Callable[[DrafterCheckpoint, DrafterTarget], Network]] = {
    **{"eagle": _eagle, "medusa": _medusa, "block": _block},
}
