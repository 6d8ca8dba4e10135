from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from outpace.ops.layers import DecoderLayer, Experts

HANDLE: Any = object()
PLAIN = DecoderLayer(
    index=0, wq=HANDLE, wk=HANDLE, wv=HANDLE, wo=HANDLE, rope=HANDLE, num_heads=2, num_kv_heads=1, head_width=4,
    eps=1e-6, gate=HANDLE, up=HANDLE, down=HANDLE, attn_norm=HANDLE, mlp_norm=HANDLE,
)  # fmt: skip


@pytest.mark.parametrize("part", ["bq", "bo", "q_norm", "key_scale", "sinks", "query_growth"])
def test_a_fused_layer_runs_parts_of_attention(part: str) -> None:
    assert replace(PLAIN, **{part: HANDLE}).is_plain


@pytest.mark.parametrize(
    "part",
    ["gate_bias", "up_bias", "down_bias", "q_wide_norm", "k_wide_norm", "attn_post_norm", "mlp_post_norm"],
)
def test_a_layer_with_a_part_that_a_fused_one_has_not_is_composed(part: str) -> None:
    assert not replace(PLAIN, **{part: HANDLE}).is_plain


@pytest.mark.parametrize("change", [{"attn_norm": None}, {"mlp_norm": None}, {"residual_scale": 0.5}])
def test_a_layer_without_both_norms_or_with_scaled_residuals_is_composed(change: dict[str, Any]) -> None:
    assert not replace(PLAIN, **change).is_plain


def test_a_layer_of_experts_has_no_mlp() -> None:
    experts = Experts(router=HANDLE, gate=(HANDLE,), up=(HANDLE,), down=(HANDLE,), num_chosen=1, is_normalised=True)
    assert PLAIN.mlp == (HANDLE, HANDLE, HANDLE)
    with pytest.raises(AssertionError, match="has experts"):
        _ = replace(PLAIN, gate=None, up=None, down=None, experts=experts).mlp
