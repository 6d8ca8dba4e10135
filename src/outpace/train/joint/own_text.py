"""What a tuned target itself writes to the held-out prompts: the text that its heads are forecast and checked on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from outpace.api import LanguageModel
from outpace.train.options import RunOptions
from outpace.train.text.answers import in_order
from outpace.train.text.corpus import Conversation, Corpus
from outpace.train.text.responses import Beginning, Job, Responder

_PER_SHARD = 8  # prompts answered


@dataclass(frozen=True, slots=True)
class Kept:
    """Beside the original's text: how many of `prompts`, answered in the same way, have the same response.

    leading: the share of the original's tokens that come before the first difference.
    """

    prompts: int
    same: int
    leading: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def own_text(
    tuned: LanguageModel,
    held_out: Sequence[Conversation],
    options: RunOptions,
    folder: Path,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Corpus:
    """Return the tuned target's responses to the prompts of some conversations, drawn in the same ways.

    They are kept in a folder, shard by shard, and what is there is not written again.
    """
    if Corpus.is_one(folder):
        corpus = Corpus.open(folder)
    else:
        corpus = Corpus.create(folder, tuned.tokenizer.fingerprint, tuned.config.vocab_size)
    responder = Responder(tuned, options.max_tokens, max(own.num_prompt for own in held_out))
    jobs = [
        Job(
            number,
            Beginning(tuple(own.tokens[: own.num_prompt].tolist()), own.kind),
            own.key,
            own.temperature,
            own.seed,
        )
        for number, own in enumerate(held_out)
    ]
    rest = jobs[corpus.num_sources :]
    answers = in_order(tuned, rest, lambda job: (job, responder.answer(job)), options.batch, lambda: True)
    with closing(answers) as results:
        while some := list(islice(results, _PER_SHARD)):
            found = [own for _, conversations in some for own in conversations]
            keys = [job.key for job, conversations in some for _ in conversations]
            corpus.append(found, keys=keys, num_sources=len(some))
            show(corpus.num_sources, len(jobs))
    return corpus


def forecast_on(
    tuned: LanguageModel, drafter: Path, kind: str, own: Sequence[Conversation], max_draft: int
) -> dict[tuple[str, bool], float]:
    """Return the tokens per step to expect of a drafter on a tuned target's own text, by kind and whether sampled."""
    from outpace.train.export import read_network  # brings PyTorch
    from outpace.train.simulate import simulate
    from outpace.train.target import EngineTarget

    target = EngineTarget(tuned)
    found = simulate(read_network(drafter, kind, target), target, own, budgets=(max_draft,))
    return {(row.kind, row.sampled): row.chains[max_draft] for row in found.rows}


def kept(held_out: Sequence[Conversation], own: Sequence[Conversation]) -> Kept:
    """Compare the original's conversations with the tuned target's, prompt by prompt."""
    theirs = {_asked(conversation): _response(conversation) for conversation in own}
    pairs = [
        (_response(conversation), theirs[_asked(conversation)])
        for conversation in held_out
        if _asked(conversation) in theirs
    ]
    leading = sum(_leading(one, other) for one, other in pairs)
    return Kept(
        len(pairs), sum(one == other for one, other in pairs), leading / max(sum(len(one) for one, _ in pairs), 1)
    )


def _asked(own: Conversation) -> tuple[bytes, float, int]:
    return own.tokens[: own.num_prompt].tobytes(), own.temperature, own.seed


def _response(own: Conversation) -> list[int]:
    return [int(token) for token in own.tokens[own.num_prompt :]]


def _leading(one: Sequence[int], other: Sequence[int]) -> int:
    places = (i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    return next(places, min(len(one), len(other)))
