from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from outpace.api import LanguageModel
from outpace.errors import UsageError
from outpace.train.given import Given
from outpace.train.options import TrainOptions
from outpace.train.text.corpus import Corpus


def given(lm: LanguageModel, **options: Any) -> Given:
    return Given.of(TrainOptions(**{"kind": "eagle", **options}), lm)


def test_files_are_read_and_told_apart_by_their_contents(lm: LanguageModel, tmp_path: Path) -> None:
    path, other = tmp_path / "p.jsonl", tmp_path / "q.jsonl"
    path.write_text('"one"\n"two"')
    other.write_text('"three"')
    found = given(lm, prompts=path, exclude=other)
    assert [prompt.text for prompt in found.prompts] == ["one", "two"]
    assert [prompt.text for prompt in found.excluded] == ["three"]
    before = found.made_with
    assert given(lm, prompts=path, exclude=other).made_with == before
    os.utime(path, (0, 0))
    assert given(lm, prompts=path, exclude=other).made_with == before
    path.write_text('"one"\n"four"')
    after = given(lm, prompts=path, exclude=other).made_with
    assert {name for name in after if after[name] != before[name]} == {"prompts"}


def test_how_many_are_asked_at_once_makes_no_other_run(lm: LanguageModel) -> None:
    assert given(lm, batch=3).made_with == given(lm, batch=4).made_with
    assert given(lm, seed=3).made_with != given(lm, seed=4).made_with


@pytest.mark.parametrize("option", ["prompts", "texts", "exclude", "start"])
def test_a_file_that_is_not_there_is_told_with_its_option(lm: LanguageModel, tmp_path: Path, option: str) -> None:
    name = "--from" if option == "start" else f"--{option}"
    with pytest.raises(UsageError, match=name):
        given(lm, **{option: tmp_path / "nothing"})


def test_a_malformed_line_is_told_with_its_option(lm: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": 3}')
    with pytest.raises(UsageError, match=r"--prompts: .*p\.jsonl, line 1"):
        given(lm, prompts=tmp_path / "p.jsonl")


def test_a_corpus_folder_is_taken_if_it_has_the_vocabulary(lm: LanguageModel, tmp_path: Path) -> None:
    Corpus.create(tmp_path / "own", lm.tokenizer.fingerprint, lm.config.vocab_size)
    assert given(lm, texts=tmp_path / "own").corpus is not None
    Corpus.create(tmp_path / "other", "another", lm.config.vocab_size)
    with pytest.raises(UsageError, match=r"--texts: .*another vocabulary"):
        given(lm, texts=tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"--texts: .*is no corpus"):
        given(lm, texts=tmp_path / "empty")


def test_what_is_no_drafter_of_this_kind_cannot_be_continued(lm: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"no drafter")
    with pytest.raises(UsageError, match="--from"):
        given(lm, start=tmp_path / "x.gguf")
