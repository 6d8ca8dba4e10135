from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest

import outpace
from outpace.errors import WeightsError
from outpace.models import architectures, normalise
from outpace.ops.layers import DecoderLayer
from outpace.ops.reference import ReferenceOps
from tests.tiny import tiny_model

SOURCES = Path(outpace.__file__).parent
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("model_type", "own"), [("llama", set()), ("qwen2", {"bq", "bk", "bv"}), ("qwen3", {"q_norm", "k_norm"})]
)
def test_a_network_has_the_parts_of_its_type(model_type: str, own: set[str]) -> None:
    layer = tiny_model(ReferenceOps(), model_type).layers[0].parts
    optional = {field.name for field in dataclasses.fields(DecoderLayer) if field.default is None}
    usual = {"attn_norm", "mlp_norm", "gate", "up", "down"}
    assert {name for name in optional - {"window"} if getattr(layer, name) is not None} == own | usual
    assert layer.is_plain


@pytest.mark.parametrize("model_type", ["gpt2", None, ["llama"], "architecture"])
def test_an_unknown_network_is_refused_with_those_that_are_known(model_type: object) -> None:
    with pytest.raises(WeightsError, match=r"^a: model_type is .*supported are .*llama, ministral3, mistral"):
        normalise({"model_type": model_type}, "a")
    with pytest.raises(WeightsError, match=r"^a: model_type is None"):
        normalise({}, "a")


def test_an_architecture_is_the_file_of_its_name() -> None:
    assert {"llama", "mistral", "qwen2", "qwen3"} <= architectures().keys()
    for model_type in architectures():
        assert (SOURCES / "models" / f"{model_type.lower()}.py").is_file()


WORDS = {"models/llada.py": {"llama"}}  # that happen to be another's name: its key block_type says whose blocks it has


def named_in(path: Path) -> set[str]:
    """Return the architectures that a module's code names: strings that are one's name, here or in GGUF files."""
    names = {name for a in architectures().values() for name in (a.model_type, a.gguf)}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in names}


def test_no_other_file_names_an_architecture() -> None:
    """Of all modules, only its own file knows that one exists.

    Tokenizers have kinds with names of their own, and published drafters' files say whose layers theirs are.
    """
    files = [path for path in SOURCES.rglob("*.py") if path.parent.name not in ("tokenizer", "layouts")]
    naming = {path.relative_to(SOURCES).as_posix(): found for path in files if (found := named_in(path))}
    by_file = {f"models/{model_type.lower()}.py": own for model_type, own in architectures().items()}
    assert naming.keys() == by_file.keys(), naming
    for path, found in naming.items():
        own = by_file[path]
        assert found - WORDS.get(path, set()) == {own.model_type, own.gguf}


def test_the_documents_are_of_today() -> None:
    """Every architecture has its line in the list of models, and the example is the file that it says it is."""
    listed = re.findall(r"^\| `(\w+)` \| `([\w-]+)` \|", (ROOT / "docs/models.md").read_text("utf-8"), re.MULTILINE)
    assert listed == [(a.model_type, a.gguf) for a in architectures().values()]
    example = (SOURCES / "models" / "qwen3.py").read_text("utf-8")
    page = (ROOT / "docs/adding-a-model.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    assert all(block in example for block in blocks)


@pytest.mark.parametrize("model_type", architectures())
def test_an_architecture_takes_at_most_sixty_lines(model_type: str) -> None:
    lines = (SOURCES / "models" / f"{model_type.lower()}.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 60
