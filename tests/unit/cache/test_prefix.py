from __future__ import annotations

from dataclasses import replace

import pytest

from outpace.cache.prefix import PrefixIndex, chain_digest, root_digest
from outpace.types import KVSpec

SPEC = KVSpec(num_layers=2, num_kv_heads=1, head_width=32)


@pytest.mark.parametrize("field", ["num_layers", "num_kv_heads", "head_width", "block_size"])
def test_another_kv_geometry_has_another_root(field: str) -> None:
    other = replace(SPEC, **{field: getattr(SPEC, field) + 32})
    assert root_digest(b"m", SPEC, b"") != root_digest(b"m", other, b"")


def test_another_model_format_or_salt_has_another_root() -> None:
    roots = {
        root_digest(b"m", SPEC, b""),
        root_digest(b"n", SPEC, b""),
        root_digest(b"m", replace(SPEC, format="int8"), b""),
        root_digest(b"m", SPEC, b"salt"),
        root_digest(b"", SPEC, b"m"),
    }
    assert len(roots) == 5


def test_a_digest_depends_on_every_token_and_on_everything_before() -> None:
    root = root_digest(b"m", SPEC, b"")
    digests = {
        chain_digest(root, [1, 2]),
        chain_digest(root, [2, 1]),
        chain_digest(root, [1, 258]),
        chain_digest(chain_digest(root, [1, 2]), [1, 2]),
    }
    assert len(digests) == 4
    assert chain_digest(root, (1, 2)) == chain_digest(root, [1, 2])


def test_a_forgotten_block_is_not_found_and_may_be_added_again() -> None:
    index = PrefixIndex()
    index.add(b"a", 7)
    assert index.find(b"a") == 7
    index.forget(7)
    assert index.find(b"a") is None
    assert 7 not in index
    index.add(b"b", 7)
    index.check()
    assert len(index) == 1


def test_two_blocks_of_one_digest_are_a_bug() -> None:
    index = PrefixIndex()
    index.add(b"a", 7)
    with pytest.raises(AssertionError):
        index.add(b"a", 8)


def test_what_a_group_has_computed_is_marked_until_the_block_is_forgotten() -> None:
    index = PrefixIndex()
    index.add(b"a", 7)
    assert not index.is_computed(7, "drafter")
    index.mark(7, "drafter")
    assert index.is_computed(7, "drafter")
    assert not index.is_computed(7, "other")
    index.check()
    index.forget(7)
    index.add(b"b", 7)
    assert not index.is_computed(7, "drafter")
    with pytest.raises(AssertionError):
        index.mark(8, "drafter")
