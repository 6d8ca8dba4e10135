"""The drafter that was trained for a loaded model: the one that the caller names, or the one that the package has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from outpace import drafters
from outpace.drafters.protocol import Drafter, Expectation
from outpace.models.checkpoint import Checkpoint
from outpace.runner import Runner
from outpace.tokenizer import Tokenizer
from outpace.weights.drafter import DrafterCheckpoint, open_drafter
from outpace.weights.files import present
from outpace.weights.trained import DrafterTarget

if TYPE_CHECKING:
    from outpace.models.eagle import EagleConfig

_SHIPPED = Path(drafters.__file__).with_name("weights")
_ACCEPTANCE = 0.6  # of a trained drafter's guess: 0.5 to 0.7, by text
_NODE_SHARE = 0.6  # of the time of a first read, for one more node: measured with the default model's drafter


def load_trained(
    file: DrafterCheckpoint, checkpoint: Checkpoint, runner: Runner, tokenizer: Tokenizer, name: str
) -> Drafter:
    """Return the drafter in a file, which `opened` or `shipped` opened.

    Adds its keys and values to the runner's cache. Raises UsageError for a file that is no drafter of this model.
    """
    if file.target_fingerprint != checkpoint.fingerprint.hex():  # else it was made for these very weights
        sizes = runner.model.config
        target = DrafterTarget(tokenizer.fingerprint, sizes.model_type, sizes.vocab_size, sizes.width, sizes.num_layers)
        with_vocabulary(file).check_target(name, target)
        file = replace(file, target=target)  # published files leave some of it out
    if file.kind not in _KINDS:
        raise file.entries.error("kind", f"is {file.kind!r}, supported are {', '.join(_KINDS)}")
    return _KINDS[file.kind](file, runner, checkpoint)


def untuned(file: DrafterCheckpoint, tuned_by: str | None, name: str) -> str | None:
    """Return the warning that a drafter was trained beside another, tuned model than the one that it drafts for.

    tuned_by: of the model (`Adapted`). None: there is nothing to warn of.
    """
    if file.tuned_by is None or file.tuned_by == tuned_by:
        return None
    has = "has no adapter" if tuned_by is None else "has another adapter"
    return (
        f"the drafter {file.path} was trained together with an adapter of its target (Medusa-2), and {name} {has}: no "
        f"token changes, but fewer guesses come true. Load the adapter that was written beside the drafter too "
        f"(adapter=..., {file.tuned_by[:12]}), or the merged model"
    )


def with_vocabulary(file: DrafterCheckpoint) -> DrafterCheckpoint:
    """Return the drafter with what its target's token ids stand for, where a tokenizer lies beside it."""
    if file.target.vocabulary is not None:
        return file
    if file.gguf is not None and "tokenizer.ggml.tokens" in file.gguf:
        tokenizer = Tokenizer.from_gguf(file.gguf)
    elif file.path.is_dir() and present(file.path / "tokenizer.json"):
        tokenizer = Tokenizer.from_folder(file.path)
    else:
        return file
    return replace(file, target=replace(file.target, vocabulary=tokenizer.fingerprint))


def _eagle(file: DrafterCheckpoint, runner: Runner, target: Checkpoint) -> Drafter:
    from outpace.drafters.eagle import EagleDrafter
    from outpace.models import eagle

    config = eagle.EagleConfig.read(file.entries, file.target)
    network = eagle.build(config, file.tensors, runner.model)
    return EagleDrafter(network, runner, expectation=_expectation(file, config, target.num_bytes))


def _expectation(file: DrafterCheckpoint, config: EagleConfig, target_bytes: int) -> Expectation:
    """Return what a draft should bring, and take: by the bytes that it reads relative to a pass of the target.

    A question reads all but the further rows of the head. A node reads them again, from the last cache, and without
    fc; and a level brings more than one node.
    """
    size = {name: tensor.data.nbytes for name, tensor in file.tensors.items() if name != "embedding"}
    size["head"] = size.get("head", 0) * config.num_fixed // len(config.head_tokens)
    whole = sum(size.values()) / target_bytes
    return Expectation(whole, _NODE_SHARE * (whole - size["fc"] / target_bytes), _ACCEPTANCE)


def _medusa(file: DrafterCheckpoint, runner: Runner, target: Checkpoint) -> Drafter:
    from outpace.drafters.medusa import MedusaDrafter
    from outpace.models import medusa

    config = medusa.MedusaConfig.read(file.entries, file.target)
    output = target.tensors.get("lm_head.weight") or target.tensors.get("model.embed_tokens.weight")
    return MedusaDrafter(medusa.build(config, file.tensors, runner.model, output), runner)


def _block(file: DrafterCheckpoint, runner: Runner, target: Checkpoint) -> Drafter:
    from outpace.drafters.block import BlockDrafter
    from outpace.models import block

    config = block.BlockConfig.read(file.entries, file.target)
    return BlockDrafter(block.build(config, file.tensors, runner.model), runner)


_KINDS: dict[str, Callable[[DrafterCheckpoint, Runner, Checkpoint], Drafter]] = {
    "eagle": _eagle,
    "medusa": _medusa,
    "block": _block,
}


def opened(path: Path) -> DrafterCheckpoint:
    """Return the drafter in a file or folder of any layout; what reads those of others is imported for it alone."""
    from outpace.drafters.layouts import open_trained

    return open_trained(path)


def shipped(checkpoint: Checkpoint) -> DrafterCheckpoint | None:
    """Return the package's drafter for this file; other files of the same model have to be given one by name."""
    files = map(open_drafter, sorted(_SHIPPED.glob("*.gguf")))
    return next((file for file in files if file.target_fingerprint == checkpoint.fingerprint.hex()), None)
