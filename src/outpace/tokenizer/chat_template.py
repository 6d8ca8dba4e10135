"""Chat templates: messages to text. A template comes with a model: it is not trusted, and runs within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outpace.errors import TokenizerError, UsageError
from outpace.tokenizer.escape import strings_in

_LONGEST = 1 << 20  # characters of a template: many times the longest known


class ChatTemplate:
    """A compiled template. jinja2 is imported here, when the first one is made."""

    def __init__(self, source: str) -> None:
        from outpace.tokenizer import sandbox

        if len(source) > _LONGEST:
            raise TokenizerError(f"the chat template has {len(source)} characters, at most {_LONGEST} are taken")
        self._render = sandbox.render
        try:
            self._template = sandbox.compile_template(source)
        except Exception as error:  # jinja2's errors, and Python's for what jinja2 made of it
            raise TokenizerError(f"the chat template cannot be compiled: {error or type(error).__name__}") from error

    def render(self, messages: Sequence[Any], variables: Mapping[str, Any]) -> str:
        """Return the chat as text; raises TokenizerError for whatever the template does wrong or refuses."""
        try:
            return self._render(self._template, {**variables, "messages": messages})
        except Exception as error:  # a template can raise anything, the sandbox SecurityError
            raise TokenizerError(f"the chat template failed: {error or type(error).__name__}") from error


def check_text(value: Any, what: str) -> None:
    """Raise UsageError for a string in a JSON-like value that is no Unicode text, such as bytes that are not UTF-8.

    Python's command line and files hand such bytes over as halves of characters.
    """
    for text in strings_in(value):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            char = text[error.start]
            byte = f" (the byte 0x{ord(char) - 0xDC00:02x})" if "\udc80" <= char <= "\udcff" else ""
            raise UsageError(
                f"{what} must be text, and {char!a}{byte}, after {error.start} characters, is half a character, as "
                "bytes that are not UTF-8 leave it: decode them with their own encoding"
            ) from None


def check_messages(messages: Any) -> None:
    """Raise UsageError unless `messages` is a list of dicts with a role and a content, all of it Unicode text."""
    if not isinstance(messages, list | tuple) or not messages:
        raise UsageError(f"a chat is a list of messages, at least one, got {_shown(messages)}")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise UsageError(
                f'message {i} must be a dict like {{"role": "user", "content": "..."}}, got {_shown(message)}'
            )
        if not isinstance(message.get("role"), str):
            raise UsageError(f'message {i} needs a "role" (a string), got {_shown(message.get("role"))}')
        content = message.get("content")
        if not isinstance(content, str | list) and not (content is None and message.get("tool_calls")):
            raise UsageError(f'message {i} needs a "content" (a string, or a list of parts), got {_shown(content)}')
        if isinstance(content, list):
            _check_parts(content, i)
        check_text(message, f"message {i}")


def plain_contents(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return checked messages whose contents are strings: parts become lines, as templates of text models expect."""
    return [
        {**message, "content": "\n".join(part["text"] for part in content)}
        if isinstance(content := message.get("content"), list)
        else message
        for message in messages
    ]


def _check_parts(parts: Sequence[Any], message: int) -> None:
    """Raise UsageError unless a content's parts are all text: {"type": "text", "text": ...}."""
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            what = f"a part of type {kind!r}" if isinstance(kind, str) else f"the part {_shown(part)}"
            raise UsageError(
                f'message {message} has {what}: this model reads text only, parts must be {{"type": "text", '
                '"text": "..."}'
            )
        if not isinstance(part.get("text"), str):
            raise UsageError(f'message {message} has a part whose "text" is {_shown(part.get("text"))}, not a string')


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
