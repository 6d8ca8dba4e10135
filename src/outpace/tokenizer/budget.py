"""What a chat template may spend: steps, memory, processor time, and the size of a value.

A template comes with a model and is not trusted: it may loop for ever, or build gigabytes. So every loop iteration,
call, filter and operation is a step, every value that one makes is paid for, and what could make a value far larger
than its operands (`'x' * 10**9`) is asked for before it is done. The largest value bounds the work of one step, so a
template ends soon after its time is up. No signals and no second thread: it works in any thread.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, ItemsView, KeysView, Mapping, Sequence, ValuesView
from typing import Any

STEPS = 1_000_000
SECONDS = 5.0  # of this thread's processor time
LARGEST = 1 << 24  # characters of one value, or of the output, containers counted with all that is in them
MEMORY = 1 << 28  # bytes of all values that are made
# Both grow with the chat: several times its size in any case.
LARGEST_BY_CHAT, MEMORY_BY_CHAT = 16, 64

_BITS = 1 << 16  # of an integer: more than can be written in decimal
_SLOW = 1 << 16  # characters for operations that take more than linear time
_CLOCK = 16  # steps between two looks at the clock
_DIGITS = re.compile(r"\d+")


class BudgetError(Exception):
    """A template took more than it may."""


class Budget:
    """One rendering's budget. `step`, `reserve` and `made` raise BudgetError where it does not suffice."""

    def __init__(self, chat: Any) -> None:
        """`chat` is everything that is put into the template."""
        self._sizes: dict[int, tuple[Any, int]] = {}  # of containers, which are never changed; kept, so ids are theirs
        self._steps, self._memory, self._largest = STEPS, MEMORY, LARGEST
        self._until = time.thread_time() + SECONDS
        size = self.size(chat)
        self._largest += LARGEST_BY_CHAT * size
        self._memory += MEMORY_BY_CHAT * size
        self._all_memory = self._memory

    def step(self) -> None:
        """Pay for one loop iteration, call or operation."""
        self._steps -= 1
        if self._steps < 0:
            raise BudgetError(f"it takes more than {STEPS} steps")
        if self._steps % _CLOCK == 0 and time.thread_time() > self._until:
            raise BudgetError(f"it takes more than {SECONDS:g} seconds")

    def reserve(self, size: int) -> None:
        """Raise unless a value of this size may be made."""
        if size > min(self._largest, self._memory):
            raise self._too_large(size)

    def made(self, value: Any) -> Any:
        """Pay for a value that the template made, and return it (a dictionary's view as a list)."""
        self.step()
        if isinstance(value, KeysView | ValuesView | ItemsView):
            value = list(value)
        if (size := self.size(value)) > self._largest:
            raise self._too_large(size)
        self._memory -= sys.getsizeof(value) + (32 * len(value) if isinstance(value, list | tuple | Mapping) else 0)
        if self._memory < 0:
            raise BudgetError(f"it makes {self._all_memory} bytes of values and more")
        if isinstance(value, int) and value.bit_length() > _BITS:
            raise BudgetError(f"it makes an integer of {value.bit_length()} bits, at most {_BITS} may be")
        return value

    def _too_large(self, size: int) -> BudgetError:
        return BudgetError(f"it makes a value of {size} characters, at most {min(self._largest, self._memory)} may be")

    def size(self, value: Any) -> int:
        """Return how many characters a value takes when it is written out, roughly; containers with their contents.

        Nested lists can be exponentially larger than their memory, so each container is measured once.
        """
        if isinstance(value, str | bytes):
            return len(value)
        if isinstance(value, int):
            return 1 + value.bit_length() // 3
        if not isinstance(value, list | tuple | Mapping):
            return 8
        if id(value) in self._sizes:
            return self._sizes[id(value)][1]
        parts = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        total = 2 + sum(2 + self.size(part) for part in parts)
        self._sizes[id(value)] = (value, total)
        return total

    def check_slow(self, *operands: Any) -> None:
        """Raise for operands that are too large for an operation that takes more than linear time."""
        if (size := sum(map(self.size, operands))) > _SLOW:
            raise BudgetError(f"it hands {size} characters to a slow operation, at most {_SLOW} may be")

    # -- what is asked before it is done -----------------------------------------------------------

    def before_operator(self, operator: str, left: Any, right: Any) -> None:
        """Raise for an operator whose result would be too large."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() + right.bit_length()
            if operator == "**":
                bits = left.bit_length() * max(right, 1)
            if bits > 2 * _BITS:
                raise BudgetError(f"it makes an integer of {bits} bits, at most {_BITS} may be")
        elif operator == "*":
            sequence, count = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(count, int):
                self.reserve(self.size(sequence) * max(count, 0))
        elif operator == "%" and isinstance(left, str | bytes):
            self.reserve(self._formatted(str(left), "%", right))
        elif operator == "+":
            self.reserve(self.size(left) + self.size(right))

    def before_method(self, owner: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise for a method of a built-in type whose result would be too large."""
        if isinstance(owner, str | bytes) and name in _METHODS:
            _METHODS[name](self, owner, [*args, *kwargs.values()])
        elif isinstance(owner, int) and name == "to_bytes":
            self.reserve(_largest_int([*args, *kwargs.values()]))

    def before_filter(self, name: str, value: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise for a filter whose result would be too large."""
        given = [*args, *kwargs.values()]
        self.reserve(self.size(value) + sum(map(self.size, given)))
        if name in _SLOW_FILTERS:
            self.check_slow(value, *given)
        elif name in _FILTERS:
            _FILTERS[name](self, value, given)

    def _formatted(self, form: str, sign: str, args: Any) -> int:
        """Return the most characters of a formatted string: each place may hold everything, escaped and padded."""
        widths = [int(digits) if len(digits) < 10 else sys.maxsize for digits in _DIGITS.findall(form)]
        if "*" in form:
            widths.append(_largest_int(args if isinstance(args, tuple | list) else [args]))
        return len(form) + form.count(sign) * (max(widths, default=0) + 10 * self.size(args))


def _largest_int(values: Sequence[Any]) -> int:
    return max((value for value in values if isinstance(value, int)), default=0)


# -- operations that can make a value far larger than their operands -------------------------------

Bound = Callable[[Budget, Any, list[Any]], None]


def _padded(budget: Budget, value: Any, args: list[Any]) -> None:
    budget.reserve(budget.size(value) + _largest_int(args))


def _expanded_tabs(budget: Budget, value: Any, args: list[Any]) -> None:
    tab = "\t" if isinstance(value, str) else b"\t"
    budget.reserve(len(value) + value.count(tab) * (_largest_int(args) or 8))


def _replaced(budget: Budget, value: Any, args: list[Any]) -> None:
    value = value if isinstance(value, str | bytes) else str(value)
    if len(args) >= 2 and isinstance(args[0], type(value)):
        budget.reserve(len(value) + value.count(args[0]) * budget.size(args[1]))


def _joined(budget: Budget, value: Any, args: list[Any]) -> None:
    separator, parts = (value, args[0]) if args and isinstance(value, str | bytes) else (args[0] if args else "", value)
    if isinstance(parts, list | tuple | Mapping):
        budget.reserve(budget.size(parts) + len(parts) * budget.size(separator))
    else:  # made one by one
        budget.check_slow(separator)


def _translated(budget: Budget, value: Any, args: list[Any]) -> None:
    budget.reserve(len(value) * max(map(budget.size, args), default=1))


def _formatted(budget: Budget, value: Any, args: list[Any]) -> None:
    form = str(value)
    if re.search(r"\{[^}]*\{", form.replace("{{", "")):  # a width that is an argument
        budget.check_slow(form, args)
        budget.reserve(form.count("{") * max(map(_deepest_int, args), default=0))
    budget.reserve(budget._formatted(form, "{", args))


def _deepest_int(value: Any) -> int:
    if isinstance(value, int):
        return value
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return max(map(_deepest_int, parts), default=0)


def _percent(budget: Budget, value: Any, args: list[Any]) -> None:
    budget.reserve(budget._formatted(str(value), "%", args))


def _cut(budget: Budget, value: Any, args: list[Any]) -> None:
    # A string takes some 60 bytes beside its characters.
    separators = [arg for arg in args if isinstance(arg, type(value)) and arg]
    pieces = value.count(separators[0]) if separators else len(value) // 2
    budget.reserve(len(value) + 60 * (pieces + 1))


def _slow(budget: Budget, value: Any, args: list[Any]) -> None:
    budget.check_slow(value, *args)


def _indented(budget: Budget, value: Any, args: list[Any]) -> None:
    text = value if isinstance(value, str) else str(value)
    width = max([_largest_int(args), *(len(arg) for arg in args if isinstance(arg, str))])
    budget.reserve(len(text) + (text.count("\n") + text.count("\r") + 2) * max(width, 4))


def _cells(budget: Budget, value: Any, args: list[Any]) -> None:
    budget.reserve(budget.size(value) + 8 * _largest_int(args))


def _rounded(budget: Budget, value: Any, args: list[Any]) -> None:
    if max((abs(arg) for arg in args if isinstance(arg, int)), default=0) > 400:
        raise BudgetError("it rounds to more than 400 places")


def _listed(budget: Budget, value: Any, args: list[Any]) -> None:
    if isinstance(value, str | bytes):
        budget.reserve(60 * len(value))


_METHODS: dict[str, Bound] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _padded),
    **dict.fromkeys(("split", "rsplit", "splitlines"), _cut),
    **dict.fromkeys(("encode", "decode"), _slow),  # some codecs are
    **dict.fromkeys(("format", "format_map"), _formatted),
    "expandtabs": _expanded_tabs,
    "replace": _replaced,
    "join": _joined,
    "translate": _translated,
}
_FILTERS: dict[str, Bound] = {
    "center": _padded,
    "indent": _indented,
    "batch": _cells,
    "slice": _cells,
    "replace": _replaced,
    "join": _joined,
    "format": _percent,
    "round": _rounded,
    "list": _listed,
    "truncate": _padded,
}
_SLOW_FILTERS = {"pprint", "striptags", "sum", "urlize", "wordwrap", "xmlattr"}
