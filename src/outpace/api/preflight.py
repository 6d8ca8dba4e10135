"""What a model will take, told before it is loaded: a refusal with numbers, and not a process that the system ends."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outpace.api.quantise import Rounded
from outpace.api.trained import shipped
from outpace.errors import UsageError
from outpace.models import sizes
from outpace.models.checkpoint import Checkpoint, open_checkpoint
from outpace.ops.machine import available_bytes
from outpace.ops.protocol import Ops
from outpace.types import KVFormat, KVSpec
from outpace.weights.catalog import resolve
from outpace.weights.drafter import DrafterCheckpoint

_MARGIN = 1.05  # tables, norms, the memory of a pass


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model takes, in bytes, and what there is.

    weights: packed. per_token: of keys and values. tokens: the cache that was asked for: `cache_tokens`, or a whole
    `context`; where neither is, a few, because memory of a cache is taken as texts grow. context: the model's own.
    is_part: whether it is the text network of a multimodal folder.
    """

    weights: int
    drafter: int
    per_token: int
    tokens: int
    context: int
    available: int
    is_part: bool = False

    @property
    def total(self) -> int:
        """All that is needed before the first token, and for the cache that was asked for."""
        return int(_MARGIN * (self.weights + self.drafter)) + self.per_token * self.tokens

    @property
    def fitting_tokens(self) -> int:
        """How many tokens of keys and values fit beside the weights."""
        return max(0, self.available - int(_MARGIN * (self.weights + self.drafter))) // self.per_token

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self) | {"total": self.total, "fitting_tokens": self.fitting_tokens}

    def lines(self) -> list[str]:
        """Return what people are told of it."""
        whole = _amount(self.per_token * self.context)
        part = ["text part of a multimodal folder: what reads images is left out"] if self.is_part else []
        return [
            *part,
            f"weights: {_amount(self.weights)} in memory" + (f", drafter {_amount(self.drafter)}" * bool(self.drafter)),
            f"keys and values: {_amount(self.per_token)} a token, {whole} for all its {self.context:,} positions",
            f"free here: {_amount(self.available)}, room for {self.fitting_tokens:,} tokens beside the weights",
        ]


def needs(
    checkpoint: Checkpoint,
    ops: Ops,
    *,
    kv: KVFormat,
    context: int | None = None,
    cache_tokens: int | None = None,
    drafter: DrafterCheckpoint | None = None,
    rounded: Rounded | None = None,
) -> Needs:
    """Return what a model takes with these options of `load` (rounded: its tensors by `quantize`); reads no weights."""
    config = sizes(checkpoint.config if context is None else checkpoint.config | {"context": context})
    spec = KVSpec(config.num_layers, config.num_kv_heads, config.head_width, kv)
    tensors = checkpoint.tensors if rounded is None else rounded
    outlines = [tensors.outline(name) for name in tensors]
    return Needs(
        weights=sum(ops.packed_bytes(x) if len(x.shape) > 1 else 4 * x.shape[0] for x in outlines),
        drafter=0 if drafter is None else drafter.num_bytes,
        per_token=spec.bytes_per_token,
        tokens=cache_tokens or context or 2 * spec.block_size,
        context=config.context,
        available=min(ops.memory_bytes, available_bytes()),
        is_part=checkpoint.is_part,
    )


def inspect_model(name_or_path: str, ops: Ops, kv: KVFormat = "bf16") -> Needs:
    """Return what a model takes with these ops, and its drafter where the package has one."""
    checkpoint = open_checkpoint(resolve(name_or_path))
    return needs(checkpoint, ops, kv=kv, drafter=shipped(checkpoint))


def check_room(found: Needs, where: Path, kv: KVFormat) -> None:
    """Raise UsageError, with the numbers and what would fit, for a model that memory has no room for."""
    if found.total <= found.available:
        return
    cache = f"keys and values of {found.tokens:,} tokens {_amount(found.per_token * found.tokens)}"
    raise UsageError(
        f"{where}: takes {_amount(found.total)} (weights {_amount(found.weights)}, drafter {_amount(found.drafter)}, "
        f"{cache}), {_amount(found.available)} of memory are free: {_cure(found, kv)}"
    )


def _cure(found: Needs, kv: KVFormat) -> str:
    if found.fitting_tokens >= 2:
        smaller = "" if kv == "int8" else ", or more of them with kv='int8'"
        return f"{found.fitting_tokens:,} tokens fit (context=..., cache_tokens=...){smaller}"
    most = _amount(int(found.available / _MARGIN))
    return (
        f"weights of at most {most} fit: take a smaller model, or this one in a format of fewer bits (quantize='q4_0')"
    )


def _amount(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.{1 if count < 100 * size else 0}f} {unit}"
    return f"{count} B"
