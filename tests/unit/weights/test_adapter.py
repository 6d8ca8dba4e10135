from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from outpace.errors import UsageError, WeightsError
from outpace.types import MaskFilling
from outpace.weights.adapter import open_adapter
from outpace.weights.trained import DrafterTarget
from tests.adapters import entries_of, shapes_of, values, write
from tests.tiny import tiny_config

TENSORS = values(shapes_of(tiny_config()))


def file(path: Path, **changed: Any) -> Path:
    entries = {name: value for name, value in entries_of(**changed).items() if value is not None}
    return write(path / "adapter.gguf", TENSORS, entries)


def test_a_file_says_whose_it_is_and_how_it_fills_masks(tmp_path: Path) -> None:
    found = open_adapter(file(tmp_path))
    assert (found.kind, found.rank, found.scale, found.is_always_on) == ("diffusion", 4, 2.0, False)
    assert found.filling == MaskFilling(96, 4, 1)
    assert found.target == DrafterTarget("v", "llama", 97, 48, 2)
    assert found.tensors.keys() == TENSORS.keys()


def test_an_adapter_for_jacobi_decoding_is_always_on_and_fills_no_masks(tmp_path: Path) -> None:
    found = open_adapter(file(tmp_path, kind="jacobi", context="adapted", mask_token=None, block=None, shift=None))
    assert (found.is_always_on, found.filling) == (True, None)


def test_a_mask_outside_the_vocabulary_needs_an_embedding_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"mask_token must be in \[0, 97\), is 97"):
        open_adapter(file(tmp_path, mask_token=97))
    own = {**TENSORS, "mask_embedding": np.zeros(48, np.float32)}
    assert open_adapter(write(tmp_path / "own.gguf", own, entries_of(mask_token=97))).filling is not None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "dreams"}, "kind must be one of diffusion, jacobi, medusa, is 'dreams'"),
        ({"context": "adapted"}, "context must be 'base' for kind 'diffusion', is 'adapted'"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"scale": 0.0}, "scale must be a number above 0"),
        ({"block": 0}, "block must be at least 1"),
        ({"shift": 2}, "shift must be 0 or 1, is 2"),
        ({"mask_token": None}, "mask_token must be an integer"),
        ({"target.vocabulary": None}, "target.vocabulary must be a string"),
    ],
)
def test_what_no_adapter_can_be_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        open_adapter(file(tmp_path, **changed))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        open_adapter(tmp_path / "none.gguf")
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UsageError, match=r"is no adapter: general\.architecture is 'llama'"):
        open_adapter(tmp_path / "other.gguf")


def test_an_adapter_of_another_model_is_refused_with_the_reasons(tmp_path: Path) -> None:
    found = open_adapter(file(tmp_path))
    found.check_target("this", DrafterTarget("v", "llama", 97, 48, 2))
    with pytest.raises(UsageError, match=r"made for tiny and does not fit that: its width is 64, must be 48"):
        found.check_target("that", DrafterTarget("v", "llama", 97, 64, 2))
    with pytest.raises(UsageError, match="its token ids stand for other tokens"):
        found.check_target("that", DrafterTarget("w", "llama", 97, 48, 2))


def test_adapters_are_told_apart_by_every_byte(tmp_path: Path) -> None:
    first = open_adapter(file(tmp_path)).fingerprint
    changed = {name: x.copy() for name, x in TENSORS.items()}
    next(iter(changed.values()))[0, 0] += 1
    assert open_adapter(write(tmp_path / "b.gguf", changed, entries_of())).fingerprint != first
    assert open_adapter(write(tmp_path / "c.gguf", TENSORS, entries_of(scale=3.0))).fingerprint != first
    assert open_adapter(write(tmp_path / "d.gguf", TENSORS, entries_of())).fingerprint == first
