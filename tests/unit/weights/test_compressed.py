"""Folders of other quantisations, whole: the network is that of the numbers which the folder means."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from outpace.errors import WeightsError
from outpace.models.checkpoint import open_checkpoint
from outpace.ops.formats import dequantise
from outpace.weights.compressed import QUANTIZATION, Converted, convert
from outpace.weights.safetensors import read_safetensors
from tests.tiny import tiny_config, tiny_values

CONFIG = tiny_config("llama", hidden_size=64, intermediate_size=128, num_hidden_layers=1)
RNG = np.random.default_rng(0)

Stored = dict[str, torch.Tensor]
Floats = NDArray[np.float32]


def packed(codes: NDArray[Any]) -> torch.Tensor:
    """Return each row's four-bit codes, eight to a word, the first in its lowest bits."""
    groups = codes.reshape(len(codes), -1, 8).astype(np.uint64)
    return torch.from_numpy(
        (groups << (4 * np.arange(8, dtype=np.uint64))).sum(axis=2).astype(np.uint32).view(np.int32)
    )


def codes_of(x: Floats, zeros: bool) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return random codes, zeros and scales of groups of 32, of the shape of x."""
    out, width = x.shape
    zero = RNG.integers(1, 15, (out, width // 32)) if zeros else np.full((out, width // 32), 8)
    return RNG.integers(0, 16, x.shape), zero, RNG.uniform(0.01, 0.1, zero.shape).astype(np.float16)


def meaning(codes: NDArray[Any], zero: NDArray[Any], scale: NDArray[Any]) -> Floats:
    return ((codes - zero.repeat(32, axis=1)) * scale.astype(np.float32).repeat(32, axis=1)).astype(np.float32)


def awq(x: Floats) -> tuple[Stored, Floats]:
    codes, zero, scale = codes_of(x, zeros=True)
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])

    def shuffled(table: NDArray[Any]) -> torch.Tensor:
        return packed(table.reshape(len(table), -1, 8)[:, :, order].reshape(len(table), -1))

    parts = {"qweight": shuffled(codes.T), "qzeros": shuffled(zero.T), "scales": torch.from_numpy(scale.T.copy())}
    return parts, meaning(codes, zero, scale)


def gptq(x: Floats) -> tuple[Stored, Floats]:
    codes, zero, scale = codes_of(x, zeros=False)
    parts = {
        "qweight": packed(codes).T.contiguous(),
        "qzeros": packed((zero - 1).T),
        "scales": torch.from_numpy(scale.T.copy()),
        "g_idx": (torch.arange(x.shape[1]) // 32).int(),
    }
    return parts, meaning(codes, zero, scale)


def pack_quantized(x: Floats) -> tuple[Stored, Floats]:
    codes, zero, scale = codes_of(x, zeros=False)
    parts = {
        "weight_packed": packed(codes),
        "weight_scale": torch.from_numpy(scale).bfloat16().float(),
        "weight_shape": torch.tensor(x.shape),
    }
    return parts, meaning(codes, zero, parts["weight_scale"].numpy())


def float_quantized(x: Floats) -> tuple[Stored, Floats]:
    scale = torch.from_numpy(np.abs(x).max(axis=1, keepdims=True) / 448).bfloat16()
    weight = (torch.from_numpy(x) / scale.float()).to(torch.float8_e4m3fn)
    return {"weight": weight, "weight_scale": scale}, (weight.float() * scale.float()).numpy()


def fp8(x: Floats) -> tuple[Stored, Floats]:
    scale = torch.from_numpy(RNG.uniform(0.01, 1, (-(-x.shape[0] // 48), -(-x.shape[1] // 48))).astype(np.float32))
    weight = torch.from_numpy(x).to(torch.float8_e4m3fn)
    whole = scale.repeat_interleave(48, 0)[: x.shape[0]].repeat_interleave(48, 1)[:, : x.shape[1]]
    return {"weight": weight, "weight_scale_inv": scale, "input_scale": torch.tensor(0.5)}, (
        weight.float() * whole
    ).numpy()


WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
METHODS: dict[str, tuple[Callable[[Floats], tuple[Stored, Floats]], dict[str, Any], set[str]]] = {
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}, {"Q5_0"}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}, {"Q4_0"}),
    "compressed-tensors, packed": (
        pack_quantized,
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
            "ignore": ["lm_head"],
        },
        {"Q4_0"},
    ),
    "compressed-tensors, floats": (
        float_quantized,
        {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {
                "group_0": {"targets": ["Linear"], "weights": WEIGHTS | {"num_bits": 8, "type": "float"}}
            },
        },
        {"F32"},
    ),
    "fp8": (fp8, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [48, 48]}, {"F32"}),
}


def write(folder: Path, method: str, **changes: Any) -> tuple[Path, dict[str, Floats]]:
    """Write a folder whose layers' matrices a method has quantised, and return it with the numbers that it means."""
    make, config, _ = METHODS[method]
    stored, means = Stored(), dict[str, Floats]()
    for name, x in tiny_values(CONFIG).items():
        if "_proj.weight" not in name:
            stored[name], means[name] = torch.from_numpy(x), x
            continue
        parts, means[name] = make(x)
        stored |= {f"{name.removesuffix('.weight')}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    (folder / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": config | changes}))
    save_file(stored, folder / "model.safetensors")
    return folder, means


