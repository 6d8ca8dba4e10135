"""A tokenizer from the metadata of a GGUF file (keys `tokenizer.*`).

The metadata is untrusted: what is missing, of a wrong type or out of range is a TokenizerError that names the key.
What a tokenizer needs is never guessed, for a guess would be another tokenizer:

    model, tokens, token_type           always
    pre, merges                         where model is "gpt2"
    scores                              where model is "llama"
    bos_token_id, eos_token_id          where one of them is to stand around raw text

An id that means "none" (-1 in whatever width, or the number of tokens, which some converters write) is as good as
absent, with a warning. End tokens are those that the file names, and those that are known by their text.
"""

from __future__ import annotations

import math
import warnings
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from operator import methodcaller
from typing import Any, TypeVar

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from outpace.errors import TokenizerError
from outpace.tokenizer.library import MAX_VOCABULARY, failing_as
from outpace.tokenizer.parts import Parts
from outpace.tokenizer.pre_tokenizer import PRE
from outpace.tokenizer.sentencepiece import merges
from outpace.weights.gguf import means_none
from outpace.weights.values import shown

T = TypeVar("T")

_SPLIT = 1024  # merges that are taken apart at once

# Values of tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_NO_PRE = "default"  # the pre-tokenizer of files from before there was a key for it

# How names in chat templates map to keys.
NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")

# Tokens that end a text or a turn, whatever the file's keys say: those of llama.cpp, but for marks of infilling and
# those of Gemma 4. The first group always ends, the second, which may also be words of a text (a tag of HTML), unless
# they are marked as text.
_ENDS = {
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>"),
    *("<end_of_utterance>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<｜end▁of▁sentence｜>"),
}
_MARKED_ENDS = {"</s>", "<eos>", "[EOS]", "[EOT]", "<EOT>", "_<EOT>", "[e~["}
# What llama.cpp knows by the model's name (llama_vocab::impl::load): in files of
# Phi-3 the white space behind a special token goes, but for these. Folders say it token by token (`rstrip`).
_STRIPPING_NAMES, _NOT_STRIPPING = ("phi-3", "phi3"), {"<unk>", "<s>", "<|endoftext|>"}
# In these formats <|end|> ends a message of several.
_INNER_END, _OUTER_ENDS = "<|end|>", ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"})


def gguf_parts(metadata: Mapping[str, Any]) -> Parts:
    """Return the tokenizer that `metadata` describes; raises TokenizerError."""
    fields = _Fields(metadata)
    build = _choose("tokenizer.ggml.model", fields.get("model", str), {"gpt2": _bpe, "llama": _sentencepiece})
    with failing_as("the GGUF tokenizer (tokenizer.ggml.*) cannot be built"):
        return build(fields)


def _choose(key: str, given: str, table: Mapping[str, T]) -> T:
    if given not in table:
        raise TokenizerError(f"{key} is {shown(given)}, supported: {', '.join(sorted(table))}; use another conversion")
    return table[given]


