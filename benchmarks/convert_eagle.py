"""Convert an `eagle` checkpoint of the feasibility run into the drafter file that the package carries.

    python -m benchmarks.convert_eagle EAGLE.safetensors MEDUSA.safetensors OUT.gguf

EAGLE.safetensors: tensors fc, wq, wk, wv, wo, gu, dn, ne, ng, n2, hn in float16 and head.q8 / head.scale. The token
of each row of its head is in `vocab_rank` of MEDUSA.safetensors. The network there reads the final norm's output with
its weight, in `fc`, and without it, as the residual; ours reads both without it, so the weight is folded into `fc`.
All matrices become Q8_0, which was measured to cost nothing in acceptance.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

import outpace
from outpace.ops.formats import dequantise
from outpace.weights.checkpoint import open_checkpoint
from outpace.weights.drafter import ARCHITECTURE

TAPS, NUM_HEADS, NUM_KV_HEADS, HEAD_WIDTH, NUM_FIXED = (6, 14, 22, 30), 9, 3, 64, 4096
NORMS = {"token_norm": "ne", "feature_norm": "ng", "mlp_norm": "n2", "head_norm": "hn"}


def tensors_of(eagle: Path, final_norm: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Return the drafter's tensors under our names."""
    given = {name: x.astype(np.float32) for name, x in load_file(eagle).items()}
    width = len(final_norm)
    fc = given["fc"].copy()
    fc[:, -width:] *= final_norm
    gate, up = np.split(given["gu"], 2)
    return {
        "fc": fc,
        **{name: given[name] for name in ("wq", "wk", "wv", "wo")},
        **{"gate": gate, "up": up, "down": given["dn"], "head": given["head.q8"] * given["head.scale"]},
        **{name: given[old] for name, old in NORMS.items()},
    }


def main(eagle: Path, medusa: Path, out: Path) -> None:
    """Write the file for the default model."""
    model = outpace.load()
    checkpoint = open_checkpoint(model.path)
    final_norm = dequantise(checkpoint.tensors["model.norm.weight"]).astype(np.float32)
    entries: dict[str, Any] = {
        "kind": "eagle",
        "target.name": "SmolLM2-135M-Instruct, Q4_1",
        "target.fingerprint": checkpoint.fingerprint.hex(),
        "target.vocabulary": model.tokenizer.fingerprint,
        "target.model_type": model.config.model_type,
        "target.vocab_size": model.config.vocab_size,
        "target.width": model.config.width,
        "target.num_layers": model.config.num_layers,
        "num_heads": NUM_HEADS,
        "num_kv_heads": NUM_KV_HEADS,
        "head_width": HEAD_WIDTH,
        "num_fixed": NUM_FIXED,
        "taps": list(TAPS),
        "head_tokens": load_file(medusa)["vocab_rank"].tolist(),
    }
    write(out, entries, tensors_of(eagle, final_norm))


def write(out: Path, entries: dict[str, Any], tensors: dict[str, NDArray[np.float32]], quantise: bool = True) -> None:
    """Write a drafter file; matrices in Q8_0, or as they are."""
    writer = gguf.GGUFWriter(out, ARCHITECTURE)
    for name, value in entries.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        (writer.add_array if isinstance(value, list) else add)(f"drafter.{name}", value)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, x in tensors.items():
        if x.ndim == 2 and quantise:
            writer.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, x.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
