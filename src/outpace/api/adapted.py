"""What an adapter makes of a model at load: how it fills masks, and whether it is another model with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from outpace.models import Transformer
from outpace.models.adapter import Adapter, build
from outpace.models.checkpoint import Checkpoint
from outpace.tokenizer import Tokenizer
from outpace.types import MaskFilling
from outpace.weights.adapter import open_adapter
from outpace.weights.trained import DrafterTarget


@dataclass(frozen=True, slots=True)
class Adapted:
    """A model's adapter, if it has one. fingerprint: of the model that the cache remembers.

    filling: how it fills masks; None: it was not trained to. tuned_by: fingerprint, in hex, of the adapter that makes
    another model of it, loaded or merged; None: of none.
    """

    adapter: Adapter | None
    filling: MaskFilling | None
    fingerprint: bytes
    tuned_by: str | None


def adapted(
    path: Path | None, network: Transformer, checkpoint: Checkpoint, tokenizer: Tokenizer, name: str
) -> Adapted:
    """Return the model with the adapter in a file, or (no path) as it is.

    Raises UsageError for a file that is no adapter of this model, WeightsError for a malformed one.
    """
    if path is None:
        return Adapted(None, checkpoint.filling, checkpoint.fingerprint, checkpoint.tuned_by)
    file, sizes = open_adapter(path.expanduser()), network.config
    target = DrafterTarget(tokenizer.fingerprint, sizes.model_type, sizes.vocab_size, sizes.width, sizes.num_layers)
    file.check_target(name, target)
    own = file.fingerprint_of(checkpoint.fingerprint)
    tuned_by = file.fingerprint.hex() if file.is_always_on else checkpoint.tuned_by
    return Adapted(build(file, network), file.filling or checkpoint.filling, own, tuned_by)
