"""Does every strategy write plain decoding's sequence, token by token?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outpace.api import LanguageModel, Result
from outpace.api.strategies import STRATEGIES, TRAINED
from outpace.measure.certify import effort
from outpace.measure.certify.divergence import Divergence, find_divergence

PLAIN = "none"
SAMPLINGS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "top_p": 0.95, "seed": 271828},
}
_ERROR_EVERY = 11  # a prediction that is right but for every eleventh token


@dataclass(frozen=True, slots=True)
class Case:
    """One way to write sequences that must not change them."""

    strategy: str
    batch: int
    kv: str
    prefix: str  # "fresh": nothing cached; "cached": the prompt's keys and values come from an earlier call
    sampling: str


@dataclass(frozen=True, slots=True)
class IdentityRun:
    """What came of a case. tokens: how many were compared."""

    case: Case
    sequences: int
    tokens: int
    cached_tokens: int
    tokens_per_step: float
    divergences: tuple[Divergence, ...]

    @property
    def identical(self) -> bool:
        """Whether every sequence is plain decoding's."""
        return not self.divergences


class Identity:
    """The cases of one model in one KV format, compared with plain decoding of each prompt alone, nothing cached.

    draft: the model for strategy "draft_model". num_tokens: new tokens of each sequence; num_recomputed: the same for
    "recompute", which takes a pass over the whole sequence per token. max_groups: batches of each case (None: all).
    begin(units, what): called before each call of the model, with the effort that it takes.
    """

    def __init__(
        self,
        lm: LanguageModel,
        kv: str,
        prompts: Sequence[list[int]],
        draft: LanguageModel,
        *,
        num_tokens: int,
        num_recomputed: int,
        batches: Sequence[int],
        max_groups: int | None,
        begin: Callable[[int, str], None] = lambda units, what: None,
    ) -> None:
        self.lm, self.kv, self.prompts, self.draft = lm, kv, prompts, draft
        self.num_tokens, self.num_recomputed = num_tokens, num_recomputed
        self.batches, self.max_groups, self._begin = batches, max_groups, begin
        self.plain: dict[str, list[list[int]]] = {}
        self._salts = itertools.count()

    def effort(self, strategies: Sequence[str]) -> int:
        """Return the effort of `write_plain` and of every case of the strategies, in one sampling."""
        plain = sum(self._effort([index], PLAIN, "fresh") for index in range(len(self.prompts)))
        return plain + sum(
            self._effort(group, strategy, prefix)
            for strategy in strategies
            for number, batch in enumerate(self.batches)
            for prefix in _prefixes(strategy)
            for group in self._groups(batch, number)
        )

    def write_plain(self, sampling: str) -> list[list[int]]:
        """Write every prompt plainly, alone, and keep the new tokens in `plain`."""
        written = []
        for index, prompt in enumerate(self.prompts):
            self._begin(self._effort([index], PLAIN, "fresh"), f"{self.kv}, {sampling}: plain decoding")
            written.append(self._write([prompt], PLAIN, sampling, self._salt())[0].tokens)
        self.plain[sampling] = written
        return written

    def runs(self, strategy: str, sampling: str) -> Iterator[IdentityRun]:
        """Run every case of a strategy; `write_plain` of this sampling comes first."""
        for number, batch in enumerate(self.batches):
            groups = self._groups(batch, number)
            salts = [self._salt() for _ in groups]
            for prefix in _prefixes(strategy):
                results: list[tuple[int, Result]] = []
                for group, salt in zip(groups, salts, strict=True):
                    self._begin(self._effort(group, strategy, prefix), f"{self.kv}, {sampling}: {strategy}")
                    results += zip(group, self._write_group(group, strategy, sampling, salt), strict=True)
                yield self._compare(Case(strategy, batch, self.kv, prefix, sampling), results)

    def _effort(self, group: Sequence[int], strategy: str, prefix: str) -> int:
        lengths = [len(self.prompts[index]) for index in group]
        if strategy == "recompute":
            return effort.of_recomputing(lengths, self.num_recomputed)
        return effort.of_decoding(lengths, self.num_tokens, cached=prefix == "cached")

    def _groups(self, batch: int, number: int) -> list[list[int]]:
        """Return which prompts go together; where not all groups are run, cases take turns."""
        indices = [i % len(self.prompts) for i in range(-(-len(self.prompts) // batch) * batch)]
        groups = [indices[first : first + batch] for first in range(0, len(indices), batch)]
        if self.max_groups is None or self.max_groups >= len(groups):
            return groups
        return [groups[(number + i) % len(groups)] for i in range(self.max_groups)]

    def _write_group(self, group: Sequence[int], strategy: str, sampling: str, salt: bytes) -> list[Result]:
        extra: dict[str, Any] = {}
        if strategy == "prediction":
            plain = self.plain[sampling][group[0]]
            extra["prediction"] = [t if (i + 1) % _ERROR_EVERY else plain[0] for i, t in enumerate(plain)]
        if strategy == "draft_model":
            extra["draft_model"] = self.draft
        return self._write([self.prompts[i] for i in group], strategy, sampling, salt, **extra)

    def _write(self, prompts: list[list[int]], strategy: str, sampling: str, salt: bytes, **extra: Any) -> list[Result]:
        length = self._length(strategy)
        options = {**SAMPLINGS[sampling], **extra, "salt": salt, "ignore_eos": True, "max_new_tokens": length}
        return self.lm.generate(prompts, strategy=strategy, **options)

    def _compare(self, case: Case, results: Sequence[tuple[int, Result]]) -> IdentityRun:
        length = self._length(case.strategy)
        divergences = [
            self.difference(i, result.tokens, case.sampling, length=length, sequence=sequence)
            for sequence, (i, result) in enumerate(results)
        ]
        steps = sum(result.stats.steps for _, result in results)
        tokens = sum(len(result.tokens) for _, result in results)
        return IdentityRun(
            case=case,
            sequences=len(results),
            tokens=tokens,
            cached_tokens=sum(result.stats.cached_tokens for _, result in results),
            tokens_per_step=tokens / steps,
            divergences=tuple(d for d in divergences if d is not None),
        )

    def _length(self, strategy: str) -> int:
        return self.num_recomputed if strategy == "recompute" else self.num_tokens

    def difference(
        self, index: int, tokens: Sequence[int], sampling: str, *, length: int, sequence: int = 0
    ) -> Divergence | None:
        """Compare new tokens with the first `length` that plain decoding wrote after prompt `index`."""
        options = SAMPLINGS[sampling]
        return find_divergence(
            self.lm.runner,
            self.prompts[index],
            self.plain[sampling][index][:length],
            tokens,
            sequence=sequence,
            temperature=options.get("temperature", 0.0),
            seed=options.get("seed", 0),
        )

    def _salt(self) -> bytes:
        return b"certify %d" % next(self._salts)


def _prefixes(strategy: str) -> tuple[str, ...]:
    return ("fresh",) if strategy == "recompute" else ("fresh", "cached")


def default_strategies(lm: LanguageModel) -> list[str]:
    """Return every strategy that the model has, but plain decoding itself."""
    trained = lm.loaded.trained
    missing = set(TRAINED) - ({trained.name} if trained is not None else set())
    return [name for name in STRATEGIES if name != PLAIN and name not in missing]


def wrong_token(identity: Identity, sampling: str) -> Divergence | None:
    """Return what the comparison makes of a sequence with one wrong token in its middle: the negative control."""
    wrong = list(identity.plain[sampling][0])
    place = len(wrong) // 2
    wrong[place] = (wrong[place] + 1) % identity.lm.config.vocab_size
    return identity.difference(0, wrong, sampling, length=len(wrong))
