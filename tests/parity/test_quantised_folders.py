"""Matrices that other packages packed (`quantised/make*.py` say which) are read as their own code reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from outpace.ops.formats import dequantise
from outpace.weights.compressed import Converted, convert
from outpace.weights.safetensors import read_safetensors

FILES = sorted((Path(__file__).parent / "quantised").glob("*.safetensors"))  # made by quantised/make*.py
BECOMES = {
    "awq": "Q5_0",
    "bytes-act-order": "F32",
    "fp8-blocks": "F32",
    "fp8-transformers": "F32",
    "gptq": "Q4_0",
    "gptq-8-bits": "Q8_0",
    "gptq-act-order": "F32",
    "gptq-zeros": "Q5_0",
    "gptqmodel-v1": "Q5_0",
    "gptqmodel-v2": "Q5_0",
    "gptqmodel-v2-8-bits": "Q8_0",
    "gptqmodel-v2-act-order": "F32",
    "optimum-v2": "Q5_0",
    "packed": "Q4_0",
    "packed-8-bits": "Q8_0",
    "packed-act-order": "F32",
    "packed-act-order-zeros": "F32",
    "packed-zeros": "Q5_0",
}


def test_every_file_has_its_case() -> None:
    assert {file.stem for file in FILES} == BECOMES.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_matrix_that_another_package_packed_is_what_that_package_reads(file: Path) -> None:
    with safe_open(file, "numpy") as opened:
        config = json.loads(opened.metadata()["quantization_config"])
    tensors = dict(read_safetensors(file, indices=True))
    expected = dequantise(tensors.pop("expected"))
    converted = convert(tensors, {"quantization_config": config}, "config.json")
    assert converted.keys() == {"layer.weight"}
    matrix = converted["layer.weight"]
    assert isinstance(matrix, Converted)
    assert matrix.format == BECOMES[file.stem]
    numbers = dequantise(matrix.read())
    assert np.array_equal(numbers.view(np.uint32) << 1, expected.view(np.uint32) << 1)  # but for the sign of zeros
    assert len(np.unique(expected)) > 64
