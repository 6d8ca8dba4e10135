from __future__ import annotations

import pytest

from outpace.errors import UsageError
from outpace.models.mixture import FILE_TYPES, FORMATS, format_named, format_of
from outpace.ops.formats import BLOCKS


def chosen(name: str, wanted: str = "Q4_K", width: int = 512, stored: str = "BF16", tied: bool = False) -> str:
    return format_of(name, (64, width), stored, wanted, 24, tied)


def test_every_format_that_a_user_may_name_is_known() -> None:
    assert set(FORMATS.values()) == FILE_TYPES.keys() <= BLOCKS.keys()
    assert format_named("q4_k") == "Q4_K"
    with pytest.raises(UsageError, match="unknown quantize 'q4': did you mean 'q4"):
        format_named("q4", "quantize")


def test_vectors_are_float32_and_routers_and_quantised_tensors_stay() -> None:
    assert format_of("blk.0.attn_norm.weight", (64,), "BF16", "Q4_K", 24, False) == "F32"
    assert chosen("blk.0.ffn_gate_inp.weight", stored="F32") == "F32"
    assert chosen("blk.0.attn_q.weight", stored="Q8_0") == "Q8_0"


def test_the_output_matrix_keeps_more_bits_and_so_does_an_embedding_that_is_one() -> None:
    assert chosen("output.weight") == "Q6_K"
    assert chosen("output.weight", "Q8_0") == "Q8_0"
    assert chosen("token_embd.weight") == "Q4_K"
    assert chosen("token_embd.weight", tied=True) == "Q6_K"
    assert chosen("output.weight", width=288) == "Q8_0"


def test_values_and_down_projections_of_some_layers_keep_more_bits() -> None:
    more = [chosen(f"blk.{i}.ffn_down.weight") == "Q6_K" for i in range(24)]
    assert [i for i in range(24) if more[i]] == [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]
    experts = [format_of(f"blk.{i}.ffn_down_exps.weight", (8, 64, 512), "BF16", "Q4_K", 24, False) for i in range(24)]
    assert [format == "Q6_K" for format in experts] == more
    assert chosen("blk.0.ffn_up_exps.weight") == "Q4_K"
    assert chosen("blk.0.attn_v.weight", "Q5_K") == "Q6_K"
    assert chosen("blk.0.ffn_up.weight") == "Q4_K"
    assert chosen("blk.0.attn_v.weight", "Q4_1") == "Q4_1"


def test_rows_that_blocks_do_not_fill_get_another_format() -> None:
    narrow = {wanted: chosen("blk.3.attn_q.weight", wanted, width=96) for wanted in ("Q4_K", "Q5_K", "Q6_K", "IQ4_XS")}
    assert narrow == {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
    assert chosen("blk.3.attn_q.weight", width=80) == "F16"


def test_biases_of_experts_are_not_rounded_although_they_are_many() -> None:
    assert format_of("blk.0.ffn_up_exps.bias", (32, 2880), "F32", "Q8_0", 2, False) == "F32"
