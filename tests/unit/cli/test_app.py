from __future__ import annotations

import re
from typing import Any

import pytest

from outpace.cli.app import command_line
from tests.unit.cli.running import run


def commands(group: Any = None, path: str = "outpace") -> dict[str, Any]:
    """Return every command by its path."""
    group = group or command_line()
    found = {path: group}
    for name, command in getattr(group, "commands", {}).items():
        found |= commands(command, f"{path} {name}")
    return found


@pytest.mark.parametrize("path", sorted(commands()))
def test_every_command_and_option_has_a_help_text_in_whole_sentences(path: str) -> None:
    command = commands()[path]
    assert command.help.strip()[-1] in ".)"
    assert command.help[0].isupper()
    for parameter in command.params:
        text = parameter.help or ""
        assert re.search(r"(\.|\))$", text), f"{path} {parameter.opts}: {text!r}"
        assert "[" not in text, "rich takes brackets for markup"
        assert "None" not in text, "nobody writes None on a command line"


@pytest.mark.parametrize("path", sorted(commands()))
def test_a_help_text_breaks_lines_where_the_terminal_ends_and_gives_flags_no_type(
    path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 400)
    assert run(*path.split()[1:], "--help") == 0
    printed = capsys.readouterr().out
    for paragraph in commands()[path].help.split("\n\n"):
        assert paragraph in printed
    assert "<bool>" not in printed


@pytest.mark.parametrize("path", sorted(commands()))
def test_help_names_every_option_and_is_a_product(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*path.split()[1:], "--help") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for parameter in commands()[path].params:
        assert all(option in printed.out for option in parameter.opts if option.startswith("--"))


def test_there_is_one_version_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("version") == 0
    told = capsys.readouterr().out
    assert run("--version") == 0
    assert capsys.readouterr().out == told
