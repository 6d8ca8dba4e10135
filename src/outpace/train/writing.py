"""Texts written by the target on an accelerator, thousands at once, as the engine would write them.

A token is the one that the engine would draw with the same seed, but for last bits: logits come from
`EmulatedNetwork`, noise is Philox's by (seed, absolute position, token). So a text is a function of its prompt and its
seed as far as PyTorch's products give a row the same bits whatever shares the call: not quite, so that two near-equal
scores may change places. Nothing waits for the device but every `_CHECK` tokens, when texts that have ended leave.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outpace.train.networks.emulated import EmulatedNetwork, Kept
from outpace.train.text.loops import KEPT, LONGEST_PERIOD
from outpace.types import TOKEN_STREAM

_ROWS = 4096  # texts at once: then the arithmetic, not starting it, takes the time
_KEPT_BYTES = 48 << 30  # of keys and values
_PREFILL = 65536  # tokens of prompts in a pass
_CHECK = 32  # tokens between two looks at which texts have ended
_LIVE = 0.85  # share of texts still being written below which the others leave
_SLOTS = 64  # what is read of the keys and values grows in such pieces
_GROUP, _CANDIDATES = 64, 128  # tokens that are compared together; likely tokens that can be drawn
_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """What is to be continued, and how tokens are drawn. temperature 0: greedy."""

    tokens: Sequence[int] | NDArray[np.int32]
    temperature: float
    min_p: float
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """A response [N], a stop token at its end included. useful: tokens before it repeats itself (`cut_loop`)."""

    tokens: NDArray[np.int32]
    useful: int


class TextWriter:
    """Continues texts on one network. stop_tokens: end a text. max_tokens: of a response.

    rows: most texts at once; fewer where their keys and values would be too large.
    """

    def __init__(
        self, network: EmulatedNetwork, stop_tokens: Sequence[int], max_tokens: int, rows: int = _ROWS
    ) -> None:
        self._network, self._max_tokens, self._rows = network, max_tokens, rows
        self._stops = torch.tensor(sorted(stop_tokens), device=network.device)

    def write(self, asks: Sequence[Ask]) -> list[Written]:
        """Return the response to each."""
        found: dict[int, Written] = {}
        for part in self._batches([len(ask.tokens) for ask in asks]):
            found |= zip(part, self._write([asks[i] for i in part]), strict=True)
        return [found[i] for i in range(len(asks))]

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield the places of texts that are written together: of similar length, the longest first."""
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        while order:
            size = (lengths[order[0]] + self._max_tokens) * Kept.bytes_per_token(self._network.config)
            rows = max(1, min(self._rows, _KEPT_BYTES // size))
            yield order[:rows]
            order = order[rows:]

    @torch.no_grad()
    def _write(self, asks: Sequence[Ask]) -> list[Written]:
        network, device = self._network, self._network.device
        lengths = [len(ask.tokens) for ask in asks]
        longest = max(lengths)
        capacity = -(-(longest + self._max_tokens) // _SLOTS) * _SLOTS
        kept = Kept(network.config, len(asks), capacity, network.dtype, device)
        hidden = self._read(asks, kept)
        rows = _Rows.of(asks, device)
        out = torch.zeros(len(asks), self._max_tokens, dtype=torch.int64, device=device)
        for i in range(self._max_tokens):
            tokens = rows.draw(network.logits(hidden))
            out[rows.places, i] = tokens
            rows.ended |= torch.isin(tokens, self._stops)
            if i + 1 == self._max_tokens:
                break
            if (i + 1) % _CHECK == 0:
                rows.ended |= is_looping(out.index_select(0, rows.places)[:, : i + 1])
                live = torch.nonzero(~rows.ended).flatten()
                if not len(live):
                    break
                if len(live) < _LIVE * len(rows.ended):
                    longest = max(lengths[place] for place in rows.places[live].tolist())
                    kept.select(live)
                    rows, tokens = rows.select(live), tokens.index_select(0, live)
            size = min(-(-(longest + i + 1) // _SLOTS) * _SLOTS, capacity)
            hidden = network.step(tokens, rows.positions, kept, size)
            rows.positions = rows.positions + 1
        ends = self._ends(out)
        useful = loop_ends(out, ends)
        packed = torch.cat([ends[:, None], useful[:, None], out], dim=1).to(torch.int32).cpu().numpy()
        return [Written(row[2 : 2 + row[0]], int(row[1])) for row in packed]

    def _read(self, asks: Sequence[Ask], kept: Kept) -> Tensor:
        """Return the final norm's output behind each prompt, [B, D]; `kept` takes what their tokens keep."""
        network, found, first = self._network, [], 0
        while first < len(asks):
            some = asks[first : first + max(1, _PREFILL // len(asks[first].tokens))]  # the longest comes first
            padded = np.zeros((len(some), len(some[0].tokens)), np.int64)
            for row, ask in zip(padded, some, strict=True):
                row[: len(ask.tokens)] = ask.tokens
            last = torch.tensor([len(ask.tokens) - 1 for ask in some], device=network.device)
            (states,) = network(
                torch.from_numpy(padded).to(network.device), (network.config.num_layers,), kept, first
            ).values()
            found.append(network.normed(states[torch.arange(len(some), device=network.device), last]))
            first += len(some)
        return torch.cat(found)

    def _ends(self, out: Tensor) -> Tensor:
        """Return the length of each response: up to its first stop token."""
        is_stop = torch.isin(out, self._stops)
        first = torch.where(is_stop.any(1), is_stop.int().argmax(1) + 1, out.shape[1])
        return first.to(torch.int64)


@dataclass(slots=True)
class _Rows:
    """The texts that are being written. places: among those asked for. positions: of the tokens to be drawn."""

    places: Tensor
    positions: Tensor
    temperature: Tensor
    min_p: Tensor
    is_sampled: Tensor
    keys: Tensor  # [B, 2], the halves of each seed
    ended: Tensor

    @classmethod
    def of(cls, asks: Sequence[Ask], device: torch.device) -> _Rows:
        halves = [(ask.seed & _MASK, ask.seed >> 32) for ask in asks]
        temperature = torch.tensor([ask.temperature or 1.0 for ask in asks], dtype=torch.float32, device=device)
        return cls(
            torch.arange(len(asks), device=device),
            torch.tensor([len(ask.tokens) for ask in asks], device=device),
            temperature,
            torch.tensor([math.log(ask.min_p) if ask.min_p else -math.inf for ask in asks], device=device),
            torch.tensor([ask.temperature > 0 for ask in asks], device=device),
            torch.tensor(halves, dtype=torch.int64, device=device),
            torch.zeros(len(asks), dtype=torch.bool, device=device),
        )

    def select(self, rows: Tensor) -> _Rows:
        return _Rows(*(getattr(self, name).index_select(0, rows) for name in self.__slots__))

    def draw(self, logits: Tensor) -> Tensor:
        """Return the next token of each text, [B], for logits [B, V]."""
        values, tokens = likely(logits)
        scaled = values / self.temperature[:, None]
        noise = gumbel(self.keys, self.positions, tokens)
        scores = scaled + torch.where(self.is_sampled[:, None], noise, 0.0)
        scores = scores.masked_fill(scaled < scaled[:, :1] + self.min_p[:, None], -math.inf)
        return tokens.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0]


def likely(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the most likely tokens of each row [B, V] and their logits, the best first, `_CANDIDATES` at most.

    The best of all are in the groups whose best are best, so only these are sorted.
    """
    size = logits.shape[1]
    if size % _GROUP:
        logits = torch.nn.functional.pad(logits, (0, -size % _GROUP), value=-math.inf)
    groups = logits.reshape(len(logits), -1, _GROUP)
    best = groups.amax(2).topk(min(_CANDIDATES, groups.shape[1]), dim=1).indices
    some = groups.gather(1, best[..., None].expand(-1, -1, _GROUP)).flatten(1)
    values, places = some.topk(min(_CANDIDATES, size), dim=1)
    return values, best.gather(1, places // _GROUP) * _GROUP + places % _GROUP


def gumbel(keys: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """Return the noise of tokens [B, n] at each row's position [B], as `ops.philox.gumbel` makes it; float32."""
    c1 = tokens >> 2
    c0, c2, c3 = positions[:, None].expand_as(c1), torch.zeros_like(c1), torch.full_like(c1, TOKEN_STREAM)
    k0, k1 = keys[:, :1], keys[:, 1:]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # 64 bits of the product, whatever its sign
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    bits = torch.stack([c0, c1, c2, c3], dim=-1).gather(-1, (tokens & 3)[..., None])[..., 0]
    return (-torch.log(-torch.log((bits.double() + 0.5) * 2.0**-32))).float()


def is_looping(out: Tensor) -> Tensor:
    """Return which responses [B, n] end in a loop, as `cut_loop` understands it."""
    size = out.shape[1]
    found = torch.zeros(len(out), dtype=torch.bool, device=out.device)
    for period in range(1, LONGEST_PERIOD + 1):
        first = size - max(KEPT, period) - 1
        if first >= period:
            found |= (out[:, first:] == out[:, first - period : size - period]).all(1)
    return found


def loop_ends(out: Tensor, ends: Tensor) -> Tensor:
    """Return `cut_loop` of each response out[i, : ends[i]], [B]."""
    found, places = ends, torch.arange(out.shape[1], device=out.device)
    for period in range(1, min(LONGEST_PERIOD, out.shape[1] - 1) + 1):
        at, most = places[period:], max(KEPT, period)
        same = (out[:, period:] == out[:, :-period]) & (at < ends[:, None])
        breaks = torch.where(same, -1, at - period).cummax(1).values  # the last place in `same` that is none
        is_long = at - period - breaks == most + 1
        start = torch.where(is_long, at - most, out.shape[1] + LONGEST_PERIOD)
        found = torch.minimum(found, start.amin(1) + KEPT)
    return found
