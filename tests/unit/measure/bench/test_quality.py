from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import outpace
from outpace.api import LanguageModel
from outpace.errors import UsageError
from outpace.measure.bench.quality import Design, Sample, Way, measure_quality, summarise_quality, ways_of
from outpace.measure.prompts import TaskPrompt
from outpace.measure.quality.perplexity import perplexity
from outpace.measure.quality.tasks import tasks
from tests.decoding import tiny_ops
from tests.folder import make_folder

PROMPTS = [TaskPrompt("x", "the cat sat"), TaskPrompt("y", "the dog")]
PLAIN = Way("none", "autoregressive", {"strategy": "none"})
LOSSY = Way("fast", "non-autoregressive", {"strategy": "block_diffusion"}, is_lossless=False, dial=0.5)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return outpace.load(make_folder(tmp_path_factory.mktemp("model") / "tiny"), ops=tiny_ops(), kv="f32")


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    own: dict[str, Any] = {"outpace_diffusion": {"mask_token_id": 3, "block": 4, "shift": 1}}
    path: Path = tmp_path_factory.mktemp("model") / "filler"
    return outpace.load(make_folder(path, **own), ops=tiny_ops(), kv="f32")


def test_what_is_compared_depends_on_what_the_model_can_do(lm: LanguageModel, filler: LanguageModel) -> None:
    assert [way.name for way in ways_of(lm)] == ["none", "auto"]
    names = [way.name for way in ways_of(filler, thresholds=(0.5, 0.9), passes=(4,))]
    assert names == [
        "none", "auto", "block_diffusion, threshold 0.5", "block_diffusion, threshold 0.9",
        "block_diffusion, sliding, threshold 0.5", "block_diffusion, sliding, threshold 0.9",
        "block_diffusion, verified", "mask_predict, passes 4", "mask_predict, verified",
    ]  # fmt: skip
    curves = {way.curve for way in ways_of(filler) if way.dial is not None}
    assert curves == {"block_diffusion", "block_diffusion, sliding", "mask_predict"}


def test_a_student_is_measured_by_itself_and_as_a_draft_model(lm: LanguageModel, filler: LanguageModel) -> None:
    ways = ways_of(lm, ["suffix"], {"small": filler})
    assert [(way.name, way.group, way.is_lossless) for way in ways] == [
        ("none", "autoregressive", True),
        ("suffix", "speculative", True),
        ("small", "distilled", False),
        ("draft_model small", "speculative", True),
    ]


def test_every_way_answers_every_prompt_and_task_in_turn(filler: LanguageModel) -> None:
    ways = ways_of(filler, ["suffix", "block_diffusion"], thresholds=(0.5,))
    reports: list[tuple[int, int, str]] = []
    found = list(
        measure_quality(filler, ways, PROMPTS, tasks(1), Design(num_tokens=12), lambda *report: reports.append(report))
    )
    assert [s.way for s in found[: len(ways)]] == [way.name for way in ways]
    assert len(found) == len(ways) * 5 == reports[-1][0] == reports[-1][1]
    rows = {row.way.name: row for row in summarise_quality(found, ways)}
    assert rows["suffix"].unequal == rows["block_diffusion, verified"].unequal == 0
    assert rows["suffix"].same_text == 1
    assert rows["none"].passes_per_token == 1
    assert rows["suffix"].perplexity == rows["none"].perplexity
    assert set(rows["none"].exact) == {"arithmetic", "copy", "edit"}


def test_perplexity_is_that_of_all_texts_under_the_original_model(lm: LanguageModel) -> None:
    found = list(measure_quality(lm, [PLAIN, LOSSY], PROMPTS, [], Design(num_tokens=12)))
    for row in summarise_quality(found, [PLAIN, LOSSY]):
        own = [list(s.tokens) for s in found if s.way == row.way.name]
        prompts = [lm.tokenizer.encode_chat([{"role": "user", "content": p.text}]) for p in PROMPTS]
        assert row.perplexity == pytest.approx(perplexity(lm.runner, prompts, own))


def test_a_way_that_cannot_work_is_refused_before_anything_is_measured(lm: LanguageModel) -> None:
    with pytest.raises(UsageError, match="unknown strategy"):
        next(measure_quality(lm, [PLAIN, Way("x", "speculative", {"strategy": "x"})], PROMPTS, [], Design()))


def sample(way: str, repeat: int = 0, **fields: Any) -> Sample:
    values: dict[str, Any] = {
        "way": way, "kind": "text", "index": 0, "repeat": repeat, "tokens": (1, 2, 3, 4, 1, 2, 3, 4),
        "decode_tokens": 7, "seconds": 1.0, "passes": 8, "bits": 16.0, "is_right": None, "equal": True,
    }  # fmt: skip
    return Sample(**(values | fields))


def test_rows_add_up_samples_and_put_lossless_ways_first() -> None:
    other = Way("ngram", "speculative", {"strategy": "ngram"})
    task: dict[str, Any] = {"kind": "copy", "is_right": True}
    samples = [
        *(sample("none"), sample("fast", seconds=0.5, passes=2, bits=24.0, equal=False), sample("ngram", equal=False)),
        *(sample(way, **task, index=1, seconds=s) for way, s in (("none", 1.0), ("fast", 0.5), ("ngram", 1.0))),
        *(sample(way, **task, index=2, seconds=s) for way, s in (("none", 1.0), ("ngram", 1.0))),
        sample("fast", kind="copy", is_right=False, index=2, seconds=0.5),
        sample("none", index=3, bits=100.0),  # a run that was cut: nobody else answered this one
    ]
    none, ngram, fast = summarise_quality(samples, [PLAIN, LOSSY, other])
    assert [row.way.name for row in (none, ngram, fast)] == ["none", "ngram", "fast"]
    assert (none.perplexity, fast.perplexity) == (4.0, 8.0)
    assert (none.speedup, fast.speedup) == (1.0, 2.0)
    assert (none.exact, fast.exact) == ({"copy": 1.0}, {"copy": 0.5})
    assert none.repetition == pytest.approx(1 / 5)
    assert (fast.unequal, ngram.unequal) == (0, 1)
    assert fast.same_text == pytest.approx(2 / 3)


def test_a_text_of_one_pass_has_no_speed() -> None:
    rows = summarise_quality([sample("none"), sample("fast", seconds=0.0, decode_tokens=0)], [PLAIN, LOSSY])
    assert [row.way.name for row in rows] == ["none"]
    assert not math.isnan(rows[0].speedup)
