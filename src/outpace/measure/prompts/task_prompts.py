"""Prompts to measure and to certify with: a built-in set, or a file of the user's.

The built-in set was written for this project: ten categories, from free prose (hard to draft) to text that copies its
prompt (easy to draft). A file holds one JSON object a line, as Spec-Bench (Xia et al. 2024, arXiv:2401.07851) writes
them: `category`, and `turns`, a list of user messages, of which the first is used.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from outpace.errors import TokenizerError, UsageError
from outpace.measure.text_files import read_text
from outpace.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TaskPrompt:
    """One user message, and what kind of text it asks for.

    tokens: the prompt itself, where it is not the text as a chat. presence_penalty: that it is answered with.
    """

    category: str
    text: str
    tokens: tuple[int, ...] = ()
    presence_penalty: float = 0.0

    @property
    def messages(self) -> list[dict[str, str]]:
        """Return the prompt as a chat."""
        return [{"role": "user", "content": self.text}]

    @property
    def max_tokens(self) -> int:
        """The maximum it can have: no token is shorter than a byte, and a template adds few of its own."""
        return len(self.tokens) or len(self.text.encode()) + 256

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        """Return its token ids: as a chat, or as raw text for a model without a chat template."""
        if self.tokens:
            return list(self.tokens)
        try:
            return tokenizer.encode_chat(self.messages)
        except TokenizerError:
            return tokenizer.encode(self.text)


def builtin() -> list[TaskPrompt]:
    """Return the built-in prompts, category by category."""
    file = resources.files("outpace.measure.prompts") / "builtin.jsonl"
    return parse(file.read_text(encoding="utf-8").split("\n"), "builtin.jsonl")


def read(path: Path) -> list[TaskPrompt]:
    """Return the prompts of a file of text as `read_text` takes it.

    Raises UsageError for a line that is no prompt and for bytes that are no text, OSError for an unreadable file.
    """
    return parse(read_text(path).split("\n"), str(path))


def load_prompts(path: Path | None) -> list[TaskPrompt]:
    """Return the prompts of the user's file, or the built-in ones."""
    return read(path) if path is not None else builtin()


def parse(lines: Iterable[str], name: str) -> list[TaskPrompt]:
    """Return one prompt per line that is not blank; `name` is for messages."""
    prompts = [_parse(line, f"{name}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise UsageError(f'{name}: holds no prompts: give one JSON object a line, with "category" and "turns"')
    return prompts


def _parse(line: str, where: str) -> TaskPrompt:
    try:
        entry = json.loads(line)
        category, text = entry["category"], entry["turns"][0]
        f"{category}{text}".encode()  # JSON can spell half a character, which no tokenizer takes
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        category = text = None
    if not (isinstance(category, str) and isinstance(text, str) and category and text.strip()):
        raise UsageError(
            f'{where}: must be a JSON object with "category" and "turns", a list of messages: {line!r:.80}'
        )
    return TaskPrompt(category, text)


def varied(prompts: Iterable[TaskPrompt], count: int) -> list[TaskPrompt]:
    """Return at most `count` prompts: the first of every category, then the second, and so on."""
    prompts = list(prompts)
    numbers = ranks(prompt.category for prompt in prompts)
    return [prompts[i] for i in sorted(range(len(prompts)), key=numbers.__getitem__)][:count]


def spread(prompts: Iterable[TaskPrompt], per_category: int) -> list[TaskPrompt]:
    """Return the first `per_category` prompts of every category, in order."""
    prompts = list(prompts)
    numbers = ranks(prompt.category for prompt in prompts)
    return [prompt for prompt, number in zip(prompts, numbers, strict=True) if number < per_category]


def ranks(kinds: Iterable[str]) -> list[int]:
    """Return for each kind how often it came before."""
    seen, found = Counter[str](), []
    for kind in kinds:
        found.append(seen[kind])
        seen[kind] += 1
    return found
