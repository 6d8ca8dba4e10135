from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import outpace
from outpace.api import LanguageModel
from tests.decoding import tiny_ops


@pytest.fixture
def lm(folder: Path) -> LanguageModel:
    return outpace.load(folder, ops=tiny_ops())


def test_a_draft_model_joins_the_cache_once_whoever_asks(lm: LanguageModel, folder: Path) -> None:
    draft, other = outpace.load(folder, ops=lm.runner.ops, kv="int8"), outpace.load(folder, ops=lm.runner.ops)
    runner = lm.loaded.follower(draft.loaded)
    assert lm.loaded.follower(draft.loaded) is runner
    assert lm.loaded.follower(other.loaded).group != runner.group
    cache = lm.runner.cache
    assert runner.cache is cache
    assert cache.groups == ("target", runner.group, lm.loaded.follower(other.loaded).group)
    assert cache.spec_of(runner.group).format == "int8"
    assert cache.bytes_per_token == sum(each.runner.cache.spec.bytes_per_token for each in (lm, draft, other))


def test_exact_and_rejection_sampling_share_what_the_draft_model_has_read(lm: LanguageModel, folder: Path) -> None:
    options: dict[str, Any] = {"strategy": "draft_model", "draft_model": str(folder), "max_new_tokens": 4}
    for verification in ("exact", "rejection"):
        lm.generate("the cat", verification=verification, **options)
    assert len(lm.runner.cache.groups) == 2


def test_a_draft_model_reads_only_what_is_new_in_a_chats_next_turn(
    lm: LanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = outpace.load(folder, ops=lm.runner.ops)
    runner = lm.loaded.follower(draft.loaded)
    counts: list[int] = []
    forward = runner.forward

    def counting(batch: Any, taps: Sequence[int] = ()) -> Any:
        counts.append(sum(s.end - s.start for s in batch))
        return forward(batch, taps)

    monkeypatch.setattr(runner, "forward", counting)
    chat = lm.chat(strategy="draft_model", draft_model=draft, max_new_tokens=60, ignore_eos=True)
    for message in ("the cat sat on the mat and the dog sat on the log", "and then?", "and then?"):
        counts.clear()
        result = chat.send(message)
        stats = result.stats
        rejected = stats.proposed["draft_model"] - stats.accepted["draft_model"]
        new = stats.prompt_tokens - stats.cached_tokens + len(result.tokens)
        assert sum(counts) <= new + rejected + 32, "at most a block more than the target"
    assert stats.cached_tokens > 64
    lm.runner.cache.check()
