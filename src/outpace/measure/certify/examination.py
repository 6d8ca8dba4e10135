"""The examination: every case, every way of verification, every lossy format, and the two controls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from outpace.api import LanguageModel
from outpace.api.strategies import verifier_for
from outpace.engine.verify import EXACT_MATCH, REJECTION_SAMPLING, Verifier
from outpace.measure.certify import effort
from outpace.measure.certify.adversarial_drafter import AdversarialDrafter
from outpace.measure.certify.certificate import Certificate, DistributionTest, Scope
from outpace.measure.certify.distribution import BATCH, LENGTH, BiasedRejection, check_distribution
from outpace.measure.certify.identity import PLAIN, SAMPLINGS, Identity, IdentityRun, default_strategies, wrong_token
from outpace.measure.certify.loss import Comparison, Loss
from outpace.measure.certify.target_distribution import TargetDistribution
from outpace.measure.progress import Progress, Work
from outpace.measure.prompts import TaskPrompt, varied
from outpace.measure.provenance import provenance
from outpace.types import KVFormat, Options

FORMATS: tuple[KVFormat, ...] = ("f32", "bf16", "int8")
TARGET: KVFormat = "f32"  # lossy formats are compared with it

_TYPICAL = "typical acceptance"  # lossy by request: measured, not judged
_VERIFICATIONS: Sequence[tuple[str, Verifier, bool]] = (  # name, verifier, whether there are drafts
    ("exact match, without drafts", EXACT_MATCH, False),
    ("exact match", EXACT_MATCH, True),
    ("rejection sampling", REJECTION_SAMPLING, True),
    (_TYPICAL, verifier_for(Options(verification="typical")), True),
    ("control: biased rejection sampling", BiasedRejection(), True),
)


class Opener(Protocol):
    """Open the user's model with keys and values stored in a format, and a cache of so many tokens."""

    def __call__(self, kv: KVFormat, cache_tokens: int) -> LanguageModel: ...


def certify(
    open_model: Opener,
    prompts: Sequence[TaskPrompt],
    scope: Scope,
    *,
    draft: Callable[[LanguageModel], LanguageModel] = lambda target: target,
    progress: Progress | None = None,
) -> Certificate:
    """Examine a model and return its certificate.

    prompts: as many as the scope has are taken, of different categories first. draft: gives the model for strategy
    "draft_model", from the target with f32 keys and values (by default itself: good guesses, no speed). The target
    stays open throughout, one other format at a time beside it.
    """
    return _Examination(open_model, varied(prompts, scope.num_prompts), scope, draft, progress).run()


