from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import outpace
from outpace import UsageError
from outpace.api.refining import refiner_for
from outpace.api.strategies import check_strategy, drafter_for
from outpace.drafters.combined import Combined
from outpace.drafters.refine.refined_draft import RefinedDraft
from outpace.drafters.refine.rules import ByConfidence, MaskPredict
from outpace.types import Options


@pytest.fixture(scope="module")
def lm(folder: Path) -> outpace.LanguageModel:
    return outpace.load(folder, ops="reference", threads=1, kv="f32")


BLOCKS: dict[str, Any] = {"strategy": "block_diffusion"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "none", "threshold": 0.5}, "threshold=0.5 belongs to block_diffusion and mask_predict, but"),
        ({"strategy": "ngram", "verified": True}, "verified=True belongs to block_diffusion and mask_predict"),
        ({"block": 4}, "but the strategy is 'auto'"),
        ({"strategy": "mask_predict", "threshold": 0.5}, "threshold=0.5 belongs to block_diffusion"),
        ({"strategy": "mask_predict", "unmask": "factor"}, "unmask='factor' belongs to block_diffusion"),
        (BLOCKS | {"predict_length": True}, "predict_length=True belongs to mask_predict"),
        (BLOCKS | {"slide": True, "passes": 3}, "slide=True cannot go with passes=3"),
        (BLOCKS | {"slide": True, "verified": True}, "slide=True cannot go with verified=True"),
        ({"strategy": "mask_predict", "slide": True}, "slide=True belongs to block_diffusion"),
        (BLOCKS | {"threshold": 1.5}, r"in \[0, 1\] with unmask=.confidence., got 1.5"),
        ({"strategy": "block_diffusion+suffix"}, "what block_diffusion writes is not verified"),
        (BLOCKS | {"logprobs": 2}, "logprobs cannot work with strategy 'block_diffusion'.*add verified=True"),
        (BLOCKS | {"logits_processors": [lambda t, x: x]}, "logits_processors cannot work"),
        (BLOCKS | {"repetition_penalty": 1.1}, "repetition_penalty cannot work"),
        (BLOCKS | {"verification": "typical"}, "verification='typical' cannot work"),
        (BLOCKS | {"max_draft": 3}, "max_draft cannot work"),
        (BLOCKS | {"trace": True}, "trace cannot work"),
        (BLOCKS | {"prediction": "x"}, "is used by strategy 'prediction' only"),
        ({"strategy": "block_difusion"}, "did you mean 'block_diffusion'"),
    ],
)
def test_options_that_cannot_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_strategy(Options.of(options))


@pytest.mark.parametrize(
    "options",
    [
        BLOCKS | {"verified": True, "logprobs": 2, "repetition_penalty": 1.1, "max_draft": 3, "trace": True},
        {"strategy": "block_diffusion+suffix", "verified": True},
        BLOCKS | {"unmask": "factor", "threshold": 1.5, "remask": 0.1},
    ],
)
def test_what_the_target_verifies_takes_all_options(options: dict[str, Any]) -> None:
    check_strategy(Options.of(options))


def test_options_become_a_rule(lm: outpace.LanguageModel) -> None:
    def made(**options: Any) -> tuple[Any, int | None]:
        wanted = Options.of(options)
        found = refiner_for(lm.loaded, wanted, str(wanted.strategy))
        assert found is not None
        return found.rule, found.length

    assert made(**BLOCKS) == (ByConfidence(threshold=0.9), 8)
    assert made(**BLOCKS, passes=4) == (ByConfidence(threshold=None, passes=4), 8)
    assert made(**BLOCKS, passes=4, threshold=0.7, remask=0.1) == (ByConfidence("confidence", 0.7, 4, remask=0.1), 8)
    assert made(**BLOCKS, unmask="entropy", block=3) == (ByConfidence("entropy", 0.1), 3)
    assert made(strategy="mask_predict") == (MaskPredict(10), None)
    assert made(strategy="mask_predict", passes=3, predict_length=True, block=9) == (MaskPredict(3, True), 9)
    assert refiner_for(lm.loaded, Options.of(BLOCKS | {"verified": True}), "block_diffusion") is None
    assert refiner_for(lm.loaded, Options(), "auto") is None


def test_a_verified_refiner_is_a_drafter_like_any_other(lm: outpace.LanguageModel) -> None:
    first, second, other = (
        drafter_for(lm.loaded, Options.of(BLOCKS | {"verified": True, "passes": passes}), None) for passes in (1, 1, 2)
    )
    assert isinstance(first, RefinedDraft)
    assert first is second is not other
    assert isinstance(
        drafter_for(lm.loaded, Options.of({"strategy": "block_diffusion+suffix", "verified": True}), None), Combined
    )
    assert drafter_for(lm.loaded, Options.of(BLOCKS), None) is None


def test_results_say_that_they_are_lossy_and_what_they_took(lm: outpace.LanguageModel) -> None:
    result = lm.generate("the cat", **BLOCKS, passes=2, max_new_tokens=16, ignore_eos=True)
    assert (result.lossless, result.verification) == (False, "none")
    assert (result.stats.passes, result.stats.passes_per_token, len(result.tokens)) == (4, 0.25, 16)
    assert result.sources == [("block_diffusion",)] * 16
    assert result.stats.as_dict()["passes_per_token"] == 0.25
    plain = lm.generate("the cat", strategy="none", max_new_tokens=16, ignore_eos=True)
    assert plain.stats.passes_per_token == 1


def test_refined_texts_stream_a_block_at_a_time(lm: outpace.LanguageModel) -> None:
    with lm.stream("the cat", **BLOCKS, block=5, max_new_tokens=12, ignore_eos=True) as stream:
        sizes = [len(chunk.tokens) for chunk in stream]
    assert stream.result is not None
    assert sum(sizes) == 12
    whole = lm.generate("the cat", **BLOCKS, block=5, max_new_tokens=12, ignore_eos=True)
    assert stream.result.tokens == whole.tokens


def test_stop_strings_cut_refined_texts(lm: outpace.LanguageModel) -> None:
    whole = lm.generate("the cat", **BLOCKS, max_new_tokens=30, ignore_eos=True)
    stop = whole.text[9:11]
    cut = lm.generate("the cat", **BLOCKS, max_new_tokens=30, ignore_eos=True, stop=stop)
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"


def test_chats_and_batches_can_be_refined(lm: outpace.LanguageModel) -> None:
    chat = lm.chat(**BLOCKS, max_new_tokens=10)
    first, second = chat.send("hello"), chat.send("again")
    assert not first.lossless
    assert second.stats.prompt_tokens > first.stats.prompt_tokens
    batch = lm.generate(["the cat", "the dog"], n=2, **BLOCKS, temperature=1.0, seed=3, max_new_tokens=10)
    alone = lm.generate("the dog", n=2, **BLOCKS, temperature=1.0, seed=3, max_new_tokens=10)
    assert [r.tokens for r in batch[1]] == [r.tokens for r in alone]
