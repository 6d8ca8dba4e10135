"""Chat templates: messages to text, in jinja2's immutable sandbox. A template comes with a model: it is not trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from outpace.errors import TokenizerError, UsageError

if TYPE_CHECKING:
    from jinja2 import Template


class ChatTemplate:
    """A compiled template. jinja2 is imported here, when the first one is made."""

    def __init__(self, source: str) -> None:
        self._template = _compile(source)

    def render(self, messages: Sequence[Any], variables: Mapping[str, Any]) -> str:
        """Return the chat as text; raises TokenizerError for whatever the template does wrong or refuses."""
        try:
            return self._template.render(variables, messages=messages)
        except Exception as error:  # a template can raise anything, the sandbox SecurityError
            raise TokenizerError(f"the chat template failed: {error or type(error).__name__}") from error


def check_messages(messages: Any) -> None:
    """Raise UsageError unless `messages` is a list of dicts with a role and a content."""
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


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _compile(source: str) -> Template:
    """Compile in the same environment that transformers gives its templates."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Accepts {% generation %} blocks, which mark the assistant's text for training: here just their content."""

        tags = {"generation"}  # noqa: RUF012 - as its base declares it

        def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise TokenizerError(f"the chat template cannot be compiled: {error}") from error


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Replace jinja2's filter, which escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