@pytest.mark.parametrize("method", METHODS)
def test_a_folder_has_the_numbers_that_it_means(tmp_path: Path, method: str) -> None:
    folder, means = write(tmp_path, method)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tensors.keys() == means.keys()
    formats = set()
    for name, expected in means.items():
        tensor = checkpoint.tensors[name]
        assert np.array_equal(dequantise(tensor), expected), name
        if "_proj.weight" in name:
            formats.add(tensor.format)
    assert formats == METHODS[method][2]


def test_the_bytes_of_a_model_are_those_of_its_files(tmp_path: Path) -> None:
    folder, _ = write(tmp_path, "awq")
    before = open_checkpoint(folder)
    size = (folder / "model.safetensors").stat().st_size
    assert 0.9 * size < before.num_bytes < size
    write(tmp_path, "awq")  # other numbers
    assert open_checkpoint(folder).fingerprint != before.fingerprint


def numbers_of(folder: Path) -> dict[str, Floats]:
    return {name: dequantise(tensor) for name, tensor in open_checkpoint(folder).tensors.items()}


@pytest.mark.parametrize("key", ["format", "checkpoint_format"])
def test_the_version_of_gptq_may_stand_under_two_keys(tmp_path: Path, key: str) -> None:
    folder, means = write(tmp_path, "gptq", **{key: "gptq_v2"})
    for name, found in numbers_of(folder).items():
        if "_proj.weight" not in name:
            continue
        shift = np.abs(found - means[name])  # zeros are stored less 1, which version 2 does not add again
        assert 0.009 < shift.min() < shift.max() < 0.101


def test_matrices_of_4_and_of_8_bits_may_be_in_one_folder(tmp_path: Path) -> None:
    folder, means = write(tmp_path, "gptq", dynamic={"+:.*o_proj": {"bits": 8}, "-:.*k_proj": {}})
    stored = load_file(folder / "model.safetensors")
    stem = "model.layers.0.self_attn.o_proj"
    codes = RNG.integers(0, 256, means[stem + ".weight"].shape)
    stored[stem + ".qweight"] = torch.from_numpy(
        np.ascontiguousarray(codes.T.astype(np.uint8).reshape(-1, 4, 64).transpose(0, 2, 1))
        .view(np.int32)[..., 0]
        .copy()
    )
    stored[stem + ".qzeros"] = torch.full((2, 16), 0x7F7F7F7F, dtype=torch.int32)
    save_file(stored, folder / "model.safetensors")
    scales = stored[stem + ".scales"].float().numpy().T
    means[stem + ".weight"] = ((codes - 128) * scales.repeat(32, axis=1)).astype(np.float32)
    for name, found in numbers_of(folder).items():
        assert np.array_equal(found, means[name]), name


