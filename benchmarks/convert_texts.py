"""Convert the training text of the feasibility run into a corpus that `outpace train --texts` takes.

    python -m benchmarks.convert_texts FOLDER MODEL CORPUS

FOLDER: `prompts.npz` and `texts*.bin`. MODEL: the target whose token ids they are. CORPUS: a new folder.

A file of texts: 64 bytes, the first three little-endian int64 of which are the sizes of three zlib streams. The first
holds five int32 for each conversation (length, prompt's length, whether the target wrote the prompt, temperature times
100, prompt's number), the others the low and high bytes of token ids. Prompts that are not the target's lie in
`prompts.npz` (`ids`, `lens`), as does what stands before a prompt of the target's (`pre`); the ids in the file follow.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import outpace
from outpace.errors import UsageError
from outpace.train.text.corpus import Conversation, Corpus

KINDS = ("templated", "synthesised")
MIN_P = 0.03  # of the sampled responses there
_PER_SHARD = 8192


def conversations(folder: Path) -> Iterator[Conversation]:
    """Yield all conversations, file by file."""
    prompts = dict(np.load(folder / "prompts.npz"))
    ends = prompts["lens"].astype(np.int64).cumsum()
    for path in sorted(folder.glob("texts*.bin")):
        rows, ids = _read(path)
        start = 0
        for length, num_prompt, is_synthesised, temperature, number in rows.tolist():
            first, last = ends[number] - prompts["lens"][number], ends[number]
            begin = prompts["pre"] if is_synthesised else prompts["ids"][first:last]
            own = ids[start : start + length - len(begin)]
            start += length - len(begin)
            tokens = np.concatenate([begin, own]).astype(np.int32)
            drawn = temperature / 100
            min_p = MIN_P if drawn else 0.0
            yield Conversation(tokens, num_prompt, drawn > 0, KINDS[is_synthesised], drawn, min_p)
        if start != len(ids):
            raise UsageError(f"{path}: {len(ids)} token ids, but its conversations have {start}")


def _read(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return a file's rows [conversations, 5] and its token ids."""
    data = path.read_bytes()
    parts, start = [], 64
    for size in np.frombuffer(data[:24], "<i8").tolist():
        parts.append(zlib.decompress(data[start : start + size]))
        start += size
    low, high = (np.frombuffer(part, np.uint8).astype(np.uint16) for part in parts[1:])
    return np.frombuffer(parts[0], "<i4").reshape(-1, 5), low | (high << 8)


def main(folder: Path, model: str, out: Path) -> None:
    """Write the corpus."""
    target = outpace.load(model)
    corpus = Corpus.create(out, target.tokenizer.fingerprint, target.config.vocab_size)
    pending: list[Conversation] = []
    for conversation in conversations(folder):
        pending.append(conversation)
        if len(pending) == _PER_SHARD:
            corpus.append(pending)
            pending = []
    if pending:
        corpus.append(pending)
    print(f"{len(corpus)} conversations, {corpus.lengths.sum()} tokens, {corpus.num_learned} of them to learn: {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
