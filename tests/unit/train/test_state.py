from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from outpace.errors import UsageError
from outpace.train import state as module
from outpace.train.state import RunState, load_state, save_state


def a_state(step: int = 3) -> RunState:
    x = torch.arange(6.0).view(2, 3)
    log = [{"step": 1, "rows": [{"kind": "a", "chains": {1: 1.5}}]}]
    return RunState(
        {"kind": "eagle", "steps": 9}, {"taps": [1, 2]}, {"fc": x}, [{"state": {0: {"m": x}}}], step, log=log
    )


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, a_state())
    found = load_state(path, {"kind": "eagle", "steps": 9})
    assert found.step == 3
    assert found.log == a_state().log
    assert torch.equal(found.network["fc"], a_state().network["fc"])
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_a_run_with_other_settings_is_refused_with_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, a_state())
    with pytest.raises(UsageError, match="begun with steps = 9, now it is 10: go on with the same"):
        load_state(path, {"kind": "eagle", "steps": 10})


@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_what_is_no_checkpoint_is_refused_with_a_cure(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="no checkpoint of a run"):
        load_state(path, {})


def test_a_save_that_dies_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    save_state(path, a_state(3))

    def die(*args: Any) -> None:
        raise KeyboardInterrupt

    for moment in ("replace", "fsync"):
        monkeypatch.setattr(module.os, moment, die)
        with pytest.raises(KeyboardInterrupt):
            save_state(path, a_state(4))
        monkeypatch.undo()
        assert load_state(path, {}).step == 3
    assert os.path.exists(path)
