from __future__ import annotations

import pytest

from outpace.types import KVSpec
from tests.unit.cache.tags import add_group, extend, follow, has_computed, make_cache

TEXT = list(range(100, 140))


def test_other_salts_and_caches_without_an_index_share_nothing() -> None:
    cache, _ = make_cache()
    extend(cache, cache.open(TEXT, b"alice"), TEXT[:8], b"alice")
    assert cache.open(TEXT, b"bob").length == 0
    assert cache.open(TEXT).length == 0
    assert cache.open(TEXT, b"alice").length == 8
    private, _ = make_cache(share_prefixes=False)
    table = private.open(TEXT)
    extend(private, table, TEXT[:8])
    assert private.open(TEXT).length == 0
    table.close()
    private.check()


def test_a_group_of_layers_added_later_starts_from_nothing_and_grows_with_the_pool() -> None:
    cache, target_ops = make_cache()
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:6])
    ops = add_group(cache)
    assert cache.groups == ("target", "drafter")
    assert cache.bytes_per_token == 4 + 8
    assert table.computed("drafter") == 0
    follow(cache, table, "drafter", TEXT[:6])
    other = cache.open([1])
    other.reserve(30 * 4)
    assert ops.sizes == target_ops.sizes
    assert has_computed(cache, table, "drafter", TEXT[:6])
    assert table.computed("drafter") == 6


def test_a_second_group_of_a_kind_gets_a_name_of_its_own() -> None:
    cache, _ = make_cache()
    assert cache.unused_name("drafter") == "drafter"
    for expected in ("drafter", "drafter 2", "drafter 3"):
        assert cache.unused_name("drafter") == expected
        add_group(cache, expected)


@pytest.mark.parametrize(
    ("windows", "largest"),
    [([6], 6), ([None], None), ([6, 9], 9), ([6, 4, 5], 6), ([6, None], None), ([None, 6], None)],
)
def test_a_window_is_kept_for_all_groups_that_there_are(windows: list[int | None], largest: int | None) -> None:
    cache, _ = make_cache(max_window=windows[0])
    for number, window in enumerate(windows[1:]):
        add_group(cache, f"drafter {number}", window)
    assert cache.max_window == cache.open(TEXT).max_window == largest


def test_each_group_has_its_own_storage_and_geometry() -> None:
    cache, target_ops = make_cache()
    ops = add_group(cache)
    assert cache.kv() is cache.kv("target")
    assert cache.kv("drafter") is not cache.kv()
    assert cache.spec_of("target") == cache.spec == target_ops.spec
    assert cache.spec_of("drafter") == ops.spec == KVSpec(1, 2, 1, block_size=4)
    with pytest.raises(KeyError):
        cache.kv("nobody")


def test_check_notices_a_group_that_claims_what_it_has_not_computed() -> None:
    cache, _ = make_cache()
    add_group(cache)
    table = cache.open(TEXT)
    extend(cache, table, TEXT[:6])
    follow(cache, table, "drafter", TEXT[:2])
    cache.check()
    table._progress["drafter"].computed = 5
    with pytest.raises(AssertionError, match="the index knows what is computed"):
        cache.check()
    table._progress["drafter"].computed = 7
    with pytest.raises(AssertionError, match="only what is committed is computed"):
        cache.check()
