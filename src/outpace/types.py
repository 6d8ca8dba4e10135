"""The nouns: what a user asks for, what a network is run on, how a row becomes a token.

This file imports nothing of the project but `errors`. Array code names shapes by suffix:

    T tokens in the batch   S segments        B requests      N draft nodes
    R scored rows           V vocabulary      D width         F feed-forward width
    H query heads           G key/value heads K head width    M context length

Positions and intervals are half-open. One request's context looks like this:

    position   0            start                len(tokens)
               | committed  | pending | draft nodes (a tree: position = depth)
    KV slot    0            start     start + len(pending) ...
               remembered   provisional: written by the pass, kept only by commit
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from outpace.errors import UsageError, integer, real, shown

FinishReason = Literal["stop", "length", "context", "cancelled", "error"]
KVFormat = Literal["f32", "bf16", "int8"]

# Philox streams (docs/decisions/0004): what a random number is for.
TOKEN_STREAM, COIN_STREAM, RESIDUAL_STREAM = 0, 1, 2


class Constraint(Protocol):
    """Which tokens may come next: the seam for grammars, allowed and banned tokens."""

    def mask(self, path: Sequence[int]) -> NDArray[np.uint32]:
        """Return the allowed tokens after `path` (all output tokens so far, without the prompt).

        Packed bits [ceil(V / 32)]: token t is allowed when bit t % 32 of word t // 32 is set.
        Must be a pure function of `path`. It is only called on paths that it allowed itself.
        """


# Called with all tokens so far (prompt, output, path to the node) and raw logits [V] float32;
# returns logits [V]. Must be pure: it is called once per node of a draft.
LogitsProcessor = Callable[[Sequence[int], NDArray[np.float32]], NDArray[np.float32]]


def _numbers(minimum: float, maximum: float) -> Callable[[str, Any], float]:
    return lambda name, value: real(name, value, minimum, maximum)


def _temperature(name: str, value: Any) -> float:
    temperature = real(name, value, 0.0, 1e4)
    if 0 < temperature < 1e-3:
        raise UsageError(f"temperature must be 0 (greedy) or at least 0.001, got {shown(value)}")
    return temperature


def _top_k(name: str, value: Any) -> int:
    return integer(name, value, 0, 2**31 - 1)


def _logit_bias(name: str, value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{name} must map token ids to numbers, got {shown(value)}")
    biases = {}
    for key, bias in value.items():
        token = integer(f"a token id of {name}", key, 0, 2**31 - 1)
        banned = isinstance(bias, float) and bias == -math.inf
        biases[token] = float(bias) if banned else real(f"{name} of token {token}", bias, -1e6, 1e6)
    return biases


def _sampling(text: str, read: Callable[[str, Any], Any], *, is_filter: bool = False) -> dict[str, Any]:
    """Return the metadata of a field of `SamplingParams`: its help text, its check (which returns the normal form).

    is_filter: whether it drops tokens before noise is added, and so has no effect at temperature 0.
    """
    return {"help": text, "read": read, "is_filter": is_filter}


@dataclass(frozen=True)
class SamplingParams:
    """How logits become a token. Temperature 0 is greedy: no noise is added.

    Applied in this order: `logits_processors` (of the request), repetition / presence / frequency penalties, logit
    bias, constraint mask, temperature, top-n-sigma, top-k, typical-p, top-p, min-p, Gumbel noise, argmax. Each filter
    looks at the distribution that those before it left. Ties always go to the lowest token id.

    A new numeric option is a field here, and its meaning in the samplers: `ops/reference/sample.py`, and
    `ops/native/src/sample.h` and `sample.cpp`.
    """

    temperature: float = field(
        default=0.0, metadata=_sampling("Divides the logits; 0 is greedy, higher is more random.", _temperature)
    )
    top_k: int = field(
        default=0, metadata=_sampling("Keep the k most likely tokens; 0 keeps all.", _top_k, is_filter=True)
    )
    top_p: float = field(
        default=1.0,
        metadata=_sampling(
            "Keep the smallest set of most likely tokens whose mass reaches this.", _numbers(0.0, 1.0), is_filter=True
        ),
    )
    min_p: float = field(
        default=0.0,
        metadata=_sampling(
            "Keep tokens with at least this fraction of the largest probability.", _numbers(0.0, 1.0), is_filter=True
        ),
    )
    typical_p: float = field(
        default=1.0,
        metadata=_sampling(
            "Keep the smallest set of most typical tokens, whose information is nearest to the entropy, whose mass "
            "reaches this (arXiv:2202.00666).",
            _numbers(0.0, 1.0),
            is_filter=True,
        ),
    )
    top_n_sigma: float = field(
        default=0.0,
        metadata=_sampling(
            "Keep tokens within this many standard deviations of the largest logit (arXiv:2411.07641); 0 keeps all.",
            _numbers(0.0, 1e3),
            is_filter=True,
        ),
    )
    repetition_penalty: float = field(
        default=1.0,
        metadata=_sampling(
            "Divides positive and multiplies negative logits of tokens in prompt or output.", _numbers(0.01, 100.0)
        ),
    )
    presence_penalty: float = field(
        default=0.0,
        metadata=_sampling("Subtracted from the logit of every token in the output.", _numbers(-100.0, 100.0)),
    )
    frequency_penalty: float = field(
        default=0.0,
        metadata=_sampling(
            "Subtracted from a token's logit for each time it is in the output.", _numbers(-100.0, 100.0)
        ),
    )
    logit_bias: Mapping[int, float] = field(
        default_factory=dict,
        metadata=_sampling("Added to the logits of these token ids; -inf bans a token.", _logit_bias),
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            value = option.metadata["read"](option.name, getattr(self, option.name))
            object.__setattr__(self, option.name, value)
            if self.greedy and option.metadata["is_filter"] and value != option.default:
                raise UsageError(
                    f"{option.name}={value!r} has no effect at temperature 0 (greedy): raise temperature, or leave it "
                    "out"
                )

    @property
    def greedy(self) -> bool:
        """Whether no noise is added: the most likely token is taken."""
        return self.temperature == 0.0

    @property
    def penalises(self) -> bool:
        """Whether earlier tokens change the distribution, so that a row needs its history."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @cached_property
    def is_argmax(self) -> bool:
        """Whether the token is that of the largest raw logit, if no constraint forbids it."""
        return self.greedy and not self.penalises and not self.logit_bias

    @cached_property
    def numbers(self) -> tuple[float, ...]:
        """The fields that are numbers, in their order: a row of `SamplingBatch.params`."""
        return tuple(float(getattr(self, name)) for name in NUMERIC_PARAMS)


