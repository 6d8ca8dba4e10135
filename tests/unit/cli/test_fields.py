from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

import outpace
from outpace.cli.fields import Fields, Spelling, spelled_out
from outpace.cli.loading import Loading
from outpace.cli.writing import generation_fields


@dataclass
class Example:
    num_apples: int = field(default=3, metadata={"help": "Number of apples."})
    ripe: bool = False
    name: str | None = None
    weight: float = 0.5
    kind: Literal["red", "green"] = "red"
    words: tuple[str, ...] = ()
    limit: int | None = field(default=7, metadata={"help": "Largest number; None: no limit."})
    callback: Callable[[int], int] | None = None
    required_by_nobody: Mapping[int, float] = field(default_factory=dict)


def received(
    *arguments: str, spellings: Mapping[str, Spelling] | None = None, defaults: Mapping[str, Any] | None = None
) -> Any:
    """Return what a command with these fields receives, or the text that it ends with."""
    seen: list[Mapping[str, Any]] = []
    made = Fields({Example: "Fruit"}, short={"num_apples": "-a"}, spellings=spellings or {}, defaults=defaults or {})

    def command(options: Mapping[str, Any], own: bool = False) -> None:
        seen.append(options)

    command.__annotations__ = {"own": bool, "options": Annotated[Mapping[str, Any], made], "return": None}
    app = typer.Typer()
    app.command()(spelled_out(command))
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    return seen[0] if seen else done.output


def test_numbers_texts_flags_and_words_are_spelled_by_themselves() -> None:
    assert received() == {"num_apples": 3, "ripe": False, "weight": 0.5, "kind": "red", "limit": 7}
    given = received("--num-apples", "4", "--ripe", "--name", "x", "--weight", "1.5", "--kind", "green", "--limit", "1")
    assert given == {"num_apples": 4, "ripe": True, "name": "x", "weight": 1.5, "kind": "green", "limit": 1}
    assert received("-a", "5")["num_apples"] == 5
    assert "Number of apples." in received("--help")
    assert "red|green" in received("--help")


def test_what_the_command_line_cannot_spell_has_no_option() -> None:
    for name in ("words", "callback", "required-by-nobody"):
        assert f"--{name}" not in received("--help")


def test_a_spelling_reads_what_the_field_cannot_take_over() -> None:
    spelled = {"words": Spelling(list[str], "Words.", lambda option, value: (option, tuple(value)))}
    assert received("--words", "a", "--words", "b", spellings=spelled)["words"] == ("--words", ("a", "b"))
    assert "words" not in received(spellings=spelled)


def test_what_none_means_is_told_where_it_is_the_default() -> None:
    assert "Largest number." in received("--help")
    assert "no limit" not in received("--help")
    assert "(default: no limit)" in " ".join(received("--help", defaults={"limit": None}).split())


def test_a_default_of_none_in_place_of_the_own_one_reaches_the_command() -> None:
    assert received(defaults={"limit": None})["limit"] is None


def test_every_option_of_a_generation_is_spelled_or_left_out_on_purpose() -> None:
    """A new field appears on the command line by itself; one that it cannot spell has to be named here."""
    made = generation_fields()
    own = {f.name for cls in made.classes for f in fields(cls)}
    objects = {"constraint", "logits_processors", "logit_bias", "salt", "stop_tokens"}  # of the Python interface
    assert own - set(made.parameters()) == objects | {"sampling", "trace", "logprobs"}


def test_every_parameter_of_load_is_an_option() -> None:
    parameters = inspect.signature(outpace.load).parameters
    assert {f.name: f.default for f in fields(Loading)} == {
        name: p.default for name, p in parameters.items() if name != "progress"
    }


@pytest.mark.parametrize("cls", [Loading])
def test_every_option_has_a_help_text(cls: type) -> None:
    assert all(f.metadata["help"].endswith((".", ")")) for f in fields(cls))
