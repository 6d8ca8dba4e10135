from __future__ import annotations

import pytest
import torch

from outpace.errors import UsageError
from outpace.train.device import device_of, name_of


def test_devices_have_names_and_unknown_ones_are_refused() -> None:
    assert name_of(device_of("cpu")) == "cpu"
    assert device_of("auto").type == ("cpu" if torch.accelerator.current_accelerator() is None else "cuda")
    for name in ("nonsense", "cuda:99"):
        with pytest.raises(UsageError, match="--device"):
            device_of(name)
