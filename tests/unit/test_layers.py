"""What import-linter's contracts do not say: no circles of imports, and few names at the top of the package."""

from __future__ import annotations

from pathlib import Path

import grimp

PACKAGE = Path(__file__).parents[2] / "src" / "outpace"
MAX_NAMES = 16


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Return the sets of modules that import each other, in circles of any length (Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for imported in imports[module]:
            if imported not in order:
                visit(imported)
            if imported in stack:
                lowest[module] = min(lowest[module], lowest[imported])
        if lowest[module] == order[module]:
            own = stack[stack.index(module) :]
            del stack[-len(own) :]
            if len(own) > 1:
                found.append(sorted(own))

    for module in imports:
        if module not in order:
            visit(module)
    return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions and for type checkers count too."""
    graph = grimp.build_graph("outpace", cache_dir=None)
    assert circles({module: graph.find_modules_directly_imported_by(module) for module in graph.modules}) == []


def test_a_circle_of_any_length_is_found() -> None:
    imports = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"d"}, "e": {"f"}, "f": {"g"}, "g": {"e"}}
    assert circles(imports) == [["b", "c"], ["e", "f", "g"]]


def test_few_names_stand_at_the_top_of_the_package() -> None:
    names = [path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert len([name for name in names if name != "__init__"]) <= MAX_NAMES
