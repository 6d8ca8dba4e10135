"""Prompts to train on: those of a file, and those that the target writes from its bare chat template.

A file holds one JSON value a line: a text, {"prompt": text}, {"messages": [{"role", "content"}, ...]}, or Spec-Bench's
{"turns": [text, ...]}, where each turn is said after the response to the one before. "category" or "kind" names the
kind of text, for tables. What an assistant said last is left out: the target answers itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpace.errors import TokenizerError, UsageError
from outpace.measure.text_files import read_text
from outpace.tokenizer import Tokenizer

KIND = "prompts"  # of a prompt that does not say

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is said to the target.

    messages: the last of them a user's. turns: further user messages, each said after a response.
    """

    messages: tuple[Message, ...]
    turns: tuple[str, ...] = ()
    kind: str = KIND

    @property
    def text(self) -> str:
        """What people said, to compare it with other prompts."""
        return "\n".join([*(m["content"] for m in self.messages if m["role"] != "system"), *self.turns])

    def to_json(self) -> str:
        """Return a line of a file of prompts."""
        entry: dict[str, Any] = {"kind": self.kind, "messages": list(self.messages)}
        return json.dumps(entry | ({"turns": list(self.turns)} if self.turns else {}), ensure_ascii=False)


def user_prompt(text: str, kind: str = KIND) -> Prompt:
    """Return a prompt of one user message."""
    return Prompt(({"role": "user", "content": text},), (), kind)


def encode(tokenizer: Tokenizer, messages: Iterable[Mapping[str, str]]) -> list[int]:
    """Return the ids of messages; of a single message as raw text where the model has no chat template."""
    own = list(messages)
    try:
        return tokenizer.encode_chat(own)
    except TokenizerError:
        if len(own) > 1 or tokenizer.has_chat_template:
            raise
        return tokenizer.encode(own[0]["content"])


def read_prompts(path: Path) -> list[Prompt]:
    """Return the prompts of a file. Raises UsageError for a line that is none, OSError."""
    return parse(read_text(path).split("\n"), str(path))


def parse(lines: Iterable[str], name: str) -> list[Prompt]:
    """Return one prompt per line that is not blank; `name` is for messages."""
    prompts = [_parse(line, f"{name}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise UsageError(f'{name}: holds no prompts: give one JSON value a line, such as {{"prompt": "..."}}')
    return prompts


def _parse(line: str, where: str) -> Prompt:
    try:
        return _prompt(json.loads(line))
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        reason = str(error)
    raise UsageError(
        f'{where}: must be a text, {{"prompt": text}}, {{"messages": [...]}} or {{"turns": [...]}}, in JSON: {reason}: '
        f"{line!r:.80}"
    )


def _prompt(entry: Any) -> Prompt:
    """Return what a JSON value says; raises ValueError with the reason where it says nothing."""
    if isinstance(entry, str):
        return user_prompt(_text(entry, "the text"))
    if not isinstance(entry, dict):
        raise ValueError("it is neither a text nor an object")
    named = [entry[name] for name in ("kind", "category") if name in entry]
    kind = _text(named[0], "the kind") if named else KIND
    if "messages" in entry:
        turns = tuple(_text(turn, "a turn") for turn in _items(entry.get("turns", []), "turns"))
        return Prompt(_messages(entry["messages"]), turns, kind)
    if "prompt" in entry:
        return user_prompt(_text(entry["prompt"], "the prompt"), kind)
    if "turns" in entry:
        first, *rest = [_text(turn, "a turn") for turn in _items(entry["turns"], "turns")] or [""]
        return Prompt(user_prompt(_text(first, "the first turn")).messages, tuple(rest), kind)
    raise ValueError("it has none of these keys")


def _messages(value: Any) -> tuple[Message, ...]:
    messages = []
    for message in _items(value, "messages"):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError('a message must be an object with "role" and "content"')
        content = message.get("content")
        if message["role"] == "user" or content != "":
            _text(content, "a message's content")
        messages.append({"role": message["role"], "content": str(content)})
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or messages[-1]["role"] != "user":
        raise ValueError("no message of a user is there to answer, or another one follows it")
    return tuple(messages)


def _items(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be a text that is not empty")
    try:
        value.encode()  # JSON can spell half a character, which no tokenizer takes
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds half a character") from None
    return value