def test_groups_of_compressed_tensors_may_differ_in_bits(tmp_path: Path) -> None:
    eight = {"targets": ["re:.*o_proj"], "weights": WEIGHTS | {"num_bits": 8}, "format": "pack-quantized"}
    four = {"targets": ["Linear"], "weights": WEIGHTS, "format": "pack-quantized"}
    folder, means = write(
        tmp_path, "compressed-tensors, packed", format="mixed-precision", config_groups={"a": four, "b": eight}
    )
    stored = load_file(folder / "model.safetensors")
    stem = "model.layers.0.self_attn.o_proj"
    codes = RNG.integers(0, 256, means[stem + ".weight"].shape)
    stored[stem + ".weight_packed"] = torch.from_numpy(codes.astype(np.uint8).view(np.int32))
    save_file(stored, folder / "model.safetensors")
    scales = stored[stem + ".weight_scale"].float().numpy()
    means[stem + ".weight"] = ((codes - 128) * scales.repeat(32, axis=1)).astype(np.float32)
    for name, found in numbers_of(folder).items():
        assert np.array_equal(found, means[name]), name


def test_biases_of_zeros_beside_quantised_matrices_are_idle_and_others_are_refused(tmp_path: Path) -> None:
    folder, means = write(tmp_path, "gptq")
    stored = load_file(folder / "model.safetensors")
    bias = "model.layers.0.self_attn.q_proj.bias"
    save_file(stored | {bias: torch.zeros(64).half()}, folder / "model.safetensors")
    assert numbers_of(folder).keys() == means.keys()
    save_file(stored | {bias: torch.ones(64).half()}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"q_proj\.bias' in the file"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("method", "file", "stated"),
    [
        ("gptq", "quantize_config.json", {"bits": 4, "group_size": 32, "desc_act": False, "sym": True}),
        ("awq", "quant_config.json", {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}),
    ],
)
def test_folders_of_2023_describe_their_quantisation_in_a_file_of_its_own(
    tmp_path: Path, method: str, file: str, stated: dict[str, Any]
) -> None:
    folder, means = write(tmp_path, method)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / file).write_text(json.dumps(stated))
    for name, found in numbers_of(folder).items():
        assert np.array_equal(found, means[name]), name


