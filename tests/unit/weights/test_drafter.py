from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outpace.errors import UsageError, WeightsError
from outpace.train.export import write_drafter
from outpace.weights.drafter import open_drafter
from outpace.weights.trained import DrafterTarget
from tests.unit.weights.tiny import write_gguf

ENTRIES: dict[str, Any] = {
    "kind": "eagle",
    "target.name": "Tiny",
    "target.fingerprint": "abcd",
    "target.vocabulary": "1234",
    "target.model_type": "llama",
    "target.vocab_size": 97,
    "target.width": 48,
    "target.num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_width": 12,
    "num_fixed": 2,
    "taps": [1, 2],
    "head_tokens": [5, 3, 96],
}
TARGET = DrafterTarget("1234", "llama", 97, 48, 2)


def written(path: Path, **changes: Any) -> Path:
    entries = {name: value for name, value in (ENTRIES | changes).items() if value is not None}
    write_drafter(
        path / "drafter.gguf", entries, {"fc": np.ones((2, 32), np.float32), "norm": np.ones(3, np.float32)}, "Q8_0"
    )
    return path / "drafter.gguf"


def test_what_was_written_is_read(tmp_path: Path) -> None:
    file = open_drafter(written(tmp_path))
    assert (file.kind, file.target_name, file.target_fingerprint, file.target) == ("eagle", "Tiny", "abcd", TARGET)
    assert (file.entries.count("num_heads"), file.entries.counts("head_tokens")) == (4, (5, 3, 96))
    assert (file.tensors["fc"].format, file.tensors["fc"].shape) == ("Q8_0", (2, 32))
    assert (file.tensors["norm"].format, file.tensors["norm"].shape) == ("F32", (3,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": None}, "kind must be a string"),
        ({"target.width": "48"}, r"drafter\.gguf: metadata: target\.width must be an integer"),
        ({"target.vocabulary": 3}, "target.vocabulary must be a string"),
    ],
)
def test_a_malformed_file_is_refused_with_the_entry(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=message):
        open_drafter(written(tmp_path, **changes))


def test_what_is_no_drafter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        open_drafter(tmp_path / "missing.gguf")
    with pytest.raises(UsageError, match=r"is no drafter: general\.architecture is 'llama'"):
        open_drafter(write_gguf(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (DrafterTarget("1234", "qwen2", 97, 48, 2), "its model type is 'qwen2', must be 'llama'"),
        (DrafterTarget("1234", "llama", 98, 48, 3), "its num layers is 3, must be 2; its vocab size is 98, must be 97"),
        (DrafterTarget("1235", "llama", 97, 48, 2), "its token ids stand for other tokens"),
    ],
)
def test_a_target_that_it_was_not_made_for_is_refused_with_the_reason(
    target: DrafterTarget, reason: str, tmp_path: Path
) -> None:
    file = open_drafter(written(tmp_path))
    file.check_target("mine", TARGET)
    with pytest.raises(UsageError, match=f"made for Tiny and cannot draft for mine: {reason}"):
        file.check_target("mine", target)
