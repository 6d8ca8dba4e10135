from __future__ import annotations

import pytest

from outpace.types import KVFormat, KVSpec, Segment


@pytest.mark.parametrize(
    ("form", "width", "per_head"),
    [("f32", 48, 4 * 48), ("bf16", 48, 2 * 48), ("int8", 48, 48 + 4), ("int8", 64, 64 + 2 * 4)],
)
def test_a_token_takes_keys_and_values_of_every_layer_and_head_with_their_scales(
    form: KVFormat, width: int, per_head: int
) -> None:
    assert KVSpec(num_layers=3, num_kv_heads=5, head_width=width, format=form).bytes_per_token == 2 * 3 * 5 * per_head


def test_a_scale_covers_32_channels_or_the_whole_head() -> None:
    assert KVSpec(1, 1, 96).scale_group == 32
    assert KVSpec(1, 1, 80).scale_group == 80


def test_pending_tokens_stand_before_the_draft() -> None:
    segment = Segment(blocks=[0], start=4, tokens=[7, 8, 9, 9], parents=[-1, 0], num_scored=3)
    assert segment.num_pending == 2