BLOCKS = WEIGHTS | {"num_bits": 8, "type": "float", "block_structure": [32, 32]}
REFUSED: Mapping[str, tuple[str, dict[str, Any], str]] = {
    "another order of AWQ": ("awq", {"version": "marlin"}, "version"),
    "three bits": ("gptq", {"bits": 3}, "bits.*supported are 4 and 8"),
    "an unknown layout of GPTQ": ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format"),
    "a layout of optimum's that is not known": ("gptq", {"format": "gptq_p"}, "format is 'gptq_p'"),
    "two layouts at once": ("gptq", {"format": "gptq_v2", "checkpoint_format": "gptq"}, "they must agree"),
    "words of another size": ("gptq", {"pack_dtype": "int16"}, "pack_dtype"),
    "rotations of GPTQModel": ("gptq", {"rotation": "hadamard"}, "rotation is not supported"),
    "an adapter beside": ("gptq", {"adapter": {"name": "lora", "rank": 32}}, "adapter is not supported"),
    "layouts by matrix": ("gptq", {"dynamic": {"+:.*q_proj": {"format": "marlin"}}}, "dynamic has format"),
    "a layout of AWQ under GPTQModel's key": ("awq", {"format": "gemv"}, "format is 'gemv', supported are gemm"),
    "another size of AWQ": ("awq", {"w_bit": 3}, "w_bit"),
    "llm-awq": ("awq", {"backend": "llm-awq"}, "backend is llm-awq"),
    "scales that divide": ("fp8", {"weight_scale_semantics": "inverse"}, "GPTQModel's: it divides"),
    "five-bit floats": ("fp8", {"fmt": "e5m2"}, "fmt"),
    "blocks that are none": ("fp8", {"weight_block_size": [0, 48]}, "weight_block_size"),
    "a method that is not known": (
        "awq",
        {"quant_method": "bitsandbytes"},
        "quantization_config has the quant_method 'bitsandbytes', supported are fp8, compressed-tensors, awq, gptq",
    ),
    "a format of compressed-tensors that is not known": (
        "compressed-tensors, packed",
        {"format": "marlin-24"},
        "marlin-24.*supported are float-quantized",
    ),
    "rotations": ("compressed-tensors, packed", {"transform_config": {"a": 1}}, "rotations"),
    "blocks of different sizes": (
        "compressed-tensors, floats",
        {"config_groups": {"a": {"weights": BLOCKS}, "b": {"weights": BLOCKS | {"block_structure": [16, 16]}}}},
        "has blocks of .* one kind is supported",
    ),
    "three bits of compressed-tensors": (
        "compressed-tensors, packed",
        {"config_groups": {"a": {"weights": WEIGHTS | {"num_bits": 3}}}},
        "has matrices of 3 bits, supported are 4 and 8",
    ),
    "sparsity": ("compressed-tensors, packed", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "only dense"),
    "no groups": ("compressed-tensors, packed", {"config_groups": {}}, "config_groups"),
    "groups without weights": ("compressed-tensors, packed", {"config_groups": {"a": {}}}, "without weights"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused_by_name(tmp_path: Path, case: str) -> None:
    method, changes, message = REFUSED[case]
    folder, _ = write(tmp_path, method, **changes)
    with pytest.raises(WeightsError, match=message):
        open_checkpoint(folder)


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    folder, _ = write(tmp_path, "awq")
    own = METHODS["gptq"][1]
    (folder / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": own}))
    with pytest.raises(WeightsError, match=r"down_proj\.g_idx' is missing beside others"):
        open_checkpoint(folder)


def test_a_method_without_a_matrix_is_a_damaged_folder(tmp_path: Path) -> None:
    folder, _ = write(tmp_path, "awq")
    save_file({name: torch.from_numpy(x) for name, x in tiny_values(CONFIG).items()}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match="no matrix is quantised"):
        open_checkpoint(folder)


def damaged(part: torch.Tensor) -> list[torch.Tensor]:
    """Return a part of a matrix as damaged or foreign files may have it."""
    if part.dim() == 0:
        return [part[None], part.int()]
    shapes = [part[None], part[:0], part[: max(len(part) // 2, 1)], part.flatten(), part.flatten()[0]]
    shapes += [part.T, part[:, :0], part[:, : part.shape[1] // 2]] if part.dim() == 2 else []
    kinds = [part.float() if part.dtype != torch.float32 else part.int(), part.flatten().view(torch.uint8)]
    numbers = [torch.full_like(part, n) for n in (2**31 - 1, -2)] if part.dtype == torch.int32 else []
    return [*shapes, *kinds, *numbers]


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_part_is_an_error_of_the_file_or_makes_a_matrix(tmp_path: Path, method: str) -> None:
    make, config, _ = METHODS[method]
    parts, _ = make(RNG.standard_normal((64, 128)).astype(np.float32))
    refused = 0
    for name, part in parts.items():
        for other in damaged(part):
            stored = {f"layer.{n}": (other if n == name else own).contiguous() for n, own in parts.items()}
            save_file(stored, tmp_path / "model.safetensors")
            try:
                found = dict(read_safetensors(tmp_path / "model.safetensors", indices=True))
                matrix = convert(found, {QUANTIZATION: config}, "config.json")["layer.weight"]
                assert isinstance(matrix, Converted)
                assert dequantise(matrix.read()).shape == matrix.shape
            except WeightsError:
                refused += 1
    assert refused >= 5 * (len(parts) - 1)
