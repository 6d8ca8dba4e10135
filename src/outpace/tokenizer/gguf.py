"""A tokenizer from the metadata of a GGUF file (keys `tokenizer.*`).

The metadata is untrusted: what is missing, of a wrong type or out of range is a TokenizerError that names the key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from outpace.errors import TokenizerError
from outpace.tokenizer.parts import Parts

T = TypeVar("T")

# Values of tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

# How names in chat templates map to keys.
NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


@dataclass(frozen=True, slots=True)
class Pre:
    """A pre-tokenizer: how text is cut before byte-pair merges, and what its models do beside it."""

    split: Callable[[], pre_tokenizers.PreTokenizer]
    nfc: bool = False  # text is normalised first
    whole_words: bool = False  # a word that is a token is not merged from its bytes
    adds_bos: bool = False  # unless the file says otherwise


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _digits_then_gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _pattern(number: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    """Return the pre-tokenizer of Llama 3 and its relatives; they differ in how many digits make a word."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + number
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


PRE: dict[str, Pre] = {
    "default": Pre(_gpt2),
    "gpt-2": Pre(_gpt2),
    "gpt2": Pre(_gpt2),
    "smollm": Pre(_digits_then_gpt2),
    "qwen2": Pre(_pattern(r"\p{N}"), nfc=True),
    "llama-bpe": Pre(_pattern(r"\p{N}{1,3}"), whole_words=True, adds_bos=True),
}


def read_gguf(metadata: Mapping[str, Any]) -> Parts:
    """Return the tokenizer that `metadata` describes; raises TokenizerError."""
    fields = _Fields(metadata)
    build = _choose("tokenizer.ggml.model", fields.get("model", str), {"gpt2": _bpe, "llama": _sentencepiece})
    try:
        return build(fields)
    except TokenizerError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise TokenizerError(f"the GGUF tokenizer (tokenizer.ggml.*) cannot be built: {error}") from error


def _choose(key: str, given: str, table: Mapping[str, T]) -> T:
    if given not in table:
        raise TokenizerError(f"{key} is {given!r}, supported: {', '.join(sorted(table))}; use another conversion")
    return table[given]


class _Fields:
    """Typed, checked access to `tokenizer.ggml.*`, and to the tokens by kind."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        tokens = self.array("tokens", str)
        if not tokens:
            raise TokenizerError("tokenizer.ggml.tokens is missing or empty: this file has no tokenizer")
        self.tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
        self.vocab = {token: i for i, token in enumerate(self.tokens)}
        if len(self.vocab) != len(self.tokens):
            twice = next(i for i, token in enumerate(self.tokens) if self.vocab[token] != i)
            raise TokenizerError(f"tokenizer.ggml.tokens has {self.tokens[twice]!r} twice, expected each token once")
        self._types = np.array(self.array("token_type", int) or [NORMAL] * len(tokens))
        if len(self._types) != len(tokens):
            raise TokenizerError(f"tokenizer.ggml.token_type has {len(self._types)} entries for {len(tokens)} tokens")

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """Return a value; raises TokenizerError if it has another type, or is missing without a default."""
        value = self._metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, kind):
            given = "missing" if value is None else f"a {type(value).__name__}"
            raise TokenizerError(f"tokenizer.ggml.{name} is {given}, expected a {kind.__name__}")
        return value

    def array(self, name: str, kind: type) -> list[Any]:
        """Return an array as a list, empty if missing."""
        value = self._metadata.get(f"tokenizer.ggml.{name}", ())
        values = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(values, Sequence) or isinstance(values, str) or set(map(type, values)) - {kind}:
            raise TokenizerError(f"tokenizer.ggml.{name} is not an array of {kind.__name__}")
        return list(values)

    def id(self, name: str, default: int | None = None) -> int | None:
        """Return a token id, or `default` if missing; raises TokenizerError if it is no token."""
        if f"tokenizer.ggml.{name}" not in self._metadata:
            return default if default is not None and default < len(self.tokens) else None
        value = self.get(name, int)
        if not 0 <= value < len(self.tokens):
            raise TokenizerError(f"tokenizer.ggml.{name} is {value}, expected an id in [0, {len(self.tokens)})")
        return value

    def of_type(self, *types: int) -> list[int]:
        """Return the ids of all tokens of these types, ascending."""
        return [int(i) for i in np.flatnonzero(np.isin(self._types, types))]

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
    pre = _choose("tokenizer.ggml.pre", fields.get("pre", str, "default"), PRE)
    merges = [tuple(merge.split(" ")) for merge in fields.array("merges", str)]
    if set(map(len, merges)) - {2}:
        bad = next(" ".join(merge) for merge in merges if len(merge) != 2)
        raise TokenizerError(f"tokenizer.ggml.merges has {bad!r}, expected two tokens and a space between")
    backend = tokenizers.Tokenizer(models.BPE(fields.vocab, merges, ignore_merges=pre.whole_words))
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre.split()
    backend.decoder = decoders.ByteLevel()
    return _parts(fields, backend, pre.adds_bos, {key: fields.id(key) for key in _ID_KEYS})


def _sentencepiece(fields: _Fields) -> Parts:
    """Build SentencePiece BPE with byte fallback (tokenizer.ggml.model = llama)."""
    ids = {key: fields.id(key) for key in _ID_KEYS}
    ids |= {key: fields.id(key, usual) for key, usual in _LLAMA_IDS.items()}
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
    """Return all pairs of pieces that make a piece, the best score first: SentencePiece's order as BPE merges.

    Control and byte pieces take no part, so no text is ever merged into one.
    """
    scores = fields.array("scores", float)
    if len(scores) != len(fields.tokens):
        raise TokenizerError(f"tokenizer.ggml.scores has {len(scores)} entries for {len(fields.tokens)} tokens")
    score = {fields.tokens[i]: scores[i] for i in fields.of_type(NORMAL, USER_DEFINED)}
    found = [
        (score[piece], left, right)
        for piece in score
        for cut in range(1, len(piece))
        if (left := piece[:cut]) in score and (right := piece[cut:]) in score
    ]
    found.sort(key=lambda merge: -merge[0])  # stable: among equal scores the lower id goes first
    return [(left, right) for _, left, right in found]


def _parts(fields: _Fields, backend: tokenizers.Tokenizer, adds_bos: bool, ids: Mapping[str, int | None]) -> Parts:
    ends = [i for key in END_KEYS if (i := ids[key]) is not None]
    bos, eos = ids["bos_token_id"], ids["eos_token_id"]
    # Some conversions forget to mark the tokens that they name.
    control = {*fields.of_type(CONTROL, UNKNOWN), *ends, *(() if bos is None else (bos,))}
    defined = [i for i in fields.of_type(USER_DEFINED) if i not in control]
    backend.add_special_tokens([AddedToken(fields.tokens[i], normalized=False) for i in sorted(control)])
    backend.add_tokens([AddedToken(fields.tokens[i], normalized=False, special=False) for i in defined])
    adds_bos = fields.get("add_bos_token", bool, adds_bos)
    adds_eos = fields.get("add_eos_token", bool, False)
    return Parts(
        backend=backend,
        size=len(fields.tokens),
        prefix=(bos,) if adds_bos and bos is not None else (),
        suffix=(eos,) if adds_eos and eos is not None else (),
        bos_id=bos,
        eos_ids=frozenset(ends),
        named={name: fields.tokens[i] for name, key in NAMED.items() if (i := ids[key]) is not None},
        templates=fields.templates(),
        unused=frozenset(fields.of_type(UNUSED)),
    )
