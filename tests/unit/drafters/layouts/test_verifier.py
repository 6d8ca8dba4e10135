from __future__ import annotations

from typing import Any

import pytest

from outpace.drafters.layouts.verifier import UNNAMED, verifier
from outpace.errors import WeightsError
from outpace.weights.values import Values


def read(**stated: Any) -> tuple[str, str | None]:
    return verifier(Values({"speculators_config": {"verifier": stated}}, "a file"))


@pytest.mark.parametrize(
    ("architecture", "model_type"),
    [
        ("LlamaForCausalLM", "llama"),
        ("Qwen3ForCausalLM", "qwen3"),
        ("Gemma3ForConditionalGeneration", "gemma3"),
        ("Else", "else"),
    ],
)
def test_a_model_type_is_what_the_class_is_called_after(architecture: str, model_type: str) -> None:
    assert read(name_or_path="owner/model", architectures=[architecture]) == ("owner/model", model_type)


def test_what_is_not_said_is_not_guessed() -> None:
    assert read(name_or_path=None, architectures=[]) == (UNNAMED, None)
    assert verifier(Values({}, "a file")) == (UNNAMED, None)
    assert read(architectures=[3, None]) == (UNNAMED, None)


@pytest.mark.parametrize("stated", [{"name_or_path": 3}, {"architectures": "LlamaForCausalLM"}])
def test_what_is_of_the_wrong_type_is_refused(stated: dict[str, Any]) -> None:
    with pytest.raises(
        WeightsError, match=r"a file: speculators_config: verifier: (name_or_path|architectures) must be"
    ):
        read(**stated)
