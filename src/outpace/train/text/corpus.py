"""Training text on disk, as token ids: conversations in shards that are written once, and the batches made of them.

A folder holds `corpus.json`, which lists its shards, and two arrays for each of them: `00000.tokens.npy`, all token
ids one after another, and `00000.index.npy`, a row of `INDEX` for each conversation. A shard exists once the list names
it, and the list is replaced in one step: whoever is killed while appending leaves the corpus as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from outpace.errors import UsageError
from outpace.measure.output_file import save
from outpace.train.text.npy import read_array, save_array

MANIFEST = "corpus.json"
SCHEMA = 1
INDEX = np.dtype(
    [
        ("length", "<i4"),
        ("num_prompt", "<i4"),
        ("kind", "<i4"),  # into the corpus' list of kinds
        ("sampled", "?"),
        ("temperature", "<f8"),
        ("min_p", "<f8"),
        ("seed", "<u8"),
        ("key", "<u8"),  # conversations with one key are on the same side of every split
    ]
)
_RATIO = 1.125  # between the lengths of neighbouring buckets: padding costs an eighth at most


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    """Token ids [N] of a prompt and of the response that was written to it; the response is what is learned.

    kind: of text, for tables. temperature, min_p, seed: how the target drew a sampled response, so that its noise can
    be had again (`ops.philox`, by absolute position).
    """

    tokens: NDArray[np.int32]
    num_prompt: int
    sampled: bool
    kind: str
    temperature: float = 0.0
    min_p: float = 0.0
    seed: int = 0

    @property
    def key(self) -> int:
        """A number that equal prompts share."""
        return key_of(self.tokens[: self.num_prompt])


def key_of(tokens: Sequence[int] | NDArray[np.int32]) -> int:
    """Return 64 bits of the hash of token ids."""
    data = np.asarray(tokens, "<i4").tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def is_held_out(keys: NDArray[np.uint64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Return for each key whether it belongs to the held-out `fraction`: it depends on key and seed alone."""
    x = keys ^ np.uint64(key_of([seed & 0x7FFFFFFF, seed >> 31]))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x.astype(np.float64) < fraction * 2.0**64


@dataclass(frozen=True, slots=True)
class Shard:
    """One entry of a corpus' list. num_sources: the prompts that its conversations answer, those dropped included."""

    name: str
    conversations: int
    tokens: int
    num_sources: int


