"""The command `chat`: a conversation, line by line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outpace.cli.colors import Painter
from outpace.cli.fields import spelled_out
from outpace.cli.loading import loading_fields, open_model
from outpace.cli.messages import told
from outpace.cli.streams import note
from outpace.cli.summary import summarise
from outpace.cli.writing import argument_text, generation_fields, need_chat_template, show
from outpace.errors import ContextError, OutpaceError, UsageError
from outpace.measure.text_files import decode_text

if TYPE_CHECKING:
    from outpace.api import LanguageModel

_COMMANDS = """\
/drop [N]  forget the N oldest turns, or as many as it takes to make room, and go on
/new       begin a new conversation
/help      show this list
/quit      end the chat"""


@spelled_out
def chat(
    options: Annotated[Mapping[str, Any], generation_fields("prediction", defaults={"max_new_tokens": None})],
    loading: Annotated[Mapping[str, Any], loading_fields()],
    system: Annotated[str | None, typer.Option(help="System message for the chat template.")] = None,
    color_sources: Annotated[
        bool, typer.Option("--color-sources", help="Colour the text by who drafted it; not in a pipe.")
    ] = False,
) -> None:
    """Talk with a model, one message a line; the KV cache keeps the conversation.

    Ctrl-C stops an answer, Ctrl-D ends the chat. Lines that begin with a slash are commands:
    /drop [N] forgets the N oldest turns (without N: as many as it takes to make room), /new begins a new
    conversation, /help lists the commands, /quit ends the chat. A space before the slash makes it a message.
    """
    lm = open_model(**loading)
    lm.check(**options)
    need_chat_template(lm, "use `outpace generate --raw` to let it continue a text")
    conversation = Conversation(lm, argument_text(system, "--system") if system else None, options, color_sources)
    if sys.stdin.isatty():
        note(f"chatting with {lm.name}; Ctrl-C stops an answer, Ctrl-D ends the chat\n{_COMMANDS}")
    while (line := _read_line()) is not None:
        if line.startswith("/"):
            if not conversation.obey(line):
                return
        elif line.strip():
            conversation.say(line.strip())


class Conversation:
    """A conversation that outlives what goes wrong in it."""

    def __init__(
        self, lm: LanguageModel, system: str | None, options: Mapping[str, Any], color_sources: bool = False
    ) -> None:
        self._lm = lm
        self._chat = lm.chat(system, **options)
        self._system = list(self._chat.messages)
        self._color_sources = color_sources
        self._unsent: str | None = None  # a message that found no room

    def say(self, message: str) -> None:
        """Send a message and print the answer. What goes wrong is told; the conversation stays as it was."""
        self._unsent, before = None, list(self._chat.messages)
        try:
            painter = Painter(self._lm) if self._color_sources else None
            result = show(self._chat.stream(message), painter)
        except ContextError as error:
            self._tell_no_room(message, error)
        except OutpaceError as error:
            self._chat.messages = before
            note(f"error: {told(error)}; the conversation is as it was before this message")
        else:
            if painter is not None:
                painter.legend()
            summarise(result, sampled=bool(self._chat.options.get("temperature")))
            if result.finish_reason == "context":
                note("the context is full, so this answer may be cut short: /drop makes room, /new begins anew")

    def obey(self, line: str) -> bool:
        """Carry out a command; return whether the chat goes on."""
        command, *arguments = line.split()
        if command == "/quit" and not arguments:
            return False
        if command == "/new" and not arguments:
            self._chat.messages = list(self._system)
            note("a new conversation")
            self._send_unsent()
        elif command == "/drop" and len(arguments) <= 1:
            self._drop(*arguments)
        elif command == "/help" and not arguments:
            note(_COMMANDS)
        else:
            note(f"unknown command {line.strip()!r}; to send it as a message, put a space before it\n{_COMMANDS}")
        return True

    def _tell_no_room(self, message: str, error: ContextError) -> None:
        if self._num_turns:
            self._unsent = message
            note(
                "the context is full: this message does not fit behind the conversation, which stays as it was\n"
                "/drop forgets the oldest turns and sends the message, /new sends it in a new conversation"
            )
        else:
            note(f"error: {told(error)}")

    @property
    def _num_turns(self) -> int:
        return (len(self._chat.messages) - len(self._system)) // 2

    def _drop(self, count: str | None = None) -> None:
        """Forget the oldest turns: `count`, or at least one and as many as it takes to make room."""
        if count is not None and not (count.isdecimal() and int(count) >= 1):
            note(f"/drop takes a number of turns of at least 1, got {count!r}")
            return
        if not self._num_turns:
            note("there is no turn to forget yet")
            return
        dropped = self._forget(1 if count is None else int(count))
        while count is None and self._num_turns and not self._has_room():
            dropped += self._forget(1)
        forgotten = "the oldest turn" if dropped == 1 else f"the {dropped} oldest turns"
        note(f"forgot {forgotten}; {self._num_turns} left")
        self._send_unsent()

    def _forget(self, count: int) -> int:
        count = min(count, self._num_turns)
        first = len(self._system)
        del self._chat.messages[first : first + 2 * count]
        return count

    def _has_room(self) -> bool:
        """Whether a quarter of the context is free for an answer."""
        waiting = [{"role": "user", "content": self._unsent or ""}]
        tokens = self._lm.tokenizer.encode_chat([*self._chat.messages, *waiting])
        return 4 * len(tokens) <= 3 * self._lm.runner.context

    def _send_unsent(self) -> None:
        if self._unsent is not None:
            self.say(self._unsent)


def _read_line() -> str | None:
    """Return the next line; None at the end of the input."""
    while True:
        try:
            if sys.stdin.isatty():
                return _ask()
            line = sys.stdin.buffer.readline()
            return decode_text(line, "this line of standard input") if line else None
        except EOFError:
            note("")
            return None
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            note("\n(Ctrl-D or /quit ends the chat)")
        except UnicodeDecodeError:
            note("error: this line is not in the terminal's encoding; it was not sent")
        except UsageError as error:
            note(f"error: {error}; it was not sent")


def _ask() -> str:
    """Read a line from the terminal, with line editing, prompting on standard error."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (importing it is what switches line editing on)
    with contextlib.redirect_stdout(sys.__stdout__):  # descriptor 1, which leads to standard error
        return input("> ")
