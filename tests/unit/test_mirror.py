"""Tests mirror modules: what stands in src/outpace/a/b.py is tested in tests/unit/a/test_b.py."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from outpace.models import architectures

ROOT = Path(__file__).parents[2]
PACKAGE, TESTS = ROOT / "src" / "outpace", ROOT / "tests" / "unit"
COVERED_ELSEWHERE = {
    "ops/protocol.py": "a protocol: tests/contracts/test_ops.py runs it against every implementation",
    "ops/compose.py": "tests/contracts/test_ops.py and test_guess.py hold every implementation against it",
    "drafters/protocol.py": "a protocol: tests/contracts/test_drafters.py runs it against every drafter",
    "train/networks/network.py": "an interface: every kind's own test runs its network through it",
    "models/tensors.py": "a table: tests/unit/models/test_select.py and tests/parity hold files against it",
    "version.py": "one constant",
    "cli/exit_codes.py": "two constants: tests/unit/cli/test_entry.py sees a process end with them",
    # Which parts a network has is what transformers says of it.
    **{f"models/{model_type.lower()}.py": "tests/parity/test_models_parity.py" for model_type in architectures()},
}


def has_code(source: str) -> bool:
    """Whether a module defines or computes anything: more than its docstring, imports and `__all__`."""
    for node in ast.parse(source).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_face = isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
        if not (isinstance(node, ast.Import | ast.ImportFrom) or is_docstring or is_face):
            return True
    return False


def mirror_of(module: Path) -> Path:
    """Return where a module's tests belong; those of a package face that holds code are named after the package."""
    folder = module.parent.relative_to(PACKAGE)
    name = module.parent.name if module.name == "__init__.py" else module.stem.lstrip("_")
    return TESTS / folder / f"test_{name}.py"


def test_every_module_with_code_has_a_test_file() -> None:
    modules = [path for path in PACKAGE.rglob("*.py") if has_code(path.read_text(encoding="utf-8"))]
    missing = {
        str(module.relative_to(PACKAGE)): str(mirror_of(module).relative_to(ROOT))
        for module in modules
        if not mirror_of(module).exists() and str(module.relative_to(PACKAGE)) not in COVERED_ELSEWHERE
    }
    assert missing == {}, "modules without a test file:\n" + "\n".join(f"  {m}: {t}" for m, t in missing.items())


def test_no_exception_is_out_of_date() -> None:
    for name in COVERED_ELSEWHERE:
        assert (PACKAGE / name).exists(), f"{name} is gone: take it off the list"
        assert not mirror_of(PACKAGE / name).exists(), f"{name} has a test file: take it off the list"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""Only words."""\n', False),
        ('"""A face."""\nfrom a import b\n\n__all__ = ["b"]\n', False),
        ("LIMIT = 3\n", True),
        ("def f(): ...\n", True),
        ("if True:\n    import x\n", True),
    ],
)
def test_a_face_that_re_exports_holds_no_code(source: str, expected: bool) -> None:
    assert has_code(source) == expected
