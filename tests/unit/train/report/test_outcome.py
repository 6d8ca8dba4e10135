"""The whole of `outpace train` on a tiny target, kinds included; the stages have tests of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import outpace
from outpace.api import LanguageModel
from outpace.measure.output_file import save
from outpace.train.drafting import Drafted
from outpace.train.options import Kind, TrainOptions
from outpace.train.report.log import Log
from outpace.train.report.outcome import Finished, finish
from outpace.train.run import Run
from outpace.train.trainer import Outcome
from tests.unit.train.test_stages import prompts_file

SMALL: dict[str, Any] = {
    "num_responses": 32, "max_tokens": 40, "num_checked": 16, "held_out": 0.5, "steps": 6, "batch_tokens": 256,
    "learning_rate": 0.02,
}  # fmt: skip


def run(lm: LanguageModel, folder: Path, start: Path, **options: Any) -> Run:
    """Return a run that continues a drafter."""
    prompts = prompts_file(folder.parent.parent / "prompts.jsonl", 40)
    return Run(TrainOptions(kind="eagle", prompts=prompts, start=start, **SMALL | options), folder, lm)


def opened(lm: LanguageModel) -> Any:
    return lambda drafter: outpace.load(lm.path, threads=1, drafter=drafter)


@pytest.fixture(scope="module")
def finished(lm: LanguageModel, trained: Outcome[Drafted], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run that continues a drafter which has learned what the target writes."""
    own = run(lm, tmp_path_factory.mktemp("run") / "out", trained.path)
    return finish(own, opened(lm), "outpace train eagle")


def test_forecast_and_decoding_agree(finished: Finished) -> None:
    """Over the same sequences, greedy and sampled, so they differ by rounding alone."""
    assert finished.check.agrees
    assert all(row.real > 1.3 for row in finished.check.totals)
    assert finished.check.different == 0
    assert {row.sampled for row in finished.check.totals} == {False, True}


def test_the_folder_has_a_drafter_that_loads_its_card_its_log_and_its_plot(
    finished: Finished, lm: LanguageModel
) -> None:
    folder = finished.drafter.parent
    assert opened(lm)(finished.drafter).generate("the cat", strategy="eagle", max_new_tokens=8, seed=1).lossless
    card = (folder / "card.md").read_text()
    assert card.startswith(f"# A drafter for {lm.path.name}: `eagle`")
    assert "`outpace train eagle`" in card
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_run_is_told_again_without_any_work(
    finished: Finished, lm: LanguageModel, trained: Outcome[Drafted], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = finished.drafter.read_bytes()
    monkeypatch.setattr(type(lm), "generate", None)
    own = run(lm, finished.drafter.parent, trained.path)
    again = finish(own, lambda drafter: lm, "outpace train eagle")
    assert again == finished
    assert finished.drafter.read_bytes() == before


@pytest.mark.parametrize("kind", ["medusa", "block"])
def test_every_kind_decodes_as_forecast(
    kind: Kind, lm: LanguageModel, trained_of: Callable[[str], Outcome[Drafted]], tmp_path: Path
) -> None:
    prompts, start = prompts_file(tmp_path / "p.jsonl", 40), trained_of(kind).path
    run = Run(TrainOptions(kind=kind, prompts=prompts, start=start, **SMALL | {"steps": 2}), tmp_path / "out", lm)
    done = finish(run, opened(lm), "outpace train")
    assert done.check.agrees
    assert all(row.real > 1.2 for row in done.check.totals)


class Killed(BaseException):
    """What ends a run at once, as a kill does: nothing is written after it."""


def dying(call: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Return a function that does what `call` does, but raises at the given call."""

    def counted(*given: Any) -> Any:
        nonlocal count
        count -= 1
        if not count:
            raise Killed
        return call(*given)

    return counted


@pytest.mark.parametrize(
    ("place", "call", "count"), [("training.Log.add", Log.add, 3), ("run.save", save, 3)], ids=["training", "check"]
)
def test_a_run_that_ends_in_the_middle_of_training_or_of_the_check_goes_on(
    lm: LanguageModel,
    tmp_path: Path,
    trained: Outcome[Drafted],
    finished: Finished,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    call: Callable[..., Any],
    count: int,
) -> None:
    """After two steps; after two conversations."""
    mine = outpace.load(lm.path, threads=1)
    with monkeypatch.context() as patched:
        patched.setattr(f"outpace.train.{place}", dying(call, count))
        with pytest.raises(Killed):
            finish(run(mine, tmp_path / "out", trained.path), opened(lm), "outpace train eagle")
    decoded = tmp_path / "out" / "check.jsonl"
    assert (decoded.read_text().count("\n") if decoded.exists() else 0) == (2 if place == "run.save" else 0)
    again = finish(run(lm, tmp_path / "out", trained.path), opened(lm), "outpace train eagle")
    assert again.check == finished.check
    assert again.drafter.read_bytes() == finished.drafter.read_bytes()


def test_a_drafter_that_is_continued_never_ends_worse(finished: Finished, lm: LanguageModel, tmp_path: Path) -> None:
    """At a learning rate that destroys it, the drafter that one began with is the best."""
    own = run(lm, tmp_path / "out", finished.drafter.parent, learning_rate=1.0, steps=3)
    again = finish(own, opened(lm), "outpace train eagle --from ...")
    facts = own.ledger.facts("training")
    assert facts["score"] >= facts["score_before"]
    assert "It continues an earlier drafter" in (again.drafter.parent / "card.md").read_text()
