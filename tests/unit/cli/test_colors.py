from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from outpace.cli.colors import Painter, painted


class Words:
    """A tokenizer whose tokens are words; token 9 has no text, and token 8 completes it."""

    def detokenizer(self) -> Any:
        texts = {1: "one ", 2: "two ", 3: "three ", 8: "é", 9: ""}
        return SimpleNamespace(push=texts.__getitem__)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return Terminal()


def painter_on(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Painter:
    monkeypatch.setattr("sys.stdout", terminal)
    return Painter(SimpleNamespace(tokenizer=Words()))  # type: ignore[arg-type]


def chunk(text: str, *tokens: tuple[int, str]) -> Any:
    return SimpleNamespace(
        text=text, tokens=[token for token, _ in tokens], sources=[(name,) if name else () for _, name in tokens]
    )


def test_each_drafter_has_a_colour_and_the_model_none(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    painter = painter_on(terminal, monkeypatch)
    assert painter.paint(chunk("one two three ", (1, "ngram"), (2, ""), (3, "suffix"))) == (
        "\x1b[32mone \x1b[0mtwo \x1b[36mthree \x1b[0m"
    )
    assert painter.paint(chunk("one ", (1, "ngram"))) == "\x1b[32mone \x1b[0m"


def test_text_that_comes_later_than_its_token_keeps_its_colour(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    painter = painter_on(terminal, monkeypatch)
    assert painter.paint(chunk("", (9, "ngram"))) == ""
    assert painter.paint(chunk("é", (8, "suffix"))) == "\x1b[36mé\x1b[0m"
    assert painter.paint(chunk("on", (1, "ngram"))) == "\x1b[32mon\x1b[0m"  # the rest may begin a stop string
    assert painter.paint(chunk("e two ", (2, ""))) == "\x1b[32me \x1b[0mtwo "


def test_the_legend_names_the_colours_where_there_are_any(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Painter(SimpleNamespace(tokenizer=Words()))  # type: ignore[arg-type]  # standard output is no terminal
    painter = painter_on(terminal, monkeypatch)
    for own in (plain, painter):
        own.paint(chunk("one two ", (1, "ngram"), (2, "")))
        own.legend()
    assert capsys.readouterr().err == "drafted by: ngram | uncoloured: the model itself\n"


@pytest.mark.parametrize("setting", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_switched_off(
    setting: tuple[str, str], terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert painted("x", "1", terminal) == "\x1b[1mx\x1b[0m"
    monkeypatch.setenv(*setting)
    assert painted("x", "1", terminal) == "x"
    assert painted("x", "1", io.StringIO()) == "x"
