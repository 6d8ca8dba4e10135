from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import outpace
from outpace.api import LanguageModel
from outpace.errors import UsageError
from outpace.measure.progress import Progress
from outpace.train.options import TrainOptions
from outpace.train.report.outcome import finish
from outpace.train.run import Run
from outpace.train.text.corpus import Corpus, key_of
from outpace.train.text.prompts import read_prompts

SMALL = {"max_tokens": 12, "num_checked": 5, "held_out": 0.3, "batch": 4}
WORDS = ("cat", "mat", "dog", "log", "sun", "sea", "sky", "oak", "elm", "bee")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outpace.train.text.sources._PER_SHARD", 4)
    monkeypatch.setattr("outpace.train.text.sources._MAX_USER_TOKENS", 16)
    monkeypatch.setattr("outpace.train.text.synthesis._SENTENCE_END", re.compile("$"))


def run(lm: LanguageModel, folder: Path, **options: Any) -> Run:
    return Run(TrainOptions(**{"kind": "eagle", **SMALL, **options}), folder, lm)  # type: ignore[arg-type]


def prompts_file(path: Path, count: int = 20) -> Path:
    lines = [{"prompt": f"Where is the {WORDS[i % 10]} of number {i}?", "kind": "ab"[i % 2]} for i in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def killed(ends: str, folder: Path, model: Path, *options: str) -> list[list[str]]:
    """Return what `killing.py` prints, word by word."""
    command = [sys.executable, "-m", "tests.unit.train.killing", ends, str(folder), str(model), *options]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    first, *others = [line.split() for line in done.stdout.decode().splitlines()]
    assert first == ["whole", "0"]
    return others


def test_a_run_that_was_killed_anywhere_leaves_what_an_uninterrupted_one_leaves(folder: Path, tmp_path: Path) -> None:
    ends = (
        "prompts/:1",
        "prompts/:4",
        "held-out.jsonl:1",
        "held-out/:3",
        "run.json:9",
        "responses/:6",
        "responses/:13",
    )
    found = killed(",".join(ends), tmp_path, folder, "num_prompts=20", "num_responses=24")
    assert [words[:2] for words in found] == [["-9", "0"]] * len(ends)
    assert [words[3:] for words in found] == [[]] * len(ends), "files that differ"
    assert {words[2] for words in found} == {"prompts", "held-out", "responses"}


@pytest.mark.slow
def test_so_does_one_that_was_killed_in_training_or_in_the_check(folder: Path, tmp_path: Path) -> None:
    options = ("num_prompts=20", "num_responses=24", "steps=4", "batch_tokens=256")
    found = killed("state.pt:2,check.jsonl:2", tmp_path, folder, *options)
    assert found == [["-9", "0", "training"], ["-9", "0", "check.jsonl"]], "files that differ come last"


def test_so_does_a_run_over_texts(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps("the cat sat on the mat " * (3 + i)) + "\n" for i in range(12)))
    found = killed("texts/:2,texts/:4,held-out/:2,held-out/:4", tmp_path, folder, f"texts={path}")
    assert [words[:2] for words in found] == [["-9", "0"]] * 4
    assert [words[3:] for words in found] == [[]] * 4, "files that differ"
    assert {words[2] for words in found} == {"texts", "held-out"}


def test_the_users_prompts_are_answered_and_some_are_kept_apart(lm: LanguageModel, tmp_path: Path) -> None:
    own = run(lm, tmp_path / "out", prompts=prompts_file(tmp_path / "p.jsonl"), num_responses=30)
    train, held_out = own.conversations()
    assert {conversation.kind for conversation in train} == {"a", "b"}
    assert 0 < len(held_out) <= 5
    assert {own.key for own in train}.isdisjoint(own.key for own in held_out)
    assert 0 < sum(conversation.sampled for conversation in train) < len(train)
    assert sum(own.ledger.facts("prompts")["dropped"].values()) == 0
    assert read_prompts(tmp_path / "out" / "prompts.jsonl")[0].text.startswith("Where is the")


def test_a_finished_stage_is_not_done_again(lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"prompts": prompts_file(tmp_path / "p.jsonl"), "num_responses": 10}
    before = run(lm, tmp_path / "out", **options).conversations()
    monkeypatch.setattr(type(lm), "generate", None)
    after = run(lm, tmp_path / "out", **options).conversations()
    assert [[own.tokens.tolist() for own in side] for side in after] == [
        [own.tokens.tolist() for own in side] for side in before
    ]


def test_what_every_stage_brought_is_told(lm: LanguageModel, tmp_path: Path) -> None:
    path = prompts_file(tmp_path / "p.jsonl")
    path.write_text(path.read_text() + path.read_text().splitlines()[0])
    lines: list[str] = []
    shown: list[tuple[int, int, str]] = []
    options = TrainOptions(kind="eagle", prompts=path, num_responses=10, **SMALL)  # type: ignore[arg-type]

    @contextmanager
    def show() -> Iterator[Progress]:
        yield lambda *state: shown.append(state)

    Run(options, tmp_path / "out", lm, tell=lines.append, shown=show).conversations()
    assert [line.split(":")[0] for line in lines] == ["prompts", "held-out", "responses"]
    assert "1 exact" in lines[0]
    assert shown[-1][:2] == (10, 10)
    assert all(done <= total for done, total, _ in shown)