class _Examination:
    def __init__(
        self,
        open_model: Opener,
        prompts: list[TaskPrompt],
        scope: Scope,
        draft: Callable[[LanguageModel], LanguageModel],
        progress: Progress | None,
    ) -> None:
        self.open_model, self.prompts, self.scope = open_model, prompts, scope
        # Room for the largest batch, or for the draws of a batch, and as much for what they leave behind.
        longest = max(prompt.max_tokens for prompt in prompts) + scope.num_tokens
        self.cache_tokens = max(2 * longest * max(scope.batches), 8192)
        lm = open_model(TARGET, self.cache_tokens)
        self.tokens = [prompt.encode(lm.tokenizer) for prompt in prompts]
        self.lengths = [_length_of_text(lm, prompt, scope.num_scored // len(prompts)) for prompt in self.tokens]
        self.draft = draft(lm)
        self.strategies = default_strategies(lm)
        self.target = self._identity(lm, TARGET)
        self.work = Work(self._effort(), progress)

    def run(self) -> Certificate:
        started = time.perf_counter()
        runs = self._runs(self.target)
        texts = self._texts()
        self.work.begin(self._effort_of_loss(), f"{TARGET} with other last bits against {TARGET}")
        comparison = Comparison(self.target.lm.runner, texts)
        losses: list[Loss] = []
        for kv in FORMATS:
            if kv == TARGET:
                continue
            lossy = self._identity(self.open_model(kv, self.cache_tokens), kv)
            runs += self._runs(lossy)
            self.work.begin(self._effort_of_loss(), f"{kv} keys and values against {TARGET}")
            mode, target = (f"{identity.kv} keys and values" for identity in (lossy, self.target))
            losses.append(comparison.measure(mode, target, lossy.lm.runner))
        tests, control = self._distributions()
        certificate = Certificate(
            provenance=provenance(self.target.lm),
            scope=self.scope,
            prompts=tuple(prompt.text for prompt in self.prompts),
            identity=tuple(runs),
            wrong_token=wrong_token(self.target, "greedy"),
            distribution=tests,
            biased_control=control,
            losses=tuple(losses),
            seconds=time.perf_counter() - started,
        )
        self.work.finish()
        return certificate

    def _effort(self) -> int:
        """Return the effort of everything that `run` begins."""
        identity = len(FORMATS) * len(SAMPLINGS) * self.target.effort(self.strategies)
        losses = len(FORMATS) * self._effort_of_loss()  # the target's floor, and each other format
        texts = sum(self._effort_of_text(index) for index in range(len(self.tokens)))
        return identity + texts + losses + len(_VERIFICATIONS) * _effort_of_draws(self.scope.draws)

    def _effort_of_loss(self) -> int:
        return 2 * effort.of_scoring(self.lengths, 0)

    def _effort_of_text(self, index: int) -> int:
        length = len(self.tokens[index])
        return effort.of_decoding([length], self.lengths[index] - length)

    def _begin(self, units: int, what: str) -> None:
        self.work.begin(units, what)

    def _begin_draws(self, name: str, count: int) -> None:
        self.work.begin(_effort_of_draws(count), f"distribution of {name}")

    def _identity(self, lm: LanguageModel, kv: str) -> Identity:
        scope = self.scope
        return Identity(
            lm, kv, self.tokens, self.draft,
            num_tokens=scope.num_tokens, num_recomputed=min(scope.num_recomputed, scope.num_tokens),
            batches=scope.batches, max_groups=scope.max_groups, begin=self._begin,
        )  # fmt: skip

    def _runs(self, identity: Identity) -> list[IdentityRun]:
        runs: list[IdentityRun] = []
        for sampling in SAMPLINGS:
            identity.write_plain(sampling)
            for strategy in self.strategies:
                runs += identity.runs(strategy, sampling)
        return runs

    def _texts(self) -> list[list[int]]:
        """Return the prompts, each with what the target writes after it: as many tokens as lossy formats are read."""
        texts = []
        for index, prompt in enumerate(self.tokens):
            self.work.begin(self._effort_of_text(index), f"{TARGET}: text for the other formats to read")
            count = self.lengths[index] - len(prompt)
            written = self.target.lm.generate(
                prompt, strategy=PLAIN, temperature=1.0, seed=index, ignore_eos=True, max_new_tokens=count
            )
            texts.append([*prompt, *written.tokens])
        return texts

    def _distributions(self) -> tuple[tuple[DistributionTest, ...], DistributionTest]:
        runner = self.target.lm.runner
        target = TargetDistribution.of(runner, self.tokens[0])
        drafter = AdversarialDrafter(target)
        odds = self.scope.false_alarm / (len(_VERIFICATIONS) - 2)
        tests = []
        for name, verifier, drafts in _VERIFICATIONS:
            result = check_distribution(
                runner, target, verifier, drafter if drafts else None, draws=self.scope.draws, false_alarm=odds,
                begin=partial(self._begin_draws, name),
            )  # fmt: skip
            tests.append(DistributionTest(name, result, is_lossy=name == _TYPICAL))
        return tuple(tests[:-1]), tests[-1]


def _length_of_text(lm: LanguageModel, prompt: Sequence[int], wanted: int) -> int:
    """Return how long a text becomes that begins with the prompt: `wanted` tokens after its first, if they fit."""
    return min(max(wanted + 1, len(prompt) + 1), lm.runner.context)


def _effort_of_draws(count: int) -> int:
    """Return the effort of so many draws, decoded in full batches; the last may be smaller."""
    full, rest = divmod(count, BATCH)
    batches = [BATCH] * full + [rest] * bool(rest)
    return sum(effort.of_decoding([1] * batch, LENGTH) for batch in batches)
