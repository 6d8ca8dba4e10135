"""Say in GGUF's words what a folder's tokenizer is: the reverse of `outpace.tokenizer.gguf`.

The entries are those that llama.cpp's converter writes. The pre-tokenizer's name is found by what it does: the first
of `PRE` that cuts a text full of traps as the folder's does. What was written is read back and must encode that text
alike; a tokenizer that GGUF files cannot describe is refused.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outpace.errors import TokenizerError
from outpace.tokenizer.folder import folder_parts
from outpace.tokenizer.gguf import BYTE, CONTROL, NAMED, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, gguf_parts
from outpace.tokenizer.library import vocabulary
from outpace.tokenizer.parts import Parts
from outpace.tokenizer.pre_tokenizer import PRE

TRAPS = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n\r\n line's end \r\n\r\n{ x;\n\t};\r\n"
    "Hello world, it's 1 12 123 1234 12345 3.14 "
    "x2y3z helloWorld HTTPServer aBC ABc McDonald's WE'LL they'Ve i'M Don'T 'twas ''' \"\" ``` ...!!??;; a/b//c (x) "
    "<|x|> </s> a_b__c #$%^&*+=~ €5 £7 naïve café ÉCOLE Ünï øre übel nai\u0308ve ﬁ ½ ² Ⅷ ٣٤٥ ١٢٣٤ हिन्दी में क्षेत्र "
    "ภาษาไทย 我想在apple工作1314151天 日本語のテスト 한국어 텍스트 Привет МИР ёлка Ελληνικά ǅ 🚀 👩‍👩‍👧 ✅🦙 “quoted”"
    "   three   spaces\tand\u00a0nbsp\u3000wide ====== ------ 'end '"
)


def gguf_tokenizer(folder: Path, vocab_size: int, name: str) -> dict[str, Any]:
    """Return the metadata that describe a folder's tokenizer; raises TokenizerError where none can.

    vocab_size: the model's number of tokens; ids that stand for nothing become unused tokens. name: the file's
    `general.name`, by which readers know what tokens of Phi-3 do.
    """
    parts = folder_parts(folder)
    described = json.loads(parts.backend.to_str())
    tokens, types = _tokens(parts, described, vocab_size)
    common = {"tokens": tokens, "token_type": np.array(types, np.int32), **_around(parts, str(folder))}
    model = described["model"]
    if model["type"] != "BPE":
        raise _unsayable(folder, f"its model is {model['type']}, not byte-pair encoding")
    choices = _sentencepiece(model, tokens) if model.get("byte_fallback") else _bpe(parts, described, folder)
    expected = parts.backend.encode(TRAPS, add_special_tokens=False).ids
    for own in choices:
        entries = {f"tokenizer.ggml.{name}": value for name, value in (own | common).items()} | _templates(parts)
        if gguf_parts(entries | {"general.name": name}).backend.encode(TRAPS, add_special_tokens=False).ids == expected:
            return entries
    raise _unsayable(folder, "read back, it would cut text in another way")


def _unsayable(folder: Path, why: str) -> TokenizerError:
    return TokenizerError(
        f"{folder}: its tokenizer cannot be said in a GGUF file: {why}; give a GGUF file of the model"
    )


def _tokens(parts: Parts, described: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Return the text and the kind of each token."""
    known = vocabulary(parts.backend, "tokenizer.json")
    if known and max(known) >= vocab_size:
        raise TokenizerError(f"the tokenizer has the id {max(known)}, the model only {vocab_size} tokens")
    added = parts.backend.get_added_tokens_decoder()
    unknown, has_bytes = described["model"].get("unk_token"), described["model"].get("byte_fallback")
    tokens, types = [], []
    for i in range(vocab_size):
        token, entry = known.get(i), added.get(i)
        tokens.append(f"[PAD{i}]" if token is None else token)
        if token is None:
            types.append(UNUSED)
        elif has_bytes and token == unknown:
            types.append(UNKNOWN)
        elif entry is not None:
            types.append(CONTROL if entry.special else USER_DEFINED)
        else:
            types.append(BYTE if has_bytes and len(token) == 6 and token.startswith("<0x") else NORMAL)
    return tokens, types


def _around(parts: Parts, where: str) -> dict[str, Any]:
    """Return the ids of named tokens, and which of them stand around raw text."""
    ids = {name: parts.backend.token_to_id(token) for name, token in parts.named.items()}
    found: dict[str, Any] = {key: ids[name] for name, key in NAMED.items() if ids.get(name) is not None}
    for kind, wanted in (("bos", parts.prefix), ("eos", parts.suffix)):
        if len(wanted) > 1:
            warnings.warn(
                f"{where}: raw texts have the tokens {list(wanted)} around them, of which a GGUF file can name one: "
                f"{wanted[0]} (chats are not affected)",
                stacklevel=4,
            )
        if wanted:
            found[f"{kind}_token_id"] = wanted[0]
        found[f"add_{kind}_token"] = bool(wanted)
    return found


def _templates(parts: Parts) -> dict[str, str]:
    start = "tokenizer.chat_template"
    return {start if name == "default" else f"{start}.{name}": text for name, text in parts.templates.items()}


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges = model["merges"]
    return [(a, b) for a, b in (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)]


def _bpe(parts: Parts, described: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Return the entries of byte-level BPE, for each name that its pre-tokenizer may have."""
    whole_words = bool(described["model"].get("ignore_merges"))
    normaliser = (described["normalizer"] or {}).get("type")
    if normaliser not in (None, "NFC"):
        raise _unsayable(folder, f"it normalises text by {normaliser}")
    cuts = None if parts.backend.pre_tokenizer is None else parts.backend.pre_tokenizer.pre_tokenize_str(TRAPS)
    names = [
        name
        for name, pre in PRE.items()
        if (pre.nfc, pre.whole_words) == (normaliser == "NFC", whole_words)
        and pre.split().pre_tokenize_str(TRAPS) == cuts
    ]
    if not names:
        raise _unsayable(folder, f"no pre-tokenizer of {', '.join(PRE)} cuts text as it does")
    merges = [" ".join(pair) for pair in _pairs(described["model"])]
    return [{"model": "gpt2", "pre": names[0], "merges": merges}]


def _sentencepiece(model: Mapping[str, Any], tokens: Sequence[str]) -> list[dict[str, Any]]:
    """Return the entries of SentencePiece, with a space put before a text and without.

    tokenizer.json has merges in order, GGUF files scores: a piece's is minus the place where it is first made.
    """
    made: dict[str, int] = {}
    for place, (a, b) in enumerate(_pairs(model)):
        made.setdefault(a + b, place)
    scores = np.array([-made.get(token, len(made)) for token in tokens], np.float32)
    return [
        {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": prefix} for prefix in (True, False)
    ]
