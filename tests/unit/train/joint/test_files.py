from __future__ import annotations

from pathlib import Path

from outpace.train.joint.files import beside


def test_an_adapter_lies_beside_its_drafter() -> None:
    assert beside(Path("run/step-0000007.gguf")) == Path("run/step-0000007.adapter.gguf")
