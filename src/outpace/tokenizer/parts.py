"""What every source of a tokenizer (a Hugging Face folder, GGUF metadata) must say about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import tokenizers


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a tokenizer.

    backend: text to ids and back; its special added tokens are the control tokens.
    size: one more than the highest id.
    prefix, suffix: the ids that the model wants around raw text (usually a BOS, or nothing).
    eos_ids: the tokens that end a text.
    named: `bos_token`, `eos_token`, ... as chat templates call them.
    templates: chat templates by name; the usual one is "default".
    unused: ids that stand for nothing (padding of the vocabulary).
    """

    backend: tokenizers.Tokenizer
    size: int
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    named: Mapping[str, str] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    unused: frozenset[int] = frozenset()
