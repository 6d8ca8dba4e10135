from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from outpace.api import LanguageModel
from outpace.errors import UsageError
from outpace.train.text.corpus import Conversation, Corpus
from outpace.train.text.texts import KIND, SHORTEST, beginning, fill, read_texts, sequences


def test_json_lines_are_texts_with_their_kinds(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('"one"\n\n{"text": "two\\nlines"}\n{"text": "three", "kind": "news", "id": 3}\n')
    assert read_texts(path) == [("one", KIND), ("two\nlines", KIND), ("three", "news")]


def test_any_other_file_is_one_text(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text('"one"\n\ntwo\n')
    assert read_texts(path) == [('"one"\n\ntwo\n', KIND)]


@pytest.mark.parametrize(
    "line", ["{", "3", '{"prompt": "x"}', '{"text": 3}', '""', '{"text": "x", "kind": ""}', '"\\udfff"']
)
def test_a_line_that_is_no_text_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(f'"fine"\n{line}\n')
    with pytest.raises(UsageError, match="line 2"):
        read_texts(path)


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl"])
def test_a_file_without_text_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(" \n")
    with pytest.raises(UsageError, match="holds no text"):
        read_texts(tmp_path / name)


def test_a_text_is_cut_into_sequences_and_a_short_rest_is_left_out(lm: LanguageModel) -> None:
    text = "the cat sat on the mat and " * 20
    ids = lm.tokenizer.encode(text)
    found = sequences((text, "pets"), lm.tokenizer, 50)
    whole = len(ids) - len(ids) % 50 if len(ids) % 50 < SHORTEST else len(ids)
    assert [token for own in found for token in own.tokens] == ids[:whole]
    assert all((own.num_prompt, own.sampled, own.kind) == (1, False, "pets") for own in found)


def test_a_corpus_is_filled_shard_by_shard_and_goes_on_where_it_was(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outpace.train.text.texts._PER_SHARD", 4)
    texts = [(json.dumps(list(range(i, i + 40))), KIND) for i in range(10)]

    def corpus(name: str) -> Corpus:
        return Corpus.create(tmp_path / name, "f", lm.config.vocab_size)

    whole = corpus("whole")
    assert list(fill(whole, texts, lm.tokenizer)) == [4, 8, 10]
    steps = fill(corpus("cut"), texts, lm.tokenizer)
    assert next(steps) == 4
    cut = Corpus.open(tmp_path / "cut")
    assert list(fill(cut, texts, lm.tokenizer)) == [8, 10]
    assert [own.tokens.tolist() for own in cut] == [own.tokens.tolist() for own in whole]


def test_a_text_of_many_is_held_out_whole_and_a_single_one_in_parts(lm: LanguageModel, tmp_path: Path) -> None:
    long = [(" ".join(f"{i}x{j}" for j in range(900)), KIND) for i in range(6)]
    for name, texts in (("many", long), ("one", long[:1])):
        corpus = Corpus.create(tmp_path / name, "f", lm.config.vocab_size)
        list(fill(corpus, texts, lm.tokenizer))
        train, held_out = corpus.split(0.5, 1)
        parts = [len(sequences(text, lm.tokenizer)) for text in texts]
        assert min(parts) > 3
        sides = [
            {bool(i in held_out.places) for i in range(sum(parts[:k]), sum(parts[: k + 1]))} for k in range(len(parts))
        ]
        assert all(len(side) == (1 if name == "many" else 2) for side in sides)
        assert len(train) + len(held_out) == sum(parts)


def test_a_conversation_begins_with_its_prompt_and_a_text_with_its_first_half() -> None:
    tokens = np.arange(40, dtype=np.int32)
    assert beginning(Conversation(tokens, 12, False, "x"), 100) == list(range(12))
    assert beginning(Conversation(tokens, 1, False, "x"), 100) == list(range(20))
    assert beginning(Conversation(tokens, 12, False, "x"), 5) == list(range(7, 12))
