from __future__ import annotations

import pytest

from outpace.cache.group import Group
from outpace.types import KVSpec
from tests.unit.cache.tags import TagOps

SPEC = KVSpec(num_layers=1, num_kv_heads=1, head_width=1, block_size=4)


def make_group(num_blocks: int = 3) -> tuple[Group, TagOps]:
    ops = TagOps()
    return Group("drafter", ops, SPEC, None, num_blocks), ops  # type: ignore[arg-type]


def test_it_grows_only_when_it_must() -> None:
    group, ops = make_group()
    for num_blocks in (3, 2, 5, 5, 4):
        group.grow(num_blocks)
    assert ops.sizes == [3, 5]
    assert group.num_blocks == 5


def test_without_memory_it_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    group, ops = make_group()

    def no_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(ops, "kv_grow", no_memory)
        with pytest.raises(MemoryError):
            group.grow(9)
    assert group.num_blocks == 3
    group.grow(4)
    assert ops.sizes == [3, 4]


def test_the_beginning_of_a_block_is_copied_to_another() -> None:
    group, ops = make_group()
    group.kv[0][:] = range(12)
    group.copy(2, 0, 3)
    assert group.kv[0].tolist() == [8, 9, 10, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert len(ops.moves) == 1


def test_a_window_of_nothing_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        Group("drafter", TagOps(), SPEC, 0, 1)  # type: ignore[arg-type]
