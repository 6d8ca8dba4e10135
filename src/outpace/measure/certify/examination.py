"""The examination: every case, every rule, every lossy mode, and the two controls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from outpace.api import LanguageModel
from outpace.drafters.protocol import Drafter
from outpace.engine.verify import EXACT_MATCH, REJECTION_SAMPLING, Verifier
from outpace.measure.certify.certificate import Certificate, Plan, RuleTest
from outpace.measure.certify.distribution import Careless, Contrary, Question, examine
from outpace.measure.certify.identity import SAMPLINGS, Identity, IdentityRun, default_strategies, wrong_stream
from outpace.measure.certify.loss import Loss, measure_loss
from outpace.measure.prompts import TaskPrompt, varied
from outpace.measure.provenance import provenance
from outpace.types import KVFormat

FORMATS: tuple[KVFormat, ...] = ("f32", "bf16", "int8")
TARGET: KVFormat = "f32"  # lossy formats are measured against it

NUM_RULES = 4  # the control among them


class Opener(Protocol):
    """Open the user's model with keys and values stored in a format, and a cache of so many tokens."""

    def __call__(self, kv: KVFormat, cache_tokens: int) -> LanguageModel: ...


def certify(
    open_model: Opener,
    prompts: Sequence[TaskPrompt],
    plan: Plan,
    *,
    draft: Callable[[LanguageModel], LanguageModel] = lambda target: target,
    tick: Callable[[str], None] = lambda what: None,
) -> Certificate:
    """Examine a model and return its certificate.

    prompts: as many as the plan has are taken, of different categories first. draft: gives the model for strategy
    "draft_model", from the target with f32 keys and values (by default itself: good guesses, no speed). tick(what):
    before each of `num_parts()` parts. The target stays open throughout, one other format at a time beside it.
    """
    return _Examination(open_model, varied(prompts, plan.num_prompts), plan, draft, tick).run()


def num_parts() -> int:
    """Return the number of parts of an examination: a strategy's cases, a format's loss, a rule's draws."""
    return len(FORMATS) * len(SAMPLINGS) * (1 + len(default_strategies())) + len(FORMATS) - 1 + NUM_RULES


class _Examination:
    def __init__(
        self,
        open_model: Opener,
        prompts: list[TaskPrompt],
        plan: Plan,
        draft: Callable[[LanguageModel], LanguageModel],
        tick: Callable[[str], None],
    ) -> None:
        self.open_model, self.prompts, self.plan, self.tick = open_model, prompts, plan, tick
        # Room for the largest batch, or for the draws of a batch, and as much for what they leave behind.
        longest = max(prompt.most_tokens for prompt in prompts) + plan.num_tokens
        self.cache_tokens = max(2 * longest * max(plan.batches), 8192)
        self.target = open_model(TARGET, self.cache_tokens)
        self.tokens = [prompt.encode(self.target.tokenizer) for prompt in prompts]
        self.draft = draft(self.target)
        self.strategies = default_strategies()

    def run(self) -> Certificate:
        started = time.perf_counter()
        runs: list[IdentityRun] = []
        losses: list[Loss] = []
        target = self._identity(self.target, TARGET)
        runs += self._runs(target)
        for kv in FORMATS:
            if kv == TARGET:
                continue
            lossy = self._identity(self.open_model(kv, self.cache_tokens), kv)
            runs += self._runs(lossy)
            self.tick(f"{kv} keys and values against {TARGET}")
            losses.append(self._loss(lossy, target))
        tests, control = self._rules()
        return Certificate(
            provenance=provenance(self.target),
            plan=self.plan,
            prompts=tuple(prompt.text for prompt in self.prompts),
            identity=tuple(runs),
            wrong_stream=wrong_stream(target, "greedy"),
            distribution=tests,
            biased_rule=control,
            losses=tuple(losses),
            seconds=time.perf_counter() - started,
        )

    def _identity(self, lm: LanguageModel, kv: str) -> Identity:
        plan = self.plan
        return Identity(
            lm, kv, self.tokens, self.draft,
            num_tokens=plan.num_tokens, num_recomputed=min(plan.num_recomputed, plan.num_tokens),
            batches=plan.batches, most_groups=plan.most_groups,
        )  # fmt: skip

    def _runs(self, identity: Identity) -> list[IdentityRun]:
        runs: list[IdentityRun] = []
        for sampling in SAMPLINGS:
            self.tick(f"{identity.kv}, {sampling}: plain decoding")
            identity.write_plain(sampling)
            for strategy in self.strategies:
                self.tick(f"{identity.kv}, {sampling}: {strategy}")
                runs += identity.runs([strategy], sampling)
        return runs

    def _loss(self, lossy: Identity, target: Identity) -> Loss:
        return measure_loss(
            f"{lossy.kv} keys and values", f"{target.kv} keys and values",
            lossy.lm.runner, target.lm.runner, self.tokens, lossy.plain["sampled"], target.plain["sampled"],
        )  # fmt: skip

    def _rules(self) -> tuple[tuple[RuleTest, ...], RuleTest]:
        question = Question.of(self.target.runner, self.tokens[0])
        contrary = Contrary(question)
        cases: list[tuple[str, Verifier, Drafter | None]] = [
            ("exact match, without drafts", EXACT_MATCH, None),
            ("exact match", EXACT_MATCH, contrary),
            ("rejection sampling", REJECTION_SAMPLING, contrary),
            ("control: careless rejection", Careless(), contrary),
        ]
        assert len(cases) == NUM_RULES
        tests = []
        for name, verifier, drafter in cases:
            self.tick(f"law of {name}")
            odds = self.plan.false_alarm / (len(cases) - 1)
            result = examine(self.target.runner, question, verifier, drafter, draws=self.plan.draws, false_alarm=odds)
            tests.append(RuleTest(name, result))
        return tuple(tests[:-1]), tests[-1]
