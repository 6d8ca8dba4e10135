"""The whole of `outpace train diffusion` and `train jacobi` on a tiny target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import outpace
from outpace import LanguageModel
from outpace.errors import UsageError
from outpace.train.adapt.export import export_adapter
from outpace.train.adapt.options import AdaptOptions
from outpace.train.adapt.run import AdaptRun, unused_token
from outpace.train.adapt.run import settings_of as settings_for
from outpace.train.report.log import Log
from outpace.train.target import identity_of
from outpace.train.text.corpus import Conversation
from outpace.weights.adapter import open_adapter
from tests.adapting import conversation, learner_of, settings_of
from tests.unit.train.test_stages import prompts_file

SMALL: dict[str, Any] = {
    "num_responses": 24, "max_tokens": 24, "num_checked": 8, "held_out": 0.4, "steps": 3, "batch_tokens": 256,
    "block": 4, "rank": 4, "evaluations": 1,
}  # fmt: skip

FULL = {name: value for name, value in SMALL.items() if name != "rank"}


def run(lm: LanguageModel, folder: Path, **options: Any) -> AdaptRun:
    prompts = prompts_file(folder.parent / "prompts.jsonl", 40)
    return AdaptRun(AdaptOptions(**{"kind": "diffusion", "prompts": prompts, **SMALL, **options}), folder, lm)


@pytest.mark.parametrize("kind", ["diffusion", "jacobi"])
def test_a_run_leaves_an_adapter_that_loads_its_card_its_log_and_its_plot(
    lm: LanguageModel, tmp_path: Path, kind: str
) -> None:
    own = run(lm, tmp_path / "out", kind=kind)
    finished = own.finish(f"outpace train {kind}")
    folder = finished.path.parent
    checkpoint = open_adapter(finished.path)
    assert (checkpoint.kind, checkpoint.rank, checkpoint.scale) == (kind, 4, 1.0)
    assert checkpoint.is_always_on == (kind == "jacobi")
    if checkpoint.filling is not None:
        assert (checkpoint.filling.block, checkpoint.filling.shift) == (4, 1)
    assert f"`{kind}`" in (folder / "card.md").read_text()
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert [entry["step"] for entry in Log(folder / "log.jsonl").entries] == [1, 2, 3]
    adapted = outpace.load(lm.path, adapter=finished.path, threads=1)
    strategy = "block_diffusion" if kind == "diffusion" else "jacobi"
    assert adapted.generate("the cat", strategy=strategy, max_new_tokens=8).tokens
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.json"}
    again = run(lm, tmp_path / "out", kind=kind).finish(f"outpace train {kind}")
    assert again == finished, "told again without any work"
    assert {path: path.read_bytes() for path in before if path.name != "card.md"} == {
        path: data for path, data in before.items() if path.name != "card.md"
    }


def test_a_run_that_ended_in_the_middle_goes_on_to_the_same_adapter(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(lm, tmp_path / "whole").finish("x")
    add, calls = Log.add, []

    def dying(log: Log, entry: dict[str, Any]) -> None:
        calls.append(entry)
        if len(calls) == 2:
            raise KeyboardInterrupt
        add(log, entry)

    with monkeypatch.context() as patched:
        patched.setattr(Log, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            run(lm, tmp_path / "cut").finish("x")
    assert run(lm, tmp_path / "cut").finish("x").path.read_bytes() == whole.path.read_bytes()


def test_a_run_may_stop_behind_its_text_and_go_on(lm: LanguageModel, tmp_path: Path) -> None:
    run(lm, tmp_path / "out", until="responses").stop_behind("responses")
    stages = json.loads((tmp_path / "out" / "run.json").read_text())["stages"]
    assert stages["responses"]["done"]
    assert "training" not in stages
    assert run(lm, tmp_path / "out").finish("x").path.exists()


def test_a_folder_of_another_kind_is_refused(lm: LanguageModel, tmp_path: Path) -> None:
    run(lm, tmp_path / "out")
    with pytest.raises(UsageError, match="kind was 'diffusion' and is 'jacobi'"):
        run(lm, tmp_path / "out", kind="jacobi")


def test_settings_are_what_the_options_say() -> None:
    options = AdaptOptions(kind="diffusion", rank=8, learning_rate=0.01, seed=3, loss="elbo")
    settings = settings_for(options, 60.0, on_cpu=True)
    assert (settings.budget_s, settings.steps, settings.tokens_per_batch) == (60.0, None, 4096)
    assert (settings.rank, settings.alpha, settings.rate, settings.seed, settings.loss) == (8, 8.0, 0.01, 3, "elbo")
    counted = settings_for(AdaptOptions(kind="jacobi", steps=9, batch_tokens=512), 60.0, on_cpu=False)
    assert (counted.budget_s, counted.steps, counted.tokens_per_batch) == (None, 9, 512)
    assert counted.measured_rows > settings.measured_rows


@pytest.mark.parametrize("kind", ["diffusion", "jacobi"])
def test_a_run_that_trains_all_weights_leaves_a_model(lm: LanguageModel, tmp_path: Path, kind: str) -> None:
    own = AdaptRun(
        AdaptOptions(**{"prompts": prompts_file(tmp_path / "p.jsonl", 40), "kind": kind, "weights": "full"} | FULL),
        tmp_path / "out",
        lm,
    )
    finished = own.finish(f"outpace train {kind}")
    assert finished.path == tmp_path / "out" / "model"
    assert "A model made of" in (tmp_path / "out" / "card.md").read_text()
    strategy = "block_diffusion" if kind == "diffusion" else "jacobi"
    model = outpace.load(finished.path, threads=1)
    assert model.generate("the cat", strategy=strategy, max_new_tokens=8).tokens


def test_a_masked_slot_is_a_token_that_no_text_has() -> None:
    texts = [[conversation(3, 200, seed=s) for s in range(3)], [conversation(2, 5, end=95)]]
    assert unused_token(texts, 97) == 96
    assert unused_token(texts, 96) == 94
    every = Conversation(np.arange(97, dtype=np.int32), 3, False, "tiny")
    with pytest.raises(UsageError, match="every token"):
        unused_token([[every], []], 97)


def test_an_adapter_is_continued_and_never_ends_worse(lm: LanguageModel, tmp_path: Path) -> None:
    first = run(lm, tmp_path / "first").finish("x")
    more = run(lm, tmp_path / "more", start=tmp_path / "first", learning_rate=1e-7).finish("x")
    assert more.before == first.measured
    assert more.measured.score >= more.before.score
    worse = run(lm, tmp_path / "worse", start=first.path, learning_rate=1.0, steps=1).finish("x")
    assert worse.path.read_bytes() == first.path.read_bytes()
    assert worse.measured == worse.before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "jacobi"}, "is an adapter of kind diffusion, and jacobi is to be trained"),
        ({"rank": 8}, "has rank 4, and 8 is to be trained"),
    ],
)
def test_an_adapter_of_another_kind_or_rank_is_not_continued(
    lm: LanguageModel, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    learner = learner_of(lm, settings_of(rank=4))
    export_adapter(learner, settings_of(rank=4), identity_of(lm), tmp_path / "adapter.gguf")
    with pytest.raises(UsageError, match=message):
        run(lm, tmp_path / "out", start=tmp_path / "adapter.gguf", **changes)
