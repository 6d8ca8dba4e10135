from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from benchmarks import convert_texts
from outpace.errors import UsageError
from outpace.train.text.corpus import Corpus
from tests.folder import make_folder

PROMPTS = [[10, 11, 12], [20, 21, 22, 23, 24]]
BEFORE = [1, 2]  # what stands before a prompt that the target wrote
TEXTS = [  # the prompt's number or None, its own part where it is the target's, response, temperature
    (1, [], [30, 31], 0.0),
    (None, [40, 41, 300], [50, 260, 52], 0.8),
    (0, [], [60], 1.0),
]


def write(folder: Path, texts: list[tuple[int | None, list[int], list[int], float]], cut: int = 0) -> None:
    lens = np.array([len(ids) for ids in PROMPTS], np.uint16)
    np.savez(folder / "prompts.npz", ids=np.concatenate(PROMPTS).astype(np.int32), lens=lens, pre=np.array(BEFORE))
    for part, some in enumerate((texts[:2], texts[2:])):
        rows, ids = [], []
        for number, own, response, temperature in some:
            begin = len(BEFORE) + len(own) if number is None else len(PROMPTS[number])
            rows.append([begin + len(response), begin, number is None, round(100 * temperature), number or 0])
            ids += own + response
        stored = np.array(ids[: len(ids) - cut], np.uint16)
        streams = (np.array(rows, "<i4"), (stored & 255).astype(np.uint8), (stored >> 8).astype(np.uint8))
        packed = [zlib.compress(stream.tobytes()) for stream in streams]
        head = np.array([*map(len, packed), 0, 0, 0, 0, 0], "<i8").tobytes()
        (folder / f"texts{part}.bin").write_bytes(head + b"".join(packed))


def test_every_conversation_is_in_the_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, TEXTS)
    convert_texts.main(tmp_path, str(make_folder(tmp_path / "tiny", vocab=400)), tmp_path / "corpus")
    found = Corpus.open(tmp_path / "corpus")
    assert [own.tokens.tolist() for own in found] == [
        [*PROMPTS[1], 30, 31],
        [*BEFORE, 40, 41, 300, 50, 260, 52],
        [*PROMPTS[0], 60],
    ]
    assert [own.num_prompt for own in found] == [5, 5, 3]
    assert [own.kind for own in found] == ["templated", "synthesised", "templated"]
    assert [own.temperature for own in found] == [0.0, 0.8, 1.0]
    assert "3 conversations, 19 tokens, 6 of them to learn" in capsys.readouterr().out


def test_a_file_whose_lengths_do_not_add_up_is_told(tmp_path: Path) -> None:
    write(tmp_path, TEXTS, cut=1)
    with pytest.raises(UsageError, match=r"texts0\.bin: 7 token ids, but its conversations have 8"):
        list(convert_texts.conversations(tmp_path))
