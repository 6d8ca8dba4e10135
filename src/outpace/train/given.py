"""What a run is given, read and checked before any work: files, a drafter to continue, what tells runs apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from outpace.api import LanguageModel
from outpace.errors import UsageError, WeightsError
from outpace.tokenizer import Tokenizer
from outpace.train.options import RunOptions, TrainOptions
from outpace.train.text import prompts, texts
from outpace.train.text.corpus import MANIFEST, Corpus, key_of
from outpace.train.text.prompts import Prompt
from outpace.train.text.texts import Text
from outpace.version import VERSION
from outpace.weights.drafter import open_drafter
from outpace.weights.trained import DrafterTarget

_OF_TODAY = ("batch", "budget", "device", "merge", "until")
ENGINE = ("ops", "isa")  # what decides, beside the model, which text it writes
DRAFTER, ADAPTER = "drafter.gguf", "adapter.gguf"  # in the folder of a finished run


@dataclass(frozen=True, slots=True)
class Given:
    """The user's files. made_with: what a run in the same folder must share with the one before, in plain values."""

    made_with: dict[str, Any]
    tokenizer: Tokenizer
    prompts: list[Prompt] = field(default_factory=list)
    excluded: list[Prompt] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    corpus: Corpus | None = None
    start: Path | None = None

    @classmethod
    def of(cls, options: RunOptions, lm: LanguageModel) -> Given:
        """Read what the options name. Raises UsageError, naming the option."""
        corpus = _corpus(options.texts, lm)
        return cls(
            _made_with(options, lm),
            lm.tokenizer,
            prompts=[] if options.prompts is None else _read("--prompts", options.prompts, prompts.read_prompts),
            excluded=[] if options.exclude is None else _read("--exclude", options.exclude, prompts.read_prompts),
            texts=[]
            if options.texts is None or corpus is not None
            else _read("--texts", options.texts, texts.read_texts),
            corpus=corpus,
            start=_start(options, lm) if isinstance(options, TrainOptions) else None,
        )

    def key(self, prompt: Prompt) -> int:
        """Return what says on which side of a split a prompt is."""
        return key_of(prompts.encode(self.tokenizer, prompt.messages))


Read = TypeVar("Read")


def _read(option: str, path: Path, read: Callable[[Path], Read]) -> Read:
    try:
        return read(path)
    except OSError as error:
        raise UsageError(f"{option}: {str(path)!r} cannot be read ({error.strerror})") from error
    except (UsageError, WeightsError) as error:
        raise UsageError(f"{option}: {error}") from error


def _corpus(path: Path | None, lm: LanguageModel) -> Corpus | None:
    """Return the corpus in the folder that --texts names, if it names a folder."""
    if path is None or not path.is_dir():
        return None
    corpus = _read("--texts", path, Corpus.open)
    if corpus.vocabulary != lm.tokenizer.fingerprint:
        raise UsageError(f"--texts: the corpus {path} was tokenised for another vocabulary than that of {lm.name}")
    return corpus


def _start(options: TrainOptions, lm: LanguageModel) -> Path | None:
    """Return the file of the drafter to continue; raises UsageError if it is of another kind, or of another model."""
    if options.start is None:
        return None
    path = options.start / DRAFTER if options.start.is_dir() else options.start
    checkpoint = _read("--from", path, open_drafter)
    if checkpoint.kind != options.kind:
        raise UsageError(f"--from: {path} is a drafter of kind {checkpoint.kind}, and {options.kind} is to be trained")
    sizes = lm.config
    traits = (sizes.model_type, sizes.vocab_size, sizes.width, sizes.num_layers)
    checkpoint.check_target(lm.name, DrafterTarget(lm.tokenizer.fingerprint, *traits))
    return path


def _made_with(options: RunOptions, lm: LanguageModel) -> dict[str, Any]:
    """Return the options that decide what comes out, and the contents of the files that they name.

    Not where those lie, nor how long, how far, on what and with how many requests at once the run goes on today, nor
    in which further form its result is written.
    """
    files = ("prompts", "texts", "exclude", "start")
    values = {name: value for name, value in options.as_dict().items() if name not in {*files, *_OF_TODAY}}
    for name in files:
        path = getattr(options, name, None)
        values[name] = None if path is None else _digest(path)
    ops = lm.runner.ops
    engine = dict(zip(ENGINE, (ops.name, ops.isa), strict=True))
    return values | {"outpace": VERSION, "target": lm.loaded.fingerprint.hex()} | engine


def _digest(path: Path) -> str | None:
    """Return the SHA-256 of a file, of a corpus' list of shards, or of the result in a run's folder."""
    for name in (MANIFEST, DRAFTER, ADAPTER):
        if (path / name).is_file():
            path = path / name
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
