"""Texts to train on as they are: tokenised, cut into sequences, kept as a corpus.

A file whose name ends in .jsonl holds one JSON value a line, a text or {"text": text, "kind": ...}; any other file is
one plain text. A text of JSON lines is held out as a whole, a plain one sequence by sequence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outpace.errors import UsageError
from outpace.measure.text_files import read_text
from outpace.tokenizer import Tokenizer
from outpace.train.text.corpus import Conversation, Corpus, key_of

KIND = "texts"  # of a text that does not say
SEQUENCE = 512  # tokens
SHORTEST = 16
_PER_SHARD = 1024  # texts
_PROMPT = 8  # tokens; a text with a shorter prompt is continued from its middle

Text = tuple[str, str]  # the text, and its kind


def read_texts(path: Path) -> list[Text]:
    """Return the texts of a file. Raises UsageError for a line that is none, OSError."""
    whole = read_text(path)
    if path.suffix != ".jsonl":
        texts = [(whole, KIND)] if whole.strip() else []
    else:
        lines = enumerate(whole.split("\n"), 1)
        texts = [_parse(line, f"{path}, line {number}") for number, line in lines if line.strip()]
    if not texts:
        raise UsageError(f"{path}: holds no text")
    return texts


def _parse(line: str, where: str) -> Text:
    try:
        entry: Any = json.loads(line)
        text, kind = (entry["text"], entry.get("kind", KIND)) if isinstance(entry, dict) else (entry, KIND)
        f"{text}{kind}".encode()  # JSON can spell half a character, which no tokenizer takes
        if isinstance(text, str) and text.strip() and isinstance(kind, str) and kind:
            return text, kind
    except (ValueError, KeyError, RecursionError):
        pass
    raise UsageError(f'{where}: must be a text or {{"text": text}}, in JSON: {line!r:.80}')


def sequences(text: Text, tokenizer: Tokenizer, max_tokens: int = SEQUENCE) -> list[Conversation]:
    """Return a text as sequences of at most `max_tokens` ids; everything behind the first token is learned."""
    ids = np.array(tokenizer.encode(text[0]), np.int32)
    pieces = [ids[i : i + max_tokens] for i in range(0, len(ids), max_tokens)]
    return [Conversation(piece, 1, False, text[1]) for piece in pieces if len(piece) >= SHORTEST]


def fill(corpus: Corpus, texts: Sequence[Text], tokenizer: Tokenizer) -> Iterator[int]:
    """Tokenise the texts that a corpus does not have yet, shard by shard; yield how many it has."""
    while corpus.num_sources < len(texts):
        part = texts[corpus.num_sources : corpus.num_sources + _PER_SHARD]
        found, keys = [], []
        for text in part:
            own = sequences(text, tokenizer)
            found += own
            keys += [key_of(own[0].tokens) if len(texts) > 1 else key_of(piece.tokens) for piece in own]
        corpus.append(found, keys=keys, num_sources=len(part))
        yield corpus.num_sources


def beginning(conversation: Conversation, max_tokens: int) -> list[int]:
    """Return what the target is to continue: the prompt, or the first half where there is hardly one."""
    count = conversation.num_prompt
    if count < _PROMPT:
        count = max(len(conversation.tokens) // 2, 1)
    start = max(count - max_tokens, 0)
    return [int(token) for token in conversation.tokens[start:count]]
