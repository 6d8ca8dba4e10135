"""Turn a strategy's name into a drafter: the one table of names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

from outpace.api.refining import REFINERS, check_refining, refined_draft, refiner_for
from outpace.drafters.combined import Combined
from outpace.drafters.draft_model import DraftModel
from outpace.drafters.jacobi import Jacobi
from outpace.drafters.lookahead import Lookahead
from outpace.drafters.ngram import NGram
from outpace.drafters.prediction import Prediction
from outpace.drafters.protocol import Drafter
from outpace.drafters.router import Auto
from outpace.drafters.suffix import Suffix
from outpace.engine.loaded import LoadedModel
from outpace.engine.verify import EXACT_MATCH, REJECTION_SAMPLING, Typical, Verifier
from outpace.errors import UsageError, unknown
from outpace.types import Named, Options


class _Drafters:
    """The drafters of one loaded model, made when they are first asked for; they live as long as it does."""

    def __init__(self, target: LoadedModel, options: Options, draft_model: LoadedModel | None) -> None:
        self._target, self._options, self._draft_model = target, options, draft_model

    def named(self, name: str) -> Drafter:
        """Return the drafter of a strategy."""
        if name in REFINERS:
            return refined_draft(self._target, self._options, name)
        return _DRAFTERS[name](self)

    def shared(self, name: str, make: Callable[[], Drafter]) -> Drafter:
        """Return the target's only drafter of that name."""
        return self._target.drafter(name, make)

    def combined(self, names: Sequence[str]) -> Drafter:
        """Return several as one."""
        parts = [self.named(name) for name in names]
        return self._target.drafter(("combined", *parts), lambda: Combined(parts))

    def prediction(self) -> Drafter:
        if self._options.prediction is None:
            raise UsageError('strategy "prediction" needs the text that you expect: give prediction=...')
        return self.shared("prediction", Prediction)

    def draft_model(self) -> Drafter:
        target, draft = self._target, self._draft_model
        if draft is None:
            raise UsageError('strategy "draft_model" needs a second, cheaper model: give draft_model=...')
        if not draft.tokenizer.same_vocabulary(target.tokenizer):
            raise UsageError(
                f"the draft model {draft.name} has another vocabulary ({draft.tokenizer.vocab_size} tokens) than "
                f"{target.name} ({target.tokenizer.vocab_size} tokens): take a draft model of the same family"
            )
        vocab_size = target.runner.model.config.vocab_size
        return target.drafter(("draft_model", draft), lambda: DraftModel(target.follower(draft), vocab_size))

    def trained(self, kind: str) -> Drafter:
        """Return the model's trained drafter, which must be of that kind."""
        drafter = self._target.trained
        if drafter is None or drafter.name != kind:
            has = "" if drafter is None else f" (the one that it has now is {drafter.name!r})"
            raise UsageError(
                f'strategy "{kind}" needs a drafter of that kind that was trained for {self._target.name}: load the '
                f"model with drafter=PATH{has}"
            )
        return drafter

    def auto(self) -> Drafter:
        """Return the router over the trained drafter, what needs no model, and what the request brings along."""
        parts = [self.named("suffix")]  # ngram and lookahead were measured not to pay beside it: decision 0007
        if self._target.trained is not None:
            parts.append(self._target.trained)
        if self._options.prediction is not None:
            parts.insert(0, self.prediction())
        if self._options.draft_model is not None:
            parts.append(self.draft_model())
        return self._target.drafter(
            ("auto", *parts), lambda: Auto(parts, self._target.experience, self._target.runner.ops.clock)
        )


