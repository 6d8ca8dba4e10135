"""gpt-oss folders with MXFP4 experts: the network that transformers makes of them, dequantised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from outpace import models
from outpace.errors import WeightsError
from outpace.models import open_checkpoint
from outpace.ops.protocol import Ops
from outpace.ops.reference import ReferenceOps
from outpace.types import Segment
from tests.implementations import MAKERS
from tests.parity.oracle import theirs
from tests.parity.test_models_parity import ours
from tests.tiny import tiny_config, tiny_values
from tests.unit.weights.tiny import write_safetensors

CONFIG = tiny_config("gpt_oss", hidden_size=64, intermediate_size=96)
TOKENS = np.random.default_rng(0).integers(0, 97, 60).tolist()
Stored = dict[str, NDArray[Any]]


def stored_and_meant() -> tuple[Stored, Stored]:
    """Return a folder's tensors, and the float32 numbers that they stand for."""
    values = tiny_values(CONFIG, spread=1.0)
    rng, stored = np.random.default_rng(1), dict[str, NDArray[Any]]()
    for name, x in values.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[name] = x
            continue
        count, inputs, outputs = x.shape
        codes = rng.integers(0, 256, (count, outputs, inputs // 32, 16), np.uint8)
        scales = rng.integers(122, 126, codes.shape[:3], np.uint8)
        stored |= {f"{name}_blocks": codes, f"{name}_scales": scales}
        meant = convert_moe_packed_tensors(torch.from_numpy(codes), torch.from_numpy(scales), dtype=torch.float32)
        values[name] = meant.contiguous().numpy()
        assert values[name].shape == x.shape
    return stored, values


def write(folder: Path, stored: Stored, method: str = "mxfp4", **changes: Any) -> Path:
    config = CONFIG | {"quantization_config": {"quant_method": method, "modules_to_not_convert": ["lm_head"]}} | changes
    (folder / "config.json").write_text(json.dumps(config))
    kinds = {np.dtype(np.uint8): "U8", np.dtype(np.float32): "F32"}
    tensors = {name: (kinds[x.dtype], x.shape, np.ascontiguousarray(x).tobytes()) for name, x in stored.items()}
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def logits(ops: Ops, checkpoint: models.Checkpoint) -> NDArray[np.float32]:
    model = models.build(checkpoint.config, checkpoint.tensors, ops)
    plan = ops.plan([Segment((1, 0, 2), 0, TOKENS, num_scored=len(TOKENS))], 32)
    return ops.numpy(model.forward(plan, ops.kv_alloc(model.spec("f32"), 3))[0])


def test_logits_are_those_of_transformers_on_the_dequantised_network(tmp_path: Path) -> None:
    stored, meant = stored_and_meant()
    checkpoint, ops = open_checkpoint(write(tmp_path, stored)), ReferenceOps()
    found = ours(models.build(checkpoint.config, checkpoint.tensors, ops), ops, TOKENS)
    expected = theirs(CONFIG, meant, TOKENS)
    assert np.abs(expected).max() > 1
    assert np.abs(found - expected).max() < 1e-4
    matrix = checkpoint.tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    assert (matrix.format, matrix.data.shape) == ("MXFP4", (96, 2 * 17))
    assert checkpoint.num_bytes == sum(x.nbytes for x in stored.values())


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "reference"])
def test_other_ops_compute_on_the_blocks(tmp_path: Path, name: str) -> None:
    checkpoint = open_checkpoint(write(tmp_path, stored_and_meant()[0]))
    expected = logits(ReferenceOps(), checkpoint)
    assert np.abs(logits(MAKERS[name](2), checkpoint) - expected).max() < 0.05 * np.abs(expected).max()


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    stored, _ = stored_and_meant()
    blocks, scales = (f"model.layers.0.mlp.experts.down_proj_{kind}" for kind in ("blocks", "scales"))
    with pytest.raises(WeightsError, match=f"tensor '{scales}' missing"):
        open_checkpoint(write(tmp_path, {name: x for name, x in stored.items() if name != scales}))
    with pytest.raises(WeightsError, match=rf"'{scales}' has shape \(5, 64\), the config says \(5, 64, 3\)"):
        open_checkpoint(write(tmp_path, stored | {scales: stored[scales][:, :, 0]}))
    checkpoint = open_checkpoint(write(tmp_path, stored | {blocks: stored[blocks].astype(np.float32)}))
    with pytest.raises(WeightsError, match=f"'{blocks}' is F32, must be U8"):
        checkpoint.tensors["model.layers.0.mlp.experts.1.down_proj.weight"]
    with pytest.raises(WeightsError, match=r"quantization_config: .* no matrix is quantised"):
        open_checkpoint(write(tmp_path, stored, method="awq"))
    with pytest.raises(WeightsError, match="quantization_config is mxfp4, but hidden_size"):
        open_checkpoint(write(tmp_path, stored, hidden_size=48))