class Corpus(Sequence[Conversation]):
    """Conversations on disk: read as a sequence, extended by whole shards."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.vocabulary: str = manifest["vocabulary"]  # `Tokenizer.fingerprint`
        self.vocab_size: int = manifest["vocab_size"]
        self.kinds: list[str] = list(manifest["kinds"])
        self.shards = [Shard(**shard) for shard in manifest["shards"]]
        self._tokens: list[NDArray[Any]] = []
        self._index: list[NDArray[Any]] = []
        for shard in self.shards:
            self._take(shard)
        self._gather()

    @classmethod
    def create(cls, folder: Path, vocabulary: str, vocab_size: int) -> Corpus:
        """Begin an empty corpus in a folder, which is made where it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        corpus = cls(folder, {"vocabulary": vocabulary, "vocab_size": vocab_size, "kinds": [], "shards": []})
        corpus._save_manifest()
        return corpus

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Return the corpus in a folder; raises UsageError, with the reason, for what is none."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if not isinstance(manifest, dict) or manifest.pop("schema", None) != SCHEMA:
                raise ValueError(f"{MANIFEST} is not of schema {SCHEMA}")
            return cls(folder, manifest)
        except OSError as error:
            raise UsageError(f"{folder}: is no corpus ({error.strerror}: {error.filename})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{folder}: is no corpus, or a damaged one ({error})") from error

    @staticmethod
    def is_one(folder: Path) -> bool:
        """Whether a folder holds a corpus."""
        return (folder / MANIFEST).is_file()

    def append(
        self,
        conversations: Sequence[Conversation],
        *,
        keys: Sequence[int] | None = None,
        num_sources: int | None = None,
    ) -> None:
        """Write a shard. keys: in place of the conversations' own. num_sources: see `Shard`."""
        name = f"{len(self.shards):05}"
        for kind in dict.fromkeys(conversation.kind for conversation in conversations):
            if kind not in self.kinds:
                self.kinds.append(kind)
        rows = np.zeros(len(conversations), INDEX)
        for i, own in enumerate(conversations):
            key = own.key if keys is None else keys[i]
            number = self.kinds.index(own.kind)
            rows[i] = (len(own.tokens), own.num_prompt, number, own.sampled, own.temperature, own.min_p, own.seed, key)
        tokens = np.concatenate([np.zeros(0, np.int32), *(own.tokens for own in conversations)])
        save_array(self.folder / f"{name}.tokens.npy", tokens.astype("<u2" if self.vocab_size <= 1 << 16 else "<i4"))
        save_array(self.folder / f"{name}.index.npy", rows)
        sources = len(conversations) if num_sources is None else num_sources
        shard = Shard(name, len(conversations), len(tokens), sources)
        self._take(shard)
        self.shards.append(shard)
        self._save_manifest()
        self._gather()

    @property
    def num_sources(self) -> int:
        """The prompts that were answered, those whose responses were dropped included."""
        return sum(shard.num_sources for shard in self.shards)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of tokens of each conversation."""
        return self._rows["length"].astype(np.int64)

    @property
    def num_learned(self) -> int:
        """Tokens of all responses."""
        return int((self._rows["length"] - self._rows["num_prompt"]).sum(dtype=np.int64))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> Subset: ...
    def __getitem__(self, index: int | slice) -> Conversation | Subset:
        if isinstance(index, slice):
            return Subset(self, np.arange(len(self))[index])
        index = range(len(self))[index]
        shard = int(np.searchsorted(self._firsts, index, "right")) - 1
        row, start = self._rows[index], int(self._starts[index])
        tokens = self._tokens[shard][start : start + int(row["length"])].astype(np.int32)
        return Conversation(
            tokens,
            int(row["num_prompt"]),
            bool(row["sampled"]),
            self.kinds[row["kind"]],
            float(row["temperature"]),
            float(row["min_p"]),
            int(row["seed"]),
        )

    def split(self, held_out: float, seed: int) -> tuple[Subset, Subset]:
        """Return the conversations to learn from and the held-out ones: by the hash of the prompt, whatever is added.

        held_out: the fraction of prompts, in [0, 1].
        """
        away = is_held_out(self._rows["key"], held_out, seed)
        return Subset(self, np.flatnonzero(~away)), Subset(self, np.flatnonzero(away))

    def _take(self, shard: Shard) -> None:
        """Map a shard's arrays; raises ValueError where they are not what the list says."""
        tokens = read_array(self.folder / f"{shard.name}.tokens.npy")
        index = read_array(self.folder / f"{shard.name}.index.npy")
        if index.dtype != INDEX or index.shape != (shard.conversations,) or tokens.ndim != 1:
            raise ValueError(f"shard {shard.name}: its arrays have other types or shapes than the list says")
        lengths, prompts, kinds = (index[name] for name in ("length", "num_prompt", "kind"))
        if tokens.dtype.kind not in "iu" or len(tokens) != shard.tokens or lengths.sum(dtype=np.int64) != shard.tokens:
            raise ValueError(f"shard {shard.name}: its lengths do not add up to its {len(tokens)} tokens")
        if len(index) and not (prompts.min() >= 1 and (prompts <= lengths).all() and lengths.min() >= 1):
            raise ValueError(f"shard {shard.name}: a prompt is empty, or longer than its conversation")
        if len(index) and not 0 <= kinds.min() <= kinds.max() < len(self.kinds):
            raise ValueError(f"shard {shard.name}: names a kind of text that the list has not")
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < self.vocab_size:
            raise ValueError(f"shard {shard.name}: has token ids outside [0, {self.vocab_size})")
        self._tokens.append(tokens)
        self._index.append(index)

    def _gather(self) -> None:
        self._rows = np.concatenate([np.zeros(0, INDEX), *self._index])
        self._firsts = np.cumsum([0, *map(len, self._index)])[:-1]
        starts = [np.cumsum(own["length"], dtype=np.int64) - own["length"] for own in self._index]
        self._starts = np.concatenate([np.zeros(0, np.int64), *starts])

    def _save_manifest(self) -> None:
        shards = [asdict(shard) for shard in self.shards]
        manifest = {"schema": SCHEMA, "vocabulary": self.vocabulary, "vocab_size": self.vocab_size}
        save(self.folder / MANIFEST, json.dumps(manifest | {"kinds": self.kinds, "shards": shards}, indent=1) + "\n")


