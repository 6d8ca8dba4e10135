"""Let the target write prompts: given its chat template up to where a user speaks, it says what users say.

Magpie (Xu et al. 2024, arXiv:2406.08464). Nothing but the model is needed, and the prompts come from what it was
trained to answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outpace.errors import UsageError
from outpace.tokenizer import Tokenizer
from outpace.train.text.loops import cut_loop
from outpace.train.text.prompts import Prompt, user_prompt

if TYPE_CHECKING:
    from outpace.api import Result

KIND = "synthesised"
SAMPLING: dict[str, Any] = {"temperature": 1.0, "min_p": 0.02}
_PROBES = ("x", "Zebra", "7", "(y)", "der Hund", "Where are we")
_SENTENCE_END = re.compile(r"[.!?。！？…:\n](?=\s|$)")
_SHORTEST = 8  # characters


@dataclass(frozen=True, slots=True)
class UserTurn:
    """What the chat template writes around what a user says.

    header: ids before it. stop: options of `generate` that end it where the template goes on.
    """

    header: tuple[int, ...]
    stop: Mapping[str, Any]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> UserTurn:
        """Find both by what the template makes of a few messages; raises UsageError where that does not tell."""
        if not tokenizer.has_chat_template:
            raise UsageError("this model has no chat template to write prompts with: give --prompts or --texts")
        chats = [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in _PROBES]
        header, footer = _common(chats), _common([chat[::-1] for chat in chats])[::-1]
        if not header or not footer:
            raise UsageError(
                "this model's chat template writes nothing before or after a user's message, so the model cannot be "
                "made to speak as a user: give --prompts or --texts"
            )
        if footer[0] in tokenizer.control_ids:
            return cls(tuple(header), {"stop_tokens": [footer[0]]})
        return cls(tuple(header), {"stop": [tokenizer.decode(footer, context=chats[0][: -len(footer)]).strip()]})


def _common(sequences: Sequence[Sequence[int]]) -> list[int]:
    """Return the longest beginning that all sequences share."""
    shared = []
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        shared.append(tokens[0])
    return shared


def prompt_from(result: Result) -> Prompt | None:
    """Return what the target said as a user; None where it is too short, repeats itself, or does not end.

    What was cut off by its maximum length is kept up to its last whole sentence.
    """
    if cut_loop(result.tokens) < len(result.tokens):
        return None
    text = result.text.replace("\ufffd", "")  # of bytes that are no character
    if result.finish_reason != "stop":
        ends = [match.end() for match in _SENTENCE_END.finditer(text)]
        text = text[: ends[-1]] if ends else ""
    text = text.strip()
    return user_prompt(text, KIND) if len(text) >= _SHORTEST else None