class _Fields:
    """Typed, checked access to `tokenizer.ggml.*`, and to the tokens by kind."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        tokens = self.array("tokens", str)
        if not tokens:
            raise TokenizerError("tokenizer.ggml.tokens is empty: this file has no tokenizer")
        if len(tokens) > MAX_VOCABULARY:
            raise TokenizerError(f"tokenizer.ggml.tokens has {len(tokens)} entries, at most {MAX_VOCABULARY} can be")
        self.tokens = tokens if all(tokens) else [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
        self.vocab = {token: i for i, token in enumerate(self.tokens)}
        if len(self.vocab) != len(self.tokens):
            twice = next(token for i, token in enumerate(self.tokens) if self.vocab[token] != i)
            raise TokenizerError(f"tokenizer.ggml.tokens has {shown(twice)} twice, expected each token once")
        self._types = np.array(self.array("token_type", int, len(tokens)))

    def has(self, name: str) -> bool:
        """Whether the file has a key."""
        return f"tokenizer.ggml.{name}" in self._metadata

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """Return a value; raises TokenizerError if it has another type, or is missing without a default."""
        value = self._metadata.get(f"tokenizer.ggml.{name}", default)
        if type(value) is not kind:
            given = "missing" if value is None else f"a {type(value).__name__}"
            raise TokenizerError(f"tokenizer.ggml.{name} is {given}, expected a {kind.__name__}")
        return value

    def array(self, name: str, kind: type, length: int | None = None) -> Any:
        """Return an array of one kind, and of one entry for each token where `length` says so."""
        key = f"tokenizer.ggml.{name}"
        if key not in self._metadata:
            raise TokenizerError(f"{key} is missing: convert the model again, with a current converter")
        values = self._metadata[key]
        values = values.tolist() if isinstance(values, np.ndarray) else values
        numbers = isinstance(values, array) and (kind is float or (kind is int and values.typecode not in "fd"))
        if not numbers and (not isinstance(values, list) or set(map(type, values)) - {kind}):
            raise TokenizerError(f"{key} is not an array of {kind.__name__}")
        if length is not None and len(values) != length:
            raise TokenizerError(f"{key} has {len(values)} entries for {length} tokens")
        return values

    def id(self, name: str, default: int | None = None) -> int | None:
        """Return a token id, or `default` if there is none; raises TokenizerError for what cannot be an id."""
        default = default if default is not None and default < len(self.tokens) else None
        if not self.has(name):
            return default
        value = self.get(name, int)
        if means_none(value, len(self.tokens)):
            there = "" if default is None else f", so it is {default}, as usual"
            warnings.warn(f"tokenizer.ggml.{name} is {value}, which means that there is none{there}", stacklevel=2)
            return default
        if not 0 <= value < len(self.tokens):
            raise TokenizerError(f"tokenizer.ggml.{name} is {value}, expected an id in [0, {len(self.tokens)})")
        return value

    def of_type(self, *types: int) -> list[int]:
        """Return the ids of all tokens of these types, ascending."""
        ids: list[int] = np.flatnonzero(np.isin(self._types, types)).tolist()
        return ids

    def ends_by_name(self) -> list[int]:
        """Return the ids of all tokens that are known by their text to end a text or a turn."""
        text = set(self.of_type(NORMAL))
        found = {token: i for token in _ENDS if (i := self.vocab.get(token)) is not None}
        found |= {token: i for token in _MARKED_ENDS if (i := self.vocab.get(token)) is not None and i not in text}
        if any(outer <= found.keys() for outer in _OUTER_ENDS):
            found.pop(_INNER_END, None)
        return sorted(found.values())

    def added(self, i: int, is_special: bool) -> AddedToken:
        """Return a token that is found in a text before the text is cut, with what the model's name says of it."""
        name, token = self._metadata.get("general.name"), self.tokens[i]
        is_of_phi = isinstance(name, str) and any(part in name.lower() for part in _STRIPPING_NAMES)
        strips = is_of_phi and token not in _NOT_STRIPPING
        return AddedToken(token, rstrip=strips, normalized=False, special=is_special)

    def templates(self) -> dict[str, str]:
        """Return the chat templates by name."""
        start = "tokenizer.chat_template"
        found = {key: value for key, value in self._metadata.items() if key == start or key.startswith(start + ".")}
        for key, value in found.items():
            if not isinstance(value, str):
                raise TokenizerError(f"{key} is a {type(value).__name__}, expected a string")
        return {key[len(start) + 1 :] or "default": value for key, value in found.items()}


def _bpe(fields: _Fields) -> Parts:
    """Build byte-level BPE (tokenizer.ggml.model = gpt2)."""
    pre = _choose("tokenizer.ggml.pre", fields.get("pre", str, _NO_PRE), PRE)
    if not fields.has("pre"):
        warnings.warn(
            "tokenizer.ggml.pre is missing: text is cut in a way that probably no model was trained with, as llama.cpp "
            "does it then, and what this one writes GETS WORSE: use a newer conversion",
            stacklevel=2,
        )
    model = models.BPE(fields.vocab, _Pairs(fields.array("merges", str)), ignore_merges=pre.whole_words)
    backend = tokenizers.Tokenizer(model)
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre.split()
    backend.decoder = decoders.ByteLevel()
    return _parts(fields, backend, pre.adds_bos, {key: fields.id(key) for key in _ID_KEYS})