def test_other_settings_and_other_files_are_refused_with_the_difference(lm: LanguageModel, tmp_path: Path) -> None:
    options = {"prompts": prompts_file(tmp_path / "p.jsonl"), "num_responses": 10}
    run(lm, tmp_path / "out", **options)
    with pytest.raises(UsageError, match=r"seed was 0 and is 1\)"):
        run(lm, tmp_path / "out", **options, seed=1)
    prompts_file(tmp_path / "p.jsonl", 21)
    with pytest.raises(UsageError, match="prompts was"):
        run(lm, tmp_path / "out", **options)


def test_with_a_budget_a_run_ends_by_itself(lm: LanguageModel, tmp_path: Path) -> None:
    """However little time there is, what was begun first is finished."""
    own = run(lm, tmp_path / "out", budget="2s")
    train, held_out = own.conversations()
    assert len(train)
    assert len(held_out)
    assert own.ledger.is_done("responses")


def test_texts_become_sequences_and_the_target_continues_the_held_out_ones(lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"{WORDS[i % 10]} {i} " * 20, "kind": "news"}) + "\n" for i in range(30))
    )
    train, held_out = run(lm, tmp_path / "out", texts=path).conversations()
    assert len(train) + 5 <= 30
    assert {(own.kind, own.num_prompt) for own in train} == {("news", 1)}
    assert all(own.kind == "news" and own.num_prompt >= 8 for own in held_out)
    again = lm.generate(held_out[0].tokens[: held_out[0].num_prompt].tolist(), max_new_tokens=12, strategy="none")
    assert again.tokens == held_out[0].tokens[held_out[0].num_prompt :].tolist()


def test_a_corpus_is_trained_on_as_it_is(lm: LanguageModel, tmp_path: Path) -> None:
    source = run(lm, tmp_path / "a", prompts=prompts_file(tmp_path / "p.jsonl", 40), num_responses=40)
    corpus, _ = source.conversations()
    assert isinstance(corpus, Corpus)
    own = run(lm, tmp_path / "b", texts=tmp_path / "a" / "responses")
    train, held_out = own.conversations()
    keys = {conversation.key for conversation in corpus}
    assert own.ledger.is_done("prompts"), "and leaves its share of the time to the others"
    assert {conversation.key for conversation in train} < keys
    held_out_keys = {key_of(conversation.tokens[: conversation.num_prompt]) for conversation in held_out}
    assert held_out_keys <= keys - {conversation.key for conversation in train}


def test_text_that_leaves_nothing_to_measure_with_is_refused(lm: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the cat sat on the mat and the dog sat on the log, " * 2)
    with pytest.raises(UsageError, match="to measure with"):
        run(lm, tmp_path / "out", texts=tmp_path / "t.txt", held_out=0.001).conversations()


def test_text_is_written_here_and_trained_on_there(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There: a copy of the folder, files elsewhere, other ops, which may write no text, another budget; then back."""
    source = run(lm, tmp_path / "source", prompts=prompts_file(tmp_path / "p.jsonl", 40), num_responses=24)
    source.conversations()
    corpus = tmp_path / "source" / "responses"
    options = {"steps": 2, "batch_tokens": 256, "evaluations": 1, "max_draft": 2}
    run(lm, tmp_path / "here", texts=corpus, until="responses", budget="1m", **options).stop_behind("responses")
    shutil.copytree(tmp_path / "here", tmp_path / "there" / "run")
    shutil.copytree(corpus, tmp_path / "there" / "corpus")
    other = outpace.load(lm.path, ops="reference", threads=1)
    monkeypatch.setattr(LanguageModel, "generate", None)
    there = run(
        other,
        tmp_path / "there" / "run",
        texts=tmp_path / "there" / "corpus",
        until="training",
        device="cpu",
        **options,
    )
    there.stop_behind("training")
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "here")
    shutil.copytree(tmp_path / "there" / "run", tmp_path / "here")
    shutil.rmtree(tmp_path / "there")
    back = run(lm, tmp_path / "here", texts=corpus, **options)
    monkeypatch.setattr("outpace.train.training.train", None)
    finished = finish(back, lambda path: outpace.load(lm.path, threads=1, drafter=path), "outpace train")
    assert finished.drafter.read_bytes() == (tmp_path / "here" / "training" / "drafter.gguf").read_bytes()
    assert finished.check.rows
    assert back.ledger.is_done("check")


def test_other_ops_may_not_go_on_with_text_that_is_not_finished(lm: LanguageModel, tmp_path: Path) -> None:
    run(lm, tmp_path / "out", prompts=prompts_file(tmp_path / "p.jsonl"), num_responses=10)
    other = outpace.load(lm.path, ops="reference", threads=1)
    with pytest.raises(UsageError, match="ops was 'native' and is 'reference'"):
        run(other, tmp_path / "out", prompts=tmp_path / "p.jsonl", num_responses=10)


@pytest.mark.slow
def test_a_whole_run_ends_by_its_budget_alone(lm: LanguageModel, tmp_path: Path) -> None:
    """No count is given anywhere: every stage, training too, ends because its share of the time is over."""
    own = run(lm, tmp_path / "out", budget="12s", batch_tokens=256)
    finished = finish(own, lambda path: outpace.load(lm.path, threads=1, drafter=path), "outpace train")
    entries = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert entries[-1]["measured"] is not None
    assert [entry["step"] for entry in entries] == list(range(1, len(entries) + 1))
    assert entries[-1]["learning_rate"] < entries[len(entries) // 4]["learning_rate"]
    assert own.ledger.facts("training")["steps"] == len(entries)
    assert finished.drafter.is_file()
    assert finished.check.rows
