"""Turn a strategy's name into a drafter: the one table of names that API, command line and server share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from outpace.api.options import Settings
from outpace.drafters.combined import Combined
from outpace.drafters.draft_model import DraftModel
from outpace.drafters.lookahead import Lookahead
from outpace.drafters.ngram import NGram
from outpace.drafters.prediction import Prediction
from outpace.drafters.protocol import Drafter
from outpace.drafters.suffix import Suffix
from outpace.errors import UsageError, unknown
from outpace.tune import Auto

if TYPE_CHECKING:
    from outpace.api import LanguageModel


def _prediction(target: LanguageModel, settings: Settings) -> Drafter:
    if not settings.prediction:
        raise UsageError('strategy "prediction" needs the text that you expect: give prediction=...')
    text = settings.prediction
    return Prediction(target.tokenizer.encode_text(text) if isinstance(text, str) else text)


def _draft_model(target: LanguageModel, settings: Settings) -> Drafter:
    if settings.draft_model is None:
        raise UsageError('strategy "draft_model" needs a second, cheaper model: give draft_model=...')
    draft = target.companion(settings.draft_model)
    if not draft.tokenizer.same_vocabulary(target.tokenizer):
        raise UsageError(
            f"the draft model {draft.name} has another vocabulary ({draft.tokenizer.vocab_size} tokens) than "
            f"{target.name} ({target.tokenizer.vocab_size} tokens): take a draft model of the same family"
        )
    runner = draft.runner.scratch(draft.runner.cache.capacity)
    return DraftModel(runner, target.runner.model.config.vocab_size, with_law=settings.rule == "rejection")


def _auto(target: LanguageModel, settings: Settings) -> Drafter:
    """Return the router over what needs no model, and over what the call brought along."""
    own: list[Drafter] = [Suffix()]  # ngram and lookahead were measured not to pay beside it: decision 0007
    if settings.prediction is not None:
        own.insert(0, _prediction(target, settings))
    if settings.draft_model is not None:
        own.append(_draft_model(target, settings))
    return Auto(own, target.experience)


_DRAFTERS: dict[str, Callable[[LanguageModel, Settings], Drafter]] = {
    "auto": _auto,
    "ngram": lambda target, settings: NGram(),
    "suffix": lambda target, settings: Suffix(),
    "prediction": _prediction,
    "lookahead": lambda target, settings: Lookahead(),
    "draft_model": _draft_model,
    "combined": lambda target, settings: Combined([Suffix(), NGram()]),
}
PLAIN = ("none", "recompute")  # no drafter; recompute: not even a cache
STRATEGIES = (*PLAIN, *_DRAFTERS)


def names_of(strategy: str | Sequence[str] | Drafter) -> tuple[str, ...]:
    """Return the names in a strategy ("ngram", "ngram+suffix", ["ngram", "suffix"], or a drafter's own)."""
    if isinstance(strategy, str):
        return tuple(strategy.split("+"))
    return tuple(strategy) if isinstance(strategy, Sequence) else (strategy.name,)


def drafter_for(target: LanguageModel, settings: Settings) -> Drafter | None:
    """Return the drafter that a call asked for, or None for plain decoding.

    Raises UsageError for an unknown name (with close matches), and for an option that would be ignored.
    """
    strategy = settings.strategy
    names = names_of(strategy)
    if isinstance(strategy, str | Sequence):
        for name in names:
            if name not in STRATEGIES:
                raise unknown("strategy", name, STRATEGIES)
        if len(names) > 1 and set(names) & set(PLAIN):
            raise UsageError(f"strategy {'+'.join(names)!r} mixes plain decoding with drafters: name drafters only")
        if len(names) > 1 and "auto" in names:
            raise UsageError(f"strategy {'+'.join(names)!r}: auto chooses among drafters itself: name it alone")
    for option, user in (("prediction", "prediction"), ("draft_model", "draft_model")):
        if getattr(settings, option) is not None and not {user, "auto"} & set(names):
            raise UsageError(
                f"{option}=... is used by strategy {user!r} only (and by auto), but the strategy is {'+'.join(names)!r}"
            )
    if names[0] in PLAIN and settings.max_draft is not None:
        raise UsageError(f"max_draft has no effect with strategy {names[0]!r}: name a drafter, or leave it out")
    if settings.rule == "rejection" and names[0] != "draft_model":
        raise UsageError(
            f"the rejection rule needs the law q of one drafter; {'+'.join(names)!r} has none: use strategy "
            '"draft_model", or the default rule'
        )
    if not isinstance(strategy, str | Sequence):
        return strategy
    if names[0] in PLAIN:
        return None
    drafters = [_DRAFTERS[name](target, settings) for name in names]
    return drafters[0] if len(drafters) == 1 else Combined(drafters)
