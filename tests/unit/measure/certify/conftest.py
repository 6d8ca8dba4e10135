"""A tiny model, the target's distribution after a prompt, and a whole certificate of a tiny folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import outpace
from outpace.measure.certify import Certificate, Scope, certify
from outpace.measure.certify.target_distribution import TargetDistribution
from outpace.measure.prompts import TaskPrompt
from outpace.runner import Runner
from tests.decoding import tiny_ops, tiny_runner

PROMPT = [5, 6, 7, 8]
PROMPTS = [  # longer than a block of the cache
    TaskPrompt("a", "the cat sat on the mat and the dog said: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15"),
    TaskPrompt("b", "def f(x):\n    return x, f(x)\n\ndef g(y):\n    return f(y) + y ** 3 - 2 * y / 7 + f(f(y))"),
]
SMALL = Scope(num_prompts=2, num_tokens=10, num_recomputed=3, batches=(1, 2), max_groups=1, draws=500, num_scored=160)


@pytest.fixture(scope="module")
def runner() -> Runner:
    return tiny_runner(ops=tiny_ops(), vocab_size=40)


@pytest.fixture(scope="module")
def target(runner: Runner) -> TargetDistribution:
    return TargetDistribution.of(runner, PROMPT)


@pytest.fixture(autouse=True)
def own_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "models"))


@pytest.fixture(scope="session")
def opener(folder: Path) -> Any:
    """Opens the tiny folder's model, as `certify` asks for it."""
    ops = tiny_ops()
    return lambda kv, cache_tokens: outpace.load(folder, kv=kv, cache_tokens=cache_tokens, ops=ops)


@pytest.fixture(scope="session")
def reports() -> list[tuple[int, int, str]]:
    """What `certificate` reported of its progress."""
    return []


@pytest.fixture(scope="session")
def certificate(
    opener: Callable[..., Any], reports: list[tuple[int, int, str]], tmp_path_factory: pytest.TempPathFactory
) -> Certificate:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTPACE_CACHE", str(tmp_path_factory.mktemp("cache") / "models"))
        return certify(opener, PROMPTS, SMALL, progress=lambda *report: reports.append(report))
