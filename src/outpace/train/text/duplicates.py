"""Duplicates among prompts, exact and near, and prompts that share words with held-out ones.

Near: at least `SIMILARITY` of the 3-word stretches of two prompts together are in both (Jaccard); of prompts under
`SHORT` words only the same ones are duplicates. Candidates come from MinHash bands (Broder 1997), so a pair of that
similarity is missed less than once in 500,000 times, and no pair is called near that is not.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

SIMILARITY = 0.7
SHORT = 12  # words: "the capital of Italy" is another question than "the capital of France"
NGRAM = 13  # words that a training prompt must not share with a held-out one
TEMPLATE = 8  # prompts that share a stretch of words before it counts as a template's
_STRETCH, _BANDS, _ROWS = 3, 32, 3  # all but (1 - 0.7^3)^32 = 1.4e-6 of the pairs at 0.7
_WORD = re.compile(r"[\u3040-\u9fff]|[^\W\u3040-\u9fff]+")
_PRIME = np.uint64((1 << 31) - 1)


def words_of(text: str) -> list[str]:
    """Return a text's words in lower case, kana and Han characters one by one; punctuation does not count."""
    return _WORD.findall(text.casefold())


def stretches(words: Sequence[str], length: int) -> set[int]:
    """Return 64-bit hashes of all stretches of `length` words; of the whole where there are fewer."""
    if len(words) < length:
        return {_hash(words)}
    return {_hash(words[i : i + length]) for i in range(len(words) - length + 1)}


class Seen:
    """Texts that were seen, to ask of a new one whether it is (nearly) one of them."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1997)
        self._factors = rng.integers(1, 1 << 31, (2, _BANDS * _ROWS, 1), np.uint64)
        self._exact: set[int] = set()
        self._stretches: list[set[int]] = []
        self._bands: dict[tuple[int, bytes], list[int]] = {}

    def add(self, text: str) -> str | None:
        """Take a text in and return None; or return why not: "exact", "near"."""
        words = words_of(text)
        whole = _hash(words)
        if whole in self._exact:
            return "exact"
        if len(words) < SHORT:
            self._exact.add(whole)
            return None
        own = stretches(words, _STRETCH)
        bands = list(enumerate(map(bytes, self._signature(own))))
        for place in sorted({place for band in bands for place in self._bands.get(band, ())}):
            other = self._stretches[place]
            if len(own & other) >= SIMILARITY * len(own | other):
                return "near"
        self._exact.add(whole)
        for band in bands:
            self._bands.setdefault(band, []).append(len(self._stretches))
        self._stretches.append(own)
        return None

    def _signature(self, hashes: set[int]) -> NDArray[np.uint64]:
        """Return the smallest of each of the hash functions, [bands, rows]."""
        x = np.fromiter(hashes, np.uint64, len(hashes)) >> np.uint64(33)
        factor, offset = self._factors
        smallest: NDArray[np.uint64] = ((x * factor + offset) % _PRIME).min(axis=1)
        return smallest.reshape(_BANDS, _ROWS)


def overlapping(texts: Sequence[str], held_out: Iterable[str]) -> list[bool]:
    """Return for each text whether it shares `NGRAM` words in a row with a held-out one (or is the same, if shorter).

    What `TEMPLATE` or more of all these texts share is a template ("Summarise the following ...") and does not count,
    unless it is a whole held-out text.
    """
    own = [stretches(words_of(text), NGRAM) for text in texts]
    away = [stretches(words_of(text), NGRAM) for text in held_out]
    counts = Counter(stretch for found in (*own, *away) for stretch in found)
    banned = {stretch for found in away for stretch in found if counts[stretch] < TEMPLATE or len(found) == 1}
    return [not banned.isdisjoint(found) for found in own]


def _hash(words: Sequence[str]) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest(), "little")
