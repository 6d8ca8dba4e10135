"""Colours by who drafted a text; none where standard output is no terminal."""

from __future__ import annotations

import os
import sys
from typing import IO, TYPE_CHECKING

from outpace.cli.streams import note

if TYPE_CHECKING:
    from outpace.api import Chunk, LanguageModel

DIM, BOLD_GREEN, BOLD_RED = "2", "1;32", "1;31"
_FORCED = ("FORCE_COLOR", "TTY_COMPATIBLE")  # environment variables by which rich takes any stream for a terminal
_DRAFTERS = ("32", "36", "35", "33", "34", "31")  # green, cyan, magenta, yellow, blue, red


def painted(text: str, code: str, stream: IO[str]) -> str:
    """Return text with an ANSI code around it, if the stream goes to a terminal that shows colours."""
    return f"\x1b[{code}m{text}\x1b[0m" if text and shows_colors(stream) else text


def shows_colors(stream: IO[str]) -> bool:
    """Whether the stream is a terminal with colours, or counts as one (NO_COLOR and TERM=dumb switch them off)."""
    if not stream.isatty() and not any(map(os.environ.get, _FORCED)):
        return False  # as rich would find, whose import takes longer than many an answer
    from rich.console import Console

    console = Console(file=stream)
    return console.color_system is not None and not console.no_color


class Painter:
    """Colours a stream's chunks: each character by the drafter whose token brought it."""

    def __init__(self, lm: LanguageModel) -> None:
        self._detokenizer = lm.tokenizer.detokenizer()
        self._codes: dict[str, str] = {}
        self._styles: list[str | None] = []  # of characters that tokens brought and no chunk has shown yet
        self._colors = shows_colors(sys.stdout)

    def paint(self, chunk: Chunk) -> str:
        """Return the chunk's text in colours."""
        for token, names in zip(chunk.tokens, chunk.sources, strict=True):
            code = self._codes.setdefault(names[0], self._next()) if names else None
            self._styles += [code] * len(self._detokenizer.push(token))
        text, own = chunk.text, self._styles[: len(chunk.text)]
        del self._styles[: len(chunk.text)]
        if not self._colors:
            return text
        own += [None] * (len(text) - len(own))
        pieces, start = [], 0
        for end in range(1, len(text) + 1):
            if end == len(text) or own[end] != own[start]:
                piece = text[start:end]
                pieces.append(piece if own[start] is None else f"\x1b[{own[start]}m{piece}\x1b[0m")
                start = end
        return "".join(pieces)

    def legend(self) -> None:
        """Tell on standard error which colour is whose, where there are any."""
        if not self._colors:
            return
        names = [painted(name, code, sys.stderr) for name, code in self._codes.items()]
        note(f"drafted by: {' '.join(names) or 'nobody'} | uncoloured: the model itself")

    def _next(self) -> str:
        return _DRAFTERS[len(self._codes) % len(_DRAFTERS)]
