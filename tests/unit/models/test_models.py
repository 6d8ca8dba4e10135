from __future__ import annotations

import dataclasses

import pytest

from outpace import models
from outpace.errors import WeightsError
from outpace.ops.protocol import DecoderLayer
from outpace.ops.reference import ReferenceOps
from tests.tiny import tiny_model


@pytest.mark.parametrize(
    ("model_type", "own"), [("llama", set()), ("qwen2", {"bq", "bk", "bv"}), ("qwen3", {"q_norm", "k_norm"})]
)
def test_a_network_has_the_parts_of_its_type(model_type: str, own: set[str]) -> None:
    layer = tiny_model(ReferenceOps(), model_type).layers[0]
    optional = [field.name for field in dataclasses.fields(DecoderLayer) if field.default is None]
    assert {name for name in optional if getattr(layer, name) is not None and name != "window"} == own


def test_an_unknown_network_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(WeightsError, match=r"'gpt2'.*llama, mistral, qwen2, qwen3"):
        models.build({"model_type": "gpt2"}, {}, ReferenceOps())


@pytest.mark.parametrize("config", [{}, {"model_type": None}, {"model_type": ["llama"]}])
def test_a_model_type_that_is_no_name_is_refused_like_an_unknown_one(config: dict[str, object]) -> None:
    with pytest.raises(WeightsError, match="is not supported; supported are llama"):
        models.build(config, {}, ReferenceOps())