_DRAFTERS: dict[str, Callable[[_Drafters], Drafter]] = {
    "auto": _Drafters.auto,
    "ngram": lambda drafters: drafters.shared("ngram", NGram),
    "suffix": lambda drafters: drafters.shared("suffix", Suffix),
    "prediction": _Drafters.prediction,
    "jacobi": lambda drafters: drafters.shared("jacobi", Jacobi),
    "lookahead": lambda drafters: drafters.shared("lookahead", Lookahead),
    "draft_model": _Drafters.draft_model,
    "eagle": lambda drafters: drafters.trained("eagle"),
    "medusa": lambda drafters: drafters.trained("medusa"),
    "block": lambda drafters: drafters.trained("block"),
    "combined": lambda drafters: drafters.combined(("suffix", "ngram")),
}
TRAINED = ("eagle", "medusa", "block")  # of which a loaded model has one at most
PLAIN = ("none", "recompute")  # no drafter; recompute: not even a cache
_EPSILON = 0.09  # of typical acceptance; delta is its root (Medusa, arXiv:2401.10774, "typical acceptance")
STRATEGIES = (*PLAIN, *_DRAFTERS)  # all of which write plain decoding's text; beside them: `refining.REFINERS`


def names_of(strategy: str | Sequence[str] | Named) -> tuple[str, ...]:
    """Return the names in a strategy ("ngram", "ngram+suffix", ["ngram", "suffix"], or a drafter's own)."""
    if isinstance(strategy, str):
        return tuple(strategy.split("+"))
    return tuple(strategy) if isinstance(strategy, Sequence) else (strategy.name,)


def verifier_for(options: Options) -> Verifier:
    """Return how drafts are decided on."""
    if options.verification == "typical":
        epsilon = _EPSILON if options.typical_epsilon is None else options.typical_epsilon
        return Typical(epsilon, math.sqrt(epsilon) if options.typical_delta is None else options.typical_delta)
    return REJECTION_SAMPLING if options.verification == "rejection" else EXACT_MATCH


def drafter_for(target: LoadedModel, options: Options, draft_model: LoadedModel | None) -> Drafter | None:
    """Return the drafter that a call asked for, or None for plain decoding. draft_model: what the option stands for.

    Raises UsageError for an unknown name (with close matches), and for an option that would be ignored.
    """
    strategy = options.strategy
    names = names_of(strategy)
    check_strategy(options)
    refiner = refiner_for(target, options, names[0])
    if not isinstance(strategy, str | Sequence):
        return cast(Drafter, strategy)
    if names[0] in PLAIN or refiner is not None:
        return None
    drafters = _Drafters(target, options, draft_model)
    return drafters.named(names[0]) if len(names) == 1 else drafters.combined(names)


def check_strategy(options: Options) -> None:
    """Raise UsageError for an unknown name, and for options that cannot go together or would be ignored."""
    names = names_of(options.strategy)
    if isinstance(options.strategy, str | Sequence):
        for name in names:
            if name not in (*STRATEGIES, *REFINERS):
                raise unknown("strategy", name, (*STRATEGIES, *REFINERS))
        if len(names) > 1 and set(names) & set(PLAIN):
            raise UsageError(f"strategy {'+'.join(names)!r} mixes plain decoding with drafters: name drafters only")
        if len(names) > 1 and "auto" in names:
            raise UsageError(f"strategy {'+'.join(names)!r}: auto chooses among drafters itself: name it alone")
    check_refining(options, names)
    for option in ("prediction", "draft_model"):
        if getattr(options, option) is not None and not {option, "auto"} & set(names):
            raise UsageError(
                f"{option}=... is used by strategy {option!r} only (and by auto), "
                f"but the strategy is {'+'.join(names)!r}"
            )
    if names[0] in PLAIN and options.max_draft is not None:
        raise UsageError(f"max_draft has no effect with strategy {names[0]!r}: name a drafter, or leave it out")
    if options.verification == "typical" and names[0] in PLAIN:
        raise UsageError(
            f"typical acceptance decides on drafts, which strategy {names[0]!r} has none of: name a drafter, or leave "
            "verification out"
        )
    if options.verification == "rejection" and names != ("draft_model",):
        raise UsageError(
            "rejection sampling needs the distribution q of one drafter alone, which only 'draft_model' has, but the "
            f'strategy is {"+".join(names)!r}: use strategy "draft_model", or verification="exact"'
        )
