from __future__ import annotations

import numpy as np
import pytest

from outpace.drafters.layouts.indices import head_tokens, integers
from outpace.errors import WeightsError
from outpace.types import RawTensor


def tensor(values: list[int], format: str = "I64", name: str = "d2t") -> RawTensor:
    data = np.array([values], "<i8" if format == "I64" else "<i4")
    return RawTensor(name, data.view(np.uint8), format, (len(values),))


def test_a_row_stands_for_its_number_and_an_offset_or_for_the_token_given() -> None:
    tensors = {"d2t": tensor([2, 2, 7])}
    assert head_tokens(tensors, 3, 31, "a file") == (2, 3, 9)
    assert head_tokens({"d2t": tensor([2, 3, 9], "I32")}, 3, 31, "a file", offsets=False) == (2, 3, 9)


def test_a_whole_head_needs_no_map() -> None:
    assert head_tokens({}, 4, 4, "a file") == (0, 1, 2, 3)
    assert head_tokens({"d2t": tensor([0])}, 4, 4, "a file") == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "tensor 'd2t' is missing: it says which tokens the head's 3 rows are"),
        ({"d2t": tensor([0, 0])}, r"'d2t' must hold integers of shape \(3,\), holds I64 \(2,\)"),
        ({"d2t": tensor([0, 0, 29])}, r"'d2t' names tokens outside \[0, 31\)"),
        ({"d2t": tensor([-1, 0, 0])}, r"'d2t' names tokens outside \[0, 31\)"),
        ({"d2t": tensor([1 << 62, 0, 0])}, r"'d2t' names tokens outside \[0, 31\)"),
        ({"d2t": tensor([0, 0, 0]), "t2d": tensor([0] * 30, name="t2d")}, r"'t2d' has shape \(30,\), .* \(31,\)"),
    ],
)
def test_what_is_no_map_is_refused(tensors: dict[str, RawTensor], message: str) -> None:
    with pytest.raises(WeightsError, match=f"a file: tensor {message}" if message[0] != "t" else message):
        head_tokens(tensors, 3, 31, "a file")


def test_numbers_that_are_no_integers_are_refused() -> None:
    floats = RawTensor("d2t", np.zeros((1, 12), np.uint8), "F32", (3,))
    with pytest.raises(WeightsError, match="holds F32"):
        integers(floats, (3,), "a file")


def test_a_head_with_other_rows_and_a_vocabulary_without_end_are_refused() -> None:
    head = RawTensor("lm_head.weight", np.zeros((5, 8), np.uint8), "F32", (5, 2))
    with pytest.raises(WeightsError, match=r"'lm_head\.weight' has 5 rows, the config says 3"):
        head_tokens({"lm_head.weight": head, "d2t": tensor([0, 0, 0])}, 3, 31, "a file")
    with pytest.raises(WeightsError, match="a vocabulary of 16777216 tokens is none"):
        head_tokens({}, 1 << 24, 1 << 24, "a file")