NUMERIC_PARAMS = tuple(option.name for option in fields(SamplingParams) if isinstance(option.default, int | float))


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise UsageError(f"{name} must be in [{low:g}, {high:g}], got {value!r}")


@dataclass(frozen=True, slots=True)
class Request:
    """One text to generate, in tokens: everything that decides what the text is, and where it ends."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: SamplingParams = SamplingParams()
    seed: int = 0  # 64 bits
    sample_index: int = 0
    stop_tokens: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    constraint: Constraint | None = None
    logits_processors: tuple[LogitsProcessor, ...] = ()
    logprobs: int | None = None  # None: none; k: the token's own and those of the k most likely
    max_draft: int = 8  # most draft nodes in a step
    prediction: tuple[int, ...] = ()  # the expected output, for the drafter that goes by it
    salt: bytes = b""  # texts of different salts never share cached blocks

    def __post_init__(self) -> None:
        if not self.prompt:
            raise UsageError("the prompt is empty: give at least one token")
        _within("max_new_tokens", self.max_new_tokens, 1, math.inf)
        _within("seed", self.seed, 0, 2**64 - 1)
        _within("sample_index", self.sample_index, 0, 2**32 - 1)
        _within("max_draft", self.max_draft, 0, 1024)
        if self.logprobs is not None:
            _within("logprobs", self.logprobs, 0, 1024)
        if "" in self.stop_strings:
            raise UsageError("a stop string is empty: leave it out, or give at least one character")


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor as a file stores it: bytes, their format, and the logical shape.

    data: uint8 [rows, bytes per row], usually memory-mapped; a row is the last dimension.
    format: "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K".
    shape: logical, row-major (out_features, in_features) as in PyTorch, or (n,).
    """

    name: str
    data: NDArray[np.uint8]
    format: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KVSpec:
    """Geometry and storage of the KV cache.

    int8 keeps one float32 scale per token, head and group of 32 channels
    (the whole head where its width is no multiple of 32).
    """

    num_layers: int
    num_kv_heads: int
    head_width: int
    format: KVFormat = "bf16"
    block_size: int = 32  # slots in a block

    @property
    def scale_group(self) -> int:
        """Channels that share an int8 scale."""
        return 32 if self.head_width % 32 == 0 else self.head_width

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values, all layers, scales included."""
        per_head = {
            "f32": 4 * self.head_width,
            "bf16": 2 * self.head_width,
            "int8": self.head_width + 4 * (self.head_width // self.scale_group),
        }[self.format]
        return 2 * self.num_layers * self.num_kv_heads * per_head


@dataclass(slots=True)
class Segment:
    """One request's share of a forward pass.

    tokens = pending tokens (a chain that continues the committed context), then draft nodes.
    parents[i] in [-1, i) is draft node i's parent; -1 is the last pending token; empty: no draft.
    Token j is stored in slot start + j; its position is start + j in the chain, and
    start + len(pending) + depth (root's children have depth 0) in the tree.
    A "tree" token sees the committed context, and its ancestors and itself in the segment.
    A "full" segment has no draft; its tokens see the committed context and the whole segment.
    The last `num_scored` tokens get logits.
    """

    blocks: Sequence[int]  # block table: slot s lives in blocks[s // block_size]; -1 was freed
    start: int  # committed length
    tokens: Sequence[int]
    parents: Sequence[int] = ()
    num_scored: int = 1
    kind: Literal["tree", "full"] = "tree"

    @property
    def num_pending(self) -> int:
        """Length of the chain before the draft."""
        return len(self.tokens) - len(self.parents)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's raw log-softmax (nothing applied), and that of the most likely tokens in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