class _Pairs(Sequence[tuple[str, str]]):
    """Merges as pairs of tokens, which are there only while they are read: all at once, they take 30 MB.

    Raises TokenizerError for a merge that is no pair.
    """

    def __init__(self, merges: list[str]) -> None:
        self._merges = merges
        if set(map(methodcaller("count", " "), merges)) - {1}:
            bad = next(merge for merge in merges if merge.count(" ") != 1)
            raise TokenizerError(f"tokenizer.ggml.merges has {shown(bad)}, expected two tokens and a space between")

    def __len__(self) -> int:
        return len(self._merges)

    def __getitem__(self, index: Any) -> Any:
        return [*self][index]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return chain.from_iterable(map(self._some, range(0, len(self._merges), _SPLIT)))

    def _some(self, start: int) -> Iterator[tuple[str, str]]:
        parts = " ".join(self._merges[start : start + _SPLIT]).split(" ")  # faster than one by one
        return zip(parts[::2], parts[1::2], strict=True)


def _sentencepiece(fields: _Fields) -> Parts:
    """Build SentencePiece BPE with byte fallback (tokenizer.ggml.model = llama)."""
    ids = {key: fields.id(key, _LLAMA_IDS.get(key)) for key in _ID_KEYS}
    unknown = ids["unknown_token_id"]
    backend = tokenizers.Tokenizer(
        models.BPE(
            fields.vocab,
            _merges(fields),
            unk_token=None if unknown is None else fields.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    spaces: list[Any] = [normalizers.Replace(" ", "▁")]
    if fields.get("add_space_prefix", bool, True):
        spaces.insert(0, normalizers.Prepend("▁"))
        steps.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(spaces)
    backend.decoder = decoders.Sequence(steps)
    return _parts(fields, backend, True, ids)


_ID_KEYS = tuple(dict.fromkeys((*NAMED.values(), *END_KEYS)))
_LLAMA_IDS = {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # where the file is silent


def _merges(fields: _Fields) -> list[tuple[str, str]]:
    """Return the merges of all pieces that are text.

    Control and byte pieces take no part, so no text is ever merged into one.
    """
    scores = fields.array("scores", float, len(fields.tokens))
    if any(map(math.isnan, scores)):
        raise TokenizerError("tokenizer.ggml.scores has an entry that is no number")
    return merges({fields.tokens[i]: scores[i] for i in fields.of_type(NORMAL, USER_DEFINED)})


def _parts(fields: _Fields, backend: tokenizers.Tokenizer, adds_bos: bool, ids: Mapping[str, int | None]) -> Parts:
    ends = {i for key in END_KEYS if (i := ids[key]) is not None} | set(fields.ends_by_name())
    bos = ids["bos_token_id"]
    # Some conversions forget to mark the tokens that they name.
    control = {*fields.of_type(CONTROL, UNKNOWN), *ends, *(() if bos is None else (bos,))}
    defined = [i for i in fields.of_type(USER_DEFINED) if i not in control]
    backend.add_special_tokens([fields.added(i, True) for i in sorted(control)])
    backend.add_tokens([fields.added(i, False) for i in defined])
    return Parts(
        backend=backend,
        size=len(fields.tokens),
        prefix=_around(fields, "bos", adds_bos, ids),
        suffix=_around(fields, "eos", False, ids),
        bos_id=bos,
        eos_ids=frozenset(ends),
        named={name: fields.tokens[i] for name, key in NAMED.items() if (i := ids[key]) is not None},
        templates=fields.templates(),
        unused=frozenset(fields.of_type(UNUSED)),
    )


def _around(fields: _Fields, kind: str, default: bool, ids: Mapping[str, int | None]) -> tuple[int, ...]:
    """Return the token that is to stand before (bos) or after (eos) raw text, if one is."""
    if not fields.get(f"add_{kind}_token", bool, default):
        return ()
    token = ids[f"{kind}_token_id"]
    if token is None:
        raise TokenizerError(
            f"tokenizer.ggml.{kind}_token_id is missing, and this tokenizer adds that token to a text: convert the "
            f"model again, or set tokenizer.ggml.add_{kind}_token to false"
        )
    return (token,)
