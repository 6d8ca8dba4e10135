"""What loading takes at its peak: the packed model, and no second copy of the file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.folder import make_folder

pytest.importorskip("outpace.ops.native")

_LOADS = """
import sys
from pathlib import Path
from outpace import models
from outpace.models import open_checkpoint
from outpace.ops.native import NativeOps

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name + ":"))

ops = NativeOps(threads=2)
warm = models.build(*[getattr(open_checkpoint(Path(sys.argv[1])), name) for name in ("config", "tensors")], ops)
ops.synchronize()
before = kilobytes("VmRSS")
checkpoint = open_checkpoint(Path(sys.argv[2]))
network = models.build(checkpoint.config, checkpoint.tensors, ops)
ops.synchronize()
print(checkpoint.num_bytes / 1024, kilobytes("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak")
@pytest.mark.parametrize("model_type", ["llama", "glm4"])  # glm4's queries and keys are put in another order
def test_the_peak_is_little_more_than_the_packed_model(tmp_path: Path, model_type: str) -> None:
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 2}
    small, large = make_folder(tmp_path / "small"), make_folder(tmp_path / "large", model_type, **sizes)
    arguments = [sys.executable, "-c", _LOADS, str(small), str(large)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    stored, grown = map(float, run.stdout.split())
    assert stored > 100_000
    assert grown < 1.15 * stored
