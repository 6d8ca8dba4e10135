"""The network of the trained drafter `medusa` (Medusa, arXiv:2401.10774): heads on the target's last hidden state.

    h           the output of the target's final norm at the position before the last token                 [D]
    head k      x = h + silu(w.k h + b.k)      (k = 0, 1, ..., one residual block)                     [D]
    guess       of the token k + 1 places behind the last one: rows x

So a head sees neither the last token nor what the other heads guess: its guesses are a position's, not a path's. The
rows are the target's own output matrix, one of the drafter's for all heads, or one for each head; in any case those of
some tokens only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outpace.errors import WeightsError
from outpace.models.reduced_head import ReducedHead, read_head, rows_of
from outpace.models.transformer import Transformer
from outpace.ops.layers import Array, Vector, Weight
from outpace.ops.protocol import Ops
from outpace.types import RawTensor
from outpace.weights.trained import DrafterTarget, Entries, check_shapes

UNEMBEDDINGS = ("target", "shared", "own")


@dataclass(frozen=True, slots=True)
class MedusaConfig:
    """What a checkpoint says beside its tensors.

    unembedding: whose rows the guesses are scored by: "target" (no tensor), "shared" (`head`) or "own" (`head.k`).
    num_fixed: rows that are always looked at, those behind them only where their token is in the sequence; all of them
    where each head has its own. head_tokens: the token of each row.
    accuracies[k][j]: how often head k's j-th likeliest token (from 0) was the one that came, on text of the target.
    """

    unembedding: str
    num_fixed: int
    head_tokens: tuple[int, ...]
    accuracies: tuple[tuple[float, ...], ...]

    @property
    def num_heads(self) -> int:
        return len(self.accuracies)

    @classmethod
    def read(cls, entries: Entries, target: DrafterTarget) -> MedusaConfig:
        """Return what a drafter's file says; raises WeightsError for what no network can be."""
        num_heads, unembedding = entries.count("num_heads"), entries.text("unembedding")
        num_fixed, head_tokens = read_head(entries, target.vocab_size)
        flat = entries.fractions("accuracies")
        if unembedding not in UNEMBEDDINGS:
            raise entries.error("unembedding", f"must be one of {', '.join(UNEMBEDDINGS)}, is {unembedding!r}")
        if unembedding == "own" and num_fixed != len(head_tokens):
            raise entries.error("num_fixed", f"must be {len(head_tokens)} for heads with rows of their own")
        if not num_heads or not flat or len(flat) % num_heads:
            raise entries.error("accuracies", f"must be equally many for each of {num_heads} heads, are {len(flat)}")
        width = len(flat) // num_heads
        accuracies = tuple(flat[at : at + width] for at in range(0, len(flat), width))
        if any(list(row) != sorted(row, reverse=True) or sum(row) > 1.001 for row in accuracies):
            raise entries.error("accuracies", "of a head must not rise from rank to rank, nor add up to more than 1")
        return cls(unembedding, num_fixed, head_tokens, accuracies)

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor for a target of that width."""
        heads, rows = range(self.num_heads), (len(self.head_tokens), width)
        return {
            **{f"w.{k}": (width, width) for k in heads},
            **{f"b.{k}": (width,) for k in heads},
            **({"head": rows} if self.unembedding == "shared" else {}),
            **({f"head.{k}": rows for k in heads} if self.unembedding == "own" else {}),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Medusa:
    """The network, ready to run on the ops of its target. heads: one for all, or one for each."""

    config: MedusaConfig
    ops: Ops
    tap: int  # the target's final norm
    blocks: tuple[tuple[Weight, Vector], ...]  # w.k, b.k
    heads: tuple[ReducedHead, ...]

    def states(self, hidden: Array, num_heads: int) -> list[Array]:
        """Return the first heads' states of T positions, [T, D] each; hidden: of the target's final norm there."""
        ops = self.ops
        return [ops.add(hidden, ops.silu(ops.linear(hidden, w, b))) for w, b in self.blocks[:num_heads]]

    def logits(self, states: Sequence[Array]) -> list[Array]:
        """Return the logits of each head's fixed rows, [T, num_fixed] each."""
        heads = self.heads * (len(states) if len(self.heads) == 1 else 1)
        return [self.ops.linear(x, head.fixed) for x, head in zip(states, heads, strict=False)]

    def pack_rows(self, rows: Sequence[int]) -> Weight:
        """Return some rows behind the fixed ones as a matrix: they are the same for all heads."""
        return self.heads[0].pack(rows)


def level_bytes(config: MedusaConfig, tensors: Mapping[str, RawTensor]) -> tuple[int, int]:
    """Return how many bytes of weights the guess of one position reads, and that of each further one.

    Without further rows of the head, and without the head where it is the target's.
    """
    block = sum(tensors[name].data.nbytes for name in ("w.0", "b.0"))
    head = tensors.get({"shared": "head", "own": "head.0"}.get(config.unembedding, ""))
    rows = 0 if head is None else head.data.nbytes * config.num_fixed // len(config.head_tokens)
    return block + rows, block + rows


def build(
    config: MedusaConfig, tensors: Mapping[str, RawTensor], target: Transformer, output: RawTensor | None
) -> Medusa:
    """Return the network on the target's ops; raises WeightsError for tensors that do not fit the config.

    output: the target's output matrix as stored, for heads that use its rows.
    """
    ops, width = target.ops, target.config.width
    check_shapes("medusa", tensors, config.shapes(width))
    blocks = [(ops.pack(tensors[f"w.{k}"]), ops.vector(tensors[f"b.{k}"])) for k in range(config.num_heads)]
    if config.unembedding == "target":
        if output is None or output.shape != (target.config.vocab_size, width):
            raise WeightsError("the drafter uses the rows of the target's output matrix, which is not at hand")
        stored = [rows_of(output, config.head_tokens)]
    elif config.unembedding == "shared":
        stored = [tensors["head"]]
    else:
        stored = [tensors[f"head.{k}"] for k in range(config.num_heads)]
    heads = tuple(ReducedHead.of(ops, tensor, config.num_fixed) for tensor in stored)
    return Medusa(config, ops, target.config.num_layers + 1, tuple(blocks), heads)
