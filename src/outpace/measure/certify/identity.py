"""Is every strategy's text plain decoding's text, token by token?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outpace.api import LanguageModel, Result
from outpace.api.strategies import STRATEGIES
from outpace.measure.certify.divergence import Divergence, explain

PLAIN = "none"
SAMPLINGS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "top_p": 0.95, "seed": 271828},
}
_ERROR_EVERY = 11  # a prediction that is right but for every eleventh token


@dataclass(frozen=True, slots=True)
class Case:
    """One way to write texts that must not change them."""

    strategy: str
    batch: int
    kv: str
    prefix: str  # "fresh": nothing cached; "cached": the prompt's keys and values come from an earlier call
    sampling: str


@dataclass(frozen=True, slots=True)
class IdentityRun:
    """What came of a case. tokens: how many were compared."""

    case: Case
    texts: int
    tokens: int
    cached_tokens: int
    tokens_per_step: float
    divergences: tuple[Divergence, ...]

    @property
    def identical(self) -> bool:
        """Whether every text is plain decoding's."""
        return not self.divergences


class Identity:
    """The cases of one model in one KV format, compared with plain decoding of each prompt alone, nothing cached.

    draft: the model for strategy "draft_model". num_tokens: length of the texts; num_recomputed: the same for
    "recompute", which takes a pass over the whole text per token. most_groups: batches of each case (None: all).
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
        most_groups: int | None,
    ) -> None:
        self.lm, self.kv, self.prompts, self.draft = lm, kv, prompts, draft
        self.num_tokens, self.num_recomputed = num_tokens, num_recomputed
        self.batches, self.most_groups = batches, most_groups
        self.plain: dict[str, list[list[int]]] = {}
        self._salts = itertools.count()

    def write_plain(self, sampling: str) -> list[list[int]]:
        """Write every prompt plainly, alone, and keep the texts in `plain`."""
        texts = [self._write([prompt], PLAIN, sampling, self._salt())[0].tokens for prompt in self.prompts]
        self.plain[sampling] = texts
        return texts

    def runs(self, strategies: Sequence[str], sampling: str) -> Iterator[IdentityRun]:
        """Run every case of the strategies; `write_plain` of this sampling comes first."""
        for number, (strategy, batch) in enumerate(itertools.product(strategies, self.batches)):
            yield from self._run(strategy, batch, sampling, number)

    def _run(self, strategy: str, batch: int, sampling: str, number: int) -> Iterator[IdentityRun]:
        groups = self._groups(batch, number)
        salts = [self._salt() for _ in groups]
        for prefix in ("fresh",) if strategy == "recompute" else ("fresh", "cached"):
            results = [
                (index, result)
                for group, salt in zip(groups, salts, strict=True)
                for index, result in zip(group, self._write_group(group, strategy, sampling, salt), strict=True)
            ]
            yield self._compare(Case(strategy, batch, self.kv, prefix, sampling), results)

    def _groups(self, batch: int, number: int) -> list[list[int]]:
        """Return which prompts go together; where not all groups are run, cases take turns."""
        indices = [i % len(self.prompts) for i in range(-(-len(self.prompts) // batch) * batch)]
        groups = [indices[first : first + batch] for first in range(0, len(indices), batch)]
        if self.most_groups is None or self.most_groups >= len(groups):
            return groups
        return [groups[(number + i) % len(groups)] for i in range(self.most_groups)]

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
            self.difference(i, result.tokens, case.sampling, length=length, text=text)
            for text, (i, result) in enumerate(results)
        ]
        steps = sum(result.stats.steps for _, result in results)
        tokens = sum(len(result.tokens) for _, result in results)
        return IdentityRun(
            case=case,
            texts=len(results),
            tokens=tokens,
            cached_tokens=sum(result.stats.cached_tokens for _, result in results),
            tokens_per_step=tokens / steps,
            divergences=tuple(d for d in divergences if d is not None),
        )

    def _length(self, strategy: str) -> int:
        return self.num_recomputed if strategy == "recompute" else self.num_tokens

    def difference(
        self, index: int, tokens: Sequence[int], sampling: str, *, length: int, text: int = 0
    ) -> Divergence | None:
        """Compare a text with the first `length` tokens that plain decoding wrote after prompt `index`."""
        options = SAMPLINGS[sampling]
        return explain(
            self.lm.runner,
            self.prompts[index],
            self.plain[sampling][index][:length],
            tokens,
            text=text,
            temperature=options.get("temperature", 0.0),
            seed=options.get("seed", 0),
        )

    def _salt(self) -> bytes:
        return b"certify %d" % next(self._salts)


def default_strategies() -> list[str]:
    """Return every strategy but plain decoding itself."""
    return [name for name in STRATEGIES if name != PLAIN]


def wrong_stream(identity: Identity, sampling: str) -> Divergence | None:
    """Return what the comparison makes of a text with one wrong token in its middle: the negative control."""
    wrong = list(identity.plain[sampling][0])
    place = len(wrong) // 2
    wrong[place] = (wrong[place] + 1) % identity.lm.config.vocab_size
    return identity.difference(0, wrong, sampling, length=len(wrong))
