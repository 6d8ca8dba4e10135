"""Write the files `gptqmodel-*` and `optimum-*` beside this one: GPTQ as GPTQModel packs and reads it.

    python make_gptqmodel.py

In an environment with gptqmodel 7.7.0 (its sdist on PYTHONPATH will do), optimum 2.3.0, and what they need.
`quantization_config` is what their own code states; the versions are what their writers add to it.
"""

from __future__ import annotations

from typing import Any

import torch
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization import FORMAT, QuantizeConfig
from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module, convert_gptq_v2_to_v1_format_module
from make import GROUP, OUT, WIDTH, linear, write
from optimum.gptq import GPTQQuantizer

MAKER = {"quantizer": ["gptqmodel:7.7.0"]}


def pack(bits: int, layout: str, zeros: bool, act_order: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor, Any]:
    """Return a matrix's tensors as a folder has them, what GPTQModel makes of them, and its own config."""
    shape, middle = (OUT, WIDTH // GROUP), 1 << (bits - 1)
    scales = (torch.rand(shape) * 0.1 + 0.01).half().float()
    zero = torch.randint(0, 2 * middle, shape).float() if zeros else torch.full(shape, float(middle))
    order = torch.arange(WIDTH) // GROUP
    if act_order:
        order = order[torch.randperm(WIDTH)]
    codes = torch.randint(0, 2 * middle, (OUT, WIDTH)).float()
    numbers = (codes - zero[:, order]) * scales[:, order]
    config = QuantizeConfig(bits=bits, group_size=GROUP, sym=not zeros, desc_act=act_order, format=layout)
    made = TorchLinear(bits, GROUP, not zeros, act_order, WIDTH, OUT, format=FORMAT.GPTQ_V2)
    made.pack_original(linear(numbers), scales.clone(), zero.clone(), order.to(torch.int32))
    if layout == "gptq":
        convert_gptq_v2_to_v1_format_module(made, config)
    parts = {name: getattr(made, name).clone() for name in ("qweight", "qzeros", "scales", "g_idx")}
    if layout == "gptq":
        convert_gptq_v1_to_v2_format_module(made, bits, torch.int32)
    made.scales = made.scales.float()
    made.post_init()
    return parts, TorchLinear.dequantize_weight(made.eval()).t(), config


def by_gptqmodel(name: str, bits: int, layout: str, zeros: bool, act_order: bool = False) -> None:
    """Write one matrix under GPTQModel's own config."""
    parts, expected, config = pack(bits, layout, zeros, act_order)
    stated = config.to_dict()
    write(
        f"gptqmodel-{name}", {**stated, "meta": MAKER, "format": layout, "checkpoint_format": layout}, parts, expected
    )


def by_optimum() -> None:
    """Write one matrix under the config of optimum, which says `format` alone."""
    parts, expected, _ = pack(4, "gptq_v2", True, False)
    stated = GPTQQuantizer(4, group_size=GROUP, format="gptq_v2", sym=False).to_dict()
    write("optimum-v2", {**stated, "quant_method": "gptq"}, parts, expected)


if __name__ == "__main__":
    torch.manual_seed(1)
    by_gptqmodel("v2", 4, "gptq_v2", zeros=True)
    by_gptqmodel("v2-act-order", 4, "gptq_v2", zeros=True, act_order=True)
    by_gptqmodel("v2-8-bits", 8, "gptq_v2", zeros=False)
    by_gptqmodel("v1", 4, "gptq", zeros=True)
    by_optimum()
