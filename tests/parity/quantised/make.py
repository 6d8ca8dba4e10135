"""Write the files beside this one: small quantised matrices, made and read by the code that defined their layouts.

    python make.py SOURCES
    python make.py SOURCES act-order

SOURCES: a folder with the unpacked packages autoawq 0.2.9 (its sdist), auto-gptq 0.7.1 and compressed-tensors 0.20.0
(wheels), in an environment with torch, transformers 4.57 and what compressed-tensors needs. Each file holds the tensors
as a folder would, `expected` as that code dequantises them in float32, and the folder's `quantization_config` in its
metadata. The files are committed, so the tests need none of these packages. Act-order of compressed-tensors is written
apart, with 0.15.0: later versions refuse such a folder.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

HERE = Path(__file__).parent
OUT, WIDTH, GROUP = 32, 64, 32
ROWS_OF_FLOATS, BLOCK = 16, [8, 32]


def package(name: str, folder: Path) -> None:
    """Make modules of a package importable without what its own __init__ imports."""
    module = types.ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module


def write(name: str, config: dict[str, Any], tensors: dict[str, torch.Tensor], expected: torch.Tensor) -> None:
    """Write one matrix."""
    named = {f"layer.{part}": tensor.detach().contiguous() for part, tensor in tensors.items()}
    named["expected"] = expected.detach().float().contiguous()
    save_file(named, HERE / f"{name}.safetensors", {"quantization_config": json.dumps(config)})


def linear(numbers: torch.Tensor) -> torch.nn.Linear:
    """Return a layer of a matrix."""
    layer = torch.nn.Linear(numbers.shape[1], numbers.shape[0], bias=False)
    layer.weight.data = numbers
    return layer


def groups(bits: int, zeros: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return scales and zeros [out, groups], and numbers [out, in] that they hold exactly."""
    shape = (OUT, WIDTH // GROUP)
    scales = (torch.rand(shape) * 0.1 + 0.01).half().float()
    middle = 1 << (bits - 1)
    zero = torch.randint(1, 2 * middle, shape).float() if zeros else torch.full(shape, float(middle))
    codes = torch.randint(0, 2 * middle, (OUT, WIDTH)).float()
    numbers = (codes - zero.repeat_interleave(GROUP, 1)) * scales.repeat_interleave(GROUP, 1)
    return scales, zero, numbers


def awq() -> None:
    """AutoAWQ: WQLinear_GEMM.from_linear, dequantize_gemm."""
    gemm = importlib.import_module("awq.modules.linear.gemm")
    scales, zeros, numbers = groups(4, zeros=True)
    made = gemm.WQLinear_GEMM.from_linear(
        linear(numbers), 4, GROUP, scales=scales.t().contiguous(), zeros=zeros.t().contiguous()
    )
    read = importlib.import_module("awq.utils.packing_utils").dequantize_gemm
    expected = read(made.qweight, made.qzeros, made.scales.float(), 4, GROUP).t()
    parts = {"qweight": made.qweight, "qzeros": made.qzeros, "scales": made.scales}
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
    write("awq", config, parts, expected)


def gptq(name: str, bits: int, zeros: bool, act_order: bool = False) -> None:
    """auto-gptq: QuantLinear.pack, and its forward pass of the identity."""
    module = importlib.import_module("auto_gptq.nn_modules.qlinear.qlinear_cuda")
    scales, zero, numbers = groups(bits, zeros)
    order = torch.arange(WIDTH) // GROUP
    if act_order:
        order = order[torch.randperm(WIDTH)]
        codes = torch.randint(0, 1 << bits, (OUT, WIDTH)).float()
        numbers = (codes - zero[:, order]) * scales[:, order]
    made = module.QuantLinear(bits, GROUP, WIDTH, OUT, False, weight_dtype=torch.float32)
    made.pack(linear(numbers), scales.clone(), zero.clone(), order.to(torch.int32))
    made.scales = made.scales.float()
    expected = made(torch.eye(WIDTH)).t()
    parts = {"qweight": made.qweight, "qzeros": made.qzeros, "scales": made.scales.half(), "g_idx": made.g_idx.int()}
    write(name, {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": act_order}, parts, expected)


def packed(name: str, bits: int, symmetric: bool, act_order: bool = False, layout: str = "pack_quantized") -> None:
    """compressed-tensors: PackedQuantizationCompressor or NaiveQuantizationCompressor, both ways."""
    quantization = importlib.import_module("compressed_tensors.quantization")
    base = importlib.import_module(f"compressed_tensors.compressors.{layout}.base")
    kinds = [kind for kind in vars(base).values() if isinstance(kind, type) and kind.__module__ == base.__name__]
    compressor = kinds[0]
    scales, zero, numbers = groups(bits, zeros=not symmetric)
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": GROUP}
    if act_order:
        weights["actorder"] = "group"
        order = (torch.arange(WIDTH) // GROUP)[torch.randperm(WIDTH)]
        codes = torch.randint(0, 1 << bits, (OUT, WIDTH)).float()
        numbers = (codes - zero[:, order]) * scales[:, order]
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=quantization.QuantizationArgs(**weights))
    given = {"weight": numbers, "weight_scale": scales}
    if not symmetric:
        given["weight_zero_point"] = (zero - (1 << (bits - 1))).to(torch.int8)
    if act_order:
        given["weight_g_idx"] = order.to(torch.int32)
    parts = compressor.compress(given, scheme)
    expected = compressor.decompress(parts, scheme)["weight"]
    config = {"quant_method": "compressed-tensors", "format": layout.replace("_", "-")}
    config["config_groups"] = {"group_0": {"targets": ["Linear"], "weights": weights}}
    write(name, config, parts, expected)


def fp8_blocks() -> None:
    """compressed-tensors: quantize and dequantize of blocks of E4M3."""
    quantization = importlib.import_module("compressed_tensors.quantization")
    forward = importlib.import_module("compressed_tensors.quantization.lifecycle.forward")
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "block", "block_structure": BLOCK}
    args = quantization.QuantizationArgs(**weights)
    numbers = torch.randn(ROWS_OF_FLOATS, WIDTH)
    blocks = numbers.reshape(ROWS_OF_FLOATS // BLOCK[0], BLOCK[0], WIDTH // BLOCK[1], BLOCK[1])
    scales = blocks.abs().amax(dim=(1, 3)) / 448
    codes = forward.quantize(numbers, scales, None, args, dtype=torch.float8_e4m3fn)
    expected = forward.dequantize(codes, scales, None, args, dtype=torch.float32)
    config = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    config["config_groups"] = {"group_0": {"targets": ["Linear"], "weights": weights}}
    write("fp8-blocks", config, {"weight": codes, "weight_scale": scales}, expected)


def fp8_of_transformers(quantizers: types.ModuleType) -> None:
    """transformers: create_quantized_param. Its version 4 has no way back, so compressed-tensors reads it."""
    quantization = importlib.import_module("compressed_tensors.quantization")
    forward = importlib.import_module("compressed_tensors.quantization.lifecycle.forward")
    args = quantization.QuantizationArgs(num_bits=8, type="float", strategy="block", block_structure=BLOCK)
    numbers = torch.randn(ROWS_OF_FLOATS, WIDTH)
    settings = transformers.FineGrainedFP8Config(weight_block_size=BLOCK)
    layers = types.ModuleType("transformers.integrations.finegrained_fp8")  # the real one needs triton
    layers.FP8Linear = type("FP8Linear", (), {})
    sys.modules[layers.__name__] = layers
    model = torch.nn.Module()
    model.layer = torch.nn.Module()
    shapes = {"weight": (ROWS_OF_FLOATS, WIDTH), "weight_scale_inv": (ROWS_OF_FLOATS // BLOCK[0], WIDTH // BLOCK[1])}
    for part, shape in shapes.items():
        model.layer.register_parameter(part, torch.nn.Parameter(torch.empty(shape), requires_grad=False))
    quantizers.FineGrainedFP8HfQuantizer(settings).create_quantized_param(model, numbers, "layer.weight", "cpu")
    codes, scales = model.layer.weight.data, model.layer.weight_scale_inv.data
    expected = forward.dequantize(codes, scales.float(), None, args, dtype=torch.float32)
    assert (expected - numbers).abs().max() < numbers.abs().max() / 16
    config = {"quant_method": "fp8", "weight_block_size": BLOCK, "activation_scheme": "dynamic"}
    write("fp8-transformers", config, {"weight": codes, "weight_scale_inv": scales}, expected)


def main(sources: Path) -> None:
    """Write all files."""
    sys.path.insert(0, str(sources))
    quantizers = importlib.import_module("transformers.quantizers.quantizer_finegrained_fp8")
    for name, folder in (("awq", sources / "autoawq-0.2.9/awq"), ("auto_gptq", sources / "auto_gptq")):
        package(name, folder)
    package("awq.modules", sources / "autoawq-0.2.9/awq/modules")
    package("awq.modules.linear", sources / "autoawq-0.2.9/awq/modules/linear")
    package("awq.utils", sources / "autoawq-0.2.9/awq/utils")
    package("auto_gptq.nn_modules", sources / "auto_gptq/nn_modules")
    package("auto_gptq.nn_modules.qlinear", sources / "auto_gptq/nn_modules/qlinear")
    for name, function in (("try_import", lambda name: (None, "")), ("get_best_device", lambda: "cpu")):
        for module in ("awq.utils.module", "awq.utils.utils"):
            sys.modules.setdefault(module, types.ModuleType(module))
            setattr(sys.modules[module], name, function)
    torch.manual_seed(0)
    awq()
    gptq("gptq", 4, zeros=False)
    gptq("gptq-zeros", 4, zeros=True)
    gptq("gptq-act-order", 4, zeros=True, act_order=True)
    gptq("gptq-8-bits", 8, zeros=False)
    packed("packed", 4, symmetric=True)
    packed("packed-zeros", 4, symmetric=False)
    packed("packed-8-bits", 8, symmetric=True)
    fp8_blocks()
    fp8_of_transformers(quantizers)


def act_order(sources: Path) -> None:
    """Write the files of compressed-tensors whose groups lie scattered."""
    sys.path.insert(0, str(sources))
    torch.manual_seed(2)
    packed("packed-act-order", 4, symmetric=True, act_order=True)
    packed("packed-act-order-zeros", 4, symmetric=False, act_order=True)
    packed("bytes-act-order", 8, symmetric=False, act_order=True, layout="naive_quantized")


if __name__ == "__main__":
    (act_order if sys.argv[2:] == ["act-order"] else main)(Path(sys.argv[1]))