class Subset(Sequence[Conversation]):
    """Some conversations of a corpus, by their places."""

    def __init__(self, corpus: Corpus, places: NDArray[np.int64]) -> None:
        self.corpus, self.places = corpus, places

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of tokens of each conversation."""
        return self.corpus.lengths[self.places]

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> Subset: ...
    def __getitem__(self, index: int | slice) -> Conversation | Subset:
        if isinstance(index, slice):
            return Subset(self.corpus, self.places[index])
        return self.corpus[int(self.places[index])]


def lengths_of(conversations: Sequence[Conversation]) -> NDArray[np.int64]:
    """Return the number of tokens of each conversation."""
    if isinstance(conversations, Corpus | Subset):
        return conversations.lengths
    return np.array([len(own.tokens) for own in conversations], np.int64)


def digest_of(conversations: Sequence[Conversation]) -> str:
    """Return what tells one training text from another: the lengths of all conversations, and some of their tokens."""
    digest = hashlib.sha256(lengths_of(conversations).astype("<i8").tobytes())
    for i in range(0, len(conversations), max(1, len(conversations) // 64)):
        digest.update(conversations[i].tokens.astype("<i4").tobytes())
    return digest.hexdigest()


class Batches:
    """Which conversations belong to which step of training: a pure function of (lengths, seed, step).

    Every epoch draws the conversations anew and cuts them into the same number of batches: of similar length together,
    and of at most `tokens_per_batch` tokens, padding included (a longer conversation is a batch alone).
    """

    def __init__(self, conversations: Sequence[Conversation], tokens_per_batch: int, seed: int) -> None:
        if not len(conversations):
            raise UsageError("there is nothing to learn from: the training text is empty")
        self._seed = seed
        lengths = np.maximum(lengths_of(conversations), 1)
        self._buckets = np.ceil(np.log(lengths) / np.log(_RATIO)).astype(np.int64)
        self._bounds = list(_cut(np.sort(self._buckets), tokens_per_batch))
        self._epoch = -1
        self._order = self._turn = np.zeros(0, np.int64)  # of that epoch: conversations by length, batches as they come

    @property
    def per_epoch(self) -> int:
        """Batches in which every conversation occurs once."""
        return len(self._bounds)

    def batch(self, step: int) -> list[int]:
        """Return the places of the conversations of a step, counted from 0."""
        epoch, number = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([self._seed, epoch])
            drawn = rng.permutation(len(self._buckets))
            self._order = drawn[np.argsort(self._buckets[drawn], kind="stable")]
            self._turn = rng.permutation(self.per_epoch)
            self._epoch = epoch
        start, end = self._bounds[self._turn[number]]
        return [int(place) for place in self._order[start:end]]


def _cut(buckets: NDArray[np.int64], tokens: int) -> Iterable[tuple[int, int]]:
    """Cut conversations, sorted by bucket, into batches whose number times the longest length is at most `tokens`."""
    longest = np.floor(_RATIO ** buckets.astype(np.float64) + 1e-6)
    start = 0
    while start < len(buckets):
        end = start + 1
        while end < len(buckets) and (end + 1 - start) * longest[end] <= tokens:
            end += 1
        yield start, end
        start = end
