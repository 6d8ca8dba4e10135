from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import outpace
from outpace import UsageError
from outpace.api.strategies import STRATEGIES, TRAINED, check_strategy, drafter_for, names_of, verifier_for
from outpace.drafters.ngram import NGram
from outpace.engine.verify import EXACT_MATCH, REJECTION_SAMPLING, Typical
from outpace.types import Options


@pytest.fixture(scope="module")
def lm(folder: Path) -> outpace.LanguageModel:
    return outpace.load(folder, ops="reference", threads=1)


def test_a_strategy_is_a_name_several_or_a_drafter() -> None:
    assert names_of("ngram") == ("ngram",)
    assert names_of("ngram+suffix") == names_of(("ngram", "suffix")) == ("ngram", "suffix")
    assert names_of(NGram()) == ("ngram",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "ngrams"}, "unknown strategy 'ngrams': did you mean 'ngram'"),
        ({"strategy": ["ngram", "sufix"]}, "unknown strategy 'sufix': did you mean 'suffix'"),
        ({"strategy": "none+ngram"}, "mixes plain decoding with drafters"),
        ({"strategy": "auto+ngram"}, "auto chooses among drafters itself"),
        ({"strategy": "none", "max_draft": 4}, "max_draft has no effect with strategy 'none'"),
        ({"strategy": "ngram", "prediction": "x"}, r"prediction=\.\.\. is used by strategy 'prediction' only"),
        ({"strategy": "none", "draft_model": "x"}, r"draft_model=\.\.\. is used by strategy 'draft_model' only"),
        ({"strategy": NGram(), "prediction": "x"}, r"but the strategy is 'ngram'"),
        ({"strategy": "none", "verification": "typical"}, "which strategy 'none' has none of"),
        ({"strategy": "ngram", "verification": "rejection"}, "needs the distribution q of one drafter alone"),
        (
            {"strategy": "draft_model+ngram", "verification": "rejection"},
            "needs the distribution q of one drafter alone",
        ),
    ],
)
def test_names_and_options_that_cannot_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_strategy(Options.of(options))


def test_plain_decoding_has_no_drafter_and_a_drafter_is_itself(lm: outpace.LanguageModel) -> None:
    own = NGram()
    assert drafter_for(lm.loaded, Options(strategy="none"), None) is None
    assert drafter_for(lm.loaded, Options(strategy="recompute"), None) is None
    assert drafter_for(lm.loaded, Options(strategy=own), None) is own


def test_a_loaded_model_has_one_drafter_of_each_name(lm: outpace.LanguageModel) -> None:
    for name in set(STRATEGIES) - {"none", "recompute", "draft_model", "prediction", *TRAINED}:
        first, second = (drafter_for(lm.loaded, Options(strategy=name), None) for _ in range(2))
        assert first is second is not None
        assert first.name == name


@pytest.mark.parametrize("name", ["prediction", "draft_model"])
def test_a_strategy_that_needs_an_option_asks_for_it(lm: outpace.LanguageModel, name: str) -> None:
    with pytest.raises(UsageError, match=rf'strategy "{name}" needs .*: give {name}=\.\.\.'):
        drafter_for(lm.loaded, Options(strategy=name), None)


def test_drafts_are_verified_as_the_options_say() -> None:
    assert verifier_for(Options()) is EXACT_MATCH
    assert verifier_for(Options(verification="rejection")) is REJECTION_SAMPLING
    for given, expected in (
        ({}, (0.09, 0.3)),
        ({"typical_epsilon": 0.25}, (0.25, 0.5)),
        ({"typical_epsilon": 0.25, "typical_delta": 0.1}, (0.25, 0.1)),
    ):
        typical = verifier_for(Options(verification="typical", **given))
        assert isinstance(typical, Typical)
        assert (typical.epsilon, typical.delta) == pytest.approx(expected)
