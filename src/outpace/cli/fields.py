"""Command-line options made from dataclass fields: their names, types, defaults and help texts, spelled once.

A command takes a parameter `options: Annotated[dict[str, Any], Fields(SomeDataclass)]` and is decorated with
`spelled_out`: every field that the command line can spell becomes an option, and the command receives a dict of those.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

_SCALARS = (int, float, str, bool)


@dataclass(frozen=True)
class Spelling:
    """How the command line spells a field whose type or meaning it cannot take over.

    kind: what typer parses (`list[str]` for an option that may be repeated). read(option, value): what the command
    receives. help, option: in place of the field's own text and name.
    """

    kind: Any
    help: str
    read: Callable[[str, Any], Any] = lambda option, value: value
    metavar: str | None = None
    option: str | None = None


@dataclass(frozen=True)
class Fields:
    """Stands for options made from the fields of dataclasses.

    classes: the dataclasses, each with its heading in the help text. short: one-letter names. spellings: of fields
    that need one. without: fields to leave out. defaults: in place of the fields' own.
    """

    classes: Mapping[type, str]
    short: Mapping[str, str] = field(default_factory=dict)
    spellings: Mapping[str, Spelling] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def parameters(self) -> dict[str, inspect.Parameter]:
        """Return one parameter of a command for each field that can be spelled, by field name."""
        found = {}
        for cls, panel in self.classes.items():
            hints = get_type_hints(cls)
            for own in dataclasses.fields(cls):
                if own.name not in self.without:
                    parameter = self._parameter(own, hints[own.name], panel)
                    if parameter is not None:
                        found[own.name] = parameter
        return found

    def _parameter(self, own: dataclasses.Field[Any], hint: Any, panel: str) -> inspect.Parameter | None:
        spelling = self.spellings.get(own.name) or _own_spelling(own, hint)
        if spelling is None:
            return None
        default = self.defaults.get(own.name, own.default)
        if default is dataclasses.MISSING or not isinstance(default, _SCALARS):
            default = None  # of lists and mappings; `gather` leaves out what is not given
        names = [spelling.option or option_name(own.name), *([self.short[own.name]] if own.name in self.short else [])]
        option = typer.Option(
            *names, help=_help(spelling.help, default), metavar=spelling.metavar, rich_help_panel=panel
        )
        kind = spelling.kind if default is not None else spelling.kind | None
        return inspect.Parameter(
            own.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
        )

    def gather(self, given: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
        """Return what the command receives: the values that were given or have a default, read as they are spelled."""
        values = {}
        for name in parameters:
            value = given[name]
            if (value is None and name not in self.defaults) or value == []:
                continue
            spelling = self.spellings.get(name)
            values[name] = spelling.read(spelling.option or option_name(name), value) if spelling else value
        return values


def option_name(name: str) -> str:
    """Return the option for a field: `--max-new-tokens`."""
    return "--" + name.replace("_", "-")


def spelled_out(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that its `Fields` stand for, as typer reads them from a signature."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, tuple[Fields, dict[str, inspect.Parameter]]] = {}
    flat: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        fields = _fields_of(parameter.annotation)
        if fields is None:
            flat.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        else:
            groups[name] = fields, fields.parameters()
            flat += groups[name][1].values()

    @functools.wraps(command)
    def run(**given: Any) -> None:
        gathered = {name: fields.gather(given, own) for name, (fields, own) in groups.items()}
        own = {name: given[name] for name in signature.parameters if name not in groups}
        command(**own, **gathered)

    run.__signature__ = signature.replace(parameters=flat)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return run


def _help(text: str, default: Any) -> str:
    """Return a help text for the command line, where nobody writes None: "...; None: all." says what the default is."""
    about, none, meaning = text.partition("; None: ")
    if not none:
        return text
    return f"{about}." if default is not None else f"{about}. (default: {meaning.removesuffix('.')})"


def _fields_of(annotation: Any) -> Fields | None:
    if get_origin(annotation) is not Annotated:
        return None
    return next((part for part in get_args(annotation) if isinstance(part, Fields)), None)


def _own_spelling(own: dataclasses.Field[Any], hint: Any) -> Spelling | None:
    """Return the spelling of a number, a text, a flag or one of several words; None for anything else."""
    text = own.metadata.get("help", "")
    members = [hint]
    if get_origin(hint) in (Union, types.UnionType):
        members = [member for member in get_args(hint) if member is not type(None)]
    if len(members) != 1:
        return None
    (kind,) = members
    if get_origin(kind) is Literal and all(isinstance(word, str) for word in get_args(kind)):
        return Spelling(str, text, metavar="|".join(get_args(kind)))
    if kind is bool:
        return Spelling(bool, text)
    return Spelling(kind, text) if kind in _SCALARS else None
