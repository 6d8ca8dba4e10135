"""Which format each tensor of a quantised model gets: as llama.cpp chooses (src/llama-quant.cpp), without importance.

    vectors, routers of experts     F32; routers as they are
    the output matrix               Q6_K, in a model of Q8_0 that; so the embedding where it is the output too
    values and down projections,    Q6_K in a part of the layers of Q4_K and Q5_K models (llama.cpp's "M" mixtures)
    those of experts too
    all others                      what was asked for

A row that blocks of 256 do not fill gets the format of 32 that comes next in size, one that those do not fill F16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from outpace.errors import one_of
from outpace.ops.formats import BLOCKS
from outpace.types import Quantization

FORMATS: Mapping[str, str] = {name: name.upper() for name in get_args(Quantization)}  # by the name that a user gives
FILE_TYPES = {  # general.file_type: llama.cpp's number of each mixture
    **{"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 11, "Q4_K": 15, "Q5_K": 17},
    **{"Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30},
}
_NARROW = {  # what takes the place of a format of 256
    **{"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"},
}
_MIXED = ("Q4_K", "Q5_K")
_WITH_MORE = ("attn_v.weight", "ffn_down.weight", "ffn_down_exps.weight")
_ROUTER = "ffn_gate_inp.weight"


def format_named(name: str, option: str = "format") -> str:
    """Return the format that a user's name stands for; raises UsageError for another name, given for `option`."""
    one_of(option, name, tuple(FORMATS))
    return FORMATS[name]


def format_of(name: str, shape: tuple[int, ...], stored: str, wanted: str, num_layers: int, tied: bool) -> str:
    """Return the format of a tensor.

    name: in GGUF files. stored: its format now; one that is quantised keeps it. wanted: of FORMATS' values.
    tied: whether the embedding is the output matrix too.
    """
    if len(shape) == 1 or name.endswith(".bias"):
        return "F32"
    if BLOCKS[stored].size > 1 or name.endswith(_ROUTER):
        return stored
    chosen = wanted
    if wanted != "Q8_0" and (name == "output.weight" or (tied and name == "token_embd.weight")):
        chosen = "Q6_K"
    elif wanted in _MIXED and name.endswith(_WITH_MORE):
        chosen = "Q6_K" if _has_more(int(name.split(".")[1]), num_layers) else wanted
    if shape[-1] % BLOCKS[chosen].size:
        chosen = _NARROW.get(chosen, chosen)
    return chosen if shape[-1] % BLOCKS[chosen].size == 0 else "F16"


def _has_more(layer: int, num_layers: int) -> bool:
    """Whether a layer has more bits: the first and the last eighth, and every third between."""
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2
