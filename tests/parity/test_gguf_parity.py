from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.models import architectures, open_checkpoint
from outpace.ops.formats import BLOCKS
from outpace.weights.gguf import read_gguf
from tests.unit.weights.tiny import CONFIG, Tensors, tensors_of, write_gguf

METADATA = {
    "a.text": "naïve 日本語 🙂",
    "a.empty": "",
    "a.integer": 7,
    "a.negative": -7,
    "a.float": 0.1,
    "a.flag": True,
    "a.texts": ["a", "Ġb", "日本", ""],
    "a.integers": [3, -1, 2],
    "a.floats": [0.5, -1e-3],
    "a.flags": [True, False],
}


def write_every_format(path: Path, seed: int = 0) -> None:
    """Write one tensor of random bytes per format, in one, two and three dimensions."""
    writer = gguf.GGUFWriter(path, "llama")
    random = np.random.default_rng(seed)
    for name, (values, num_bytes) in BLOCKS.items():
        for rows in ((), (3,), (2, 5)):
            data = random.integers(0, 256, (*rows, 2 * num_bytes), dtype=np.uint8)
            kind = gguf.GGMLQuantizationType[name]
            writer.add_tensor(f"{name}.{len(rows)}", data, raw_shape=data.shape, raw_dtype=kind)
            assert data.shape[-1] * values == 2 * values * num_bytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    assert {name: gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] for name in BLOCKS} == BLOCKS


def test_tensors_of_every_format_are_what_the_gguf_package_reads(tmp_path: Path) -> None:
    write_every_format(tmp_path / "a.gguf")
    ours = read_gguf(tmp_path / "a.gguf").tensors
    theirs = gguf.GGUFReader(tmp_path / "a.gguf").tensors
    assert len(ours) == len(theirs) == 3 * len(BLOCKS)
    for tensor in theirs:
        mine = ours[tensor.name]
        assert mine.format == tensor.tensor_type.name
        assert mine.shape == tuple(reversed(tensor.shape.tolist()))
        assert mine.data.shape == (np.prod(mine.shape[:-1], dtype=int), tensor.n_bytes / np.prod(mine.shape[:-1]))
        assert mine.data.tobytes() == tensor.data.tobytes()


def test_metadata_is_what_the_gguf_package_reads(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", metadata=METADATA)
    ours = read_gguf(path).metadata
    theirs = {name: f.contents() for name, f in gguf.GGUFReader(path).fields.items() if not name.startswith("GGUF.")}
    assert {name: list(value) if isinstance(value, array) else value for name, value in ours.items()} == theirs
    assert ours["a.text"] == METADATA["a.text"]


def test_every_tensor_name_is_the_gguf_packages_own() -> None:
    """Both names of each tensor of a layout must meet in llama.cpp's own name map.

    Where a folder and a file cut the experts differently, each of the file's names must be in that map.
    """
    for architecture in architectures().values():
        (arch,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.gguf)
        names = gguf.get_tensor_name_map(arch, 2)
        raw = CONFIG | {"model_type": architecture.model_type, "mask_token_id": 5}
        in_folder, in_file = list(tensors_of(raw)), list(tensors_of(raw, names="gguf"))
        if len(in_folder) == len(in_file):
            ours = list(zip(in_folder, in_file, strict=True))
            assert all(names.get_name(name, (".weight", ".bias")) == theirs for name, theirs in ours)
        else:
            known = {name for _, name in names.mapping.values()}
            assert {name.rsplit(".", 1)[0] for name in in_file} <= known, architecture.gguf


# -- row order -----------------------------------------------------------------------------------


def permute(weights: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorder rows as llama.cpp's converter does: each head's halves [2, K/2] become pairs [K/2, 2]."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def convert(tensors: Tensors) -> Tensors:
    heads = {"attn_q.weight": CONFIG["num_attention_heads"], "attn_k.weight": CONFIG["num_key_value_heads"]}
    count = {name: next((n for end, n in heads.items() if name.endswith(end)), 0) for name in tensors}
    return {name: permute(value, count[name]) if count[name] else value for name, value in tensors.items()}


def test_converted_llama_weights_come_back_in_their_own_order(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", tensors=convert(tensors_of(CONFIG, names="gguf")))
    checkpoint = open_checkpoint(path)
    for name, expected in tensors_of(CONFIG).items():
        assert checkpoint.tensors[name].data.tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("format", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_llama_weights_come_back_in_their_own_order(tmp_path: Path, format: str) -> None:
    """Quantising row by row and moving rows commute: blocks never cross rows."""
    kind = gguf.GGMLQuantizationType[format]
    q = tensors_of(CONFIG)["model.layers.0.self_attn.q_proj.weight"]
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    _write_with(writer, convert(tensors_of(CONFIG, names="gguf")), {"blk.0.attn_q.weight": kind})
    tensor = open_checkpoint(tmp_path / "a.gguf").tensors["model.layers.0.self_attn.q_proj.weight"]
    assert tensor.format == format
    np.testing.assert_array_equal(tensor.data, gguf.quantize(q, kind))


def _write_with(writer: gguf.GGUFWriter, tensors: Tensors, kinds: dict[str, gguf.GGMLQuantizationType]) -> None:
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_context_length(128)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, value in tensors.items():
        kind = kinds.get(name)
        if kind is None:
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_a_gguf_file_is_what_transformers_loads_from_it(tmp_path: Path, arch: str) -> None:
    transformers = pytest.importorskip("transformers")
    reader = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    raw = CONFIG | {"model_type": arch}
    path = write_gguf(tmp_path / "a.gguf", arch, {f"{arch}.attention.key_length": 16}, tensors_of(raw, names="gguf"))
    config = transformers.AutoConfig.from_pretrained(tmp_path, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_config(config)  # from_pretrained itself would need accelerate
    theirs = reader.load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    checkpoint = open_checkpoint(path)
    assert checkpoint.tensors.keys() == theirs.keys()
    for name, tensor in checkpoint.tensors.items():
        assert tensor.shape == tuple(theirs[name].shape)
        assert tensor.data.tobytes() == theirs[name].numpy().tobytes(), name
    for key in ("vocab_size", "hidden_size", "num_key_value_heads", "rms_norm_eps", "max_position_embeddings"):
        assert checkpoint.config[key] == getattr(config, key)
