from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from outpace.drafters.refine.block import Block, Guesses
from outpace.drafters.refine.rules import ByConfidence, MaskPredict, Rule
from outpace.engine.decode import Decoder
from outpace.errors import CacheError, DrafterError
from outpace.ops.protocol import Ops
from outpace.types.tree import EMPTY
from tests.decoding import decode, request, sequence_of, tiny_ops, tiny_runner
from tests.implementations import MAKERS
from tests.refining import Dense, by_threshold, probabilities, refine, refiner

PROMPT = [5, 6, 7, 8, 9]
PROMPTS = [PROMPT, [i % 90 for i in range(70)], [3], [11, 12] * 20]


@pytest.fixture(params=MAKERS)
def ops(request: Any) -> Ops:
    return MAKERS[request.param](1)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 4}])
def test_blocks_of_one_token_are_autoregressive_decoding_of_the_same_network(
    ops: Ops, sampling: dict[str, Any]
) -> None:
    expected = decode(tiny_runner(ops=ops), PROMPTS, max_new_tokens=64, **sampling)
    one = refiner(1, ByConfidence(threshold=1.0))
    found = refine(tiny_runner(ops=ops), PROMPTS, one, max_new_tokens=64, **sampling)
    assert [g.output.tokens for g in found] == [g.output.tokens for g in expected]
    assert all(g.stats.passes == g.stats.tokens == 64 for g in found)


@pytest.mark.parametrize("shift", [1, 0])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 1.0])
def test_a_refined_text_is_that_of_a_dense_network_and_a_loop_of_its_own(shift: int, threshold: float) -> None:
    text, passes = by_threshold(Dense(), PROMPT, 30, 4, threshold, shift)
    (g,) = refine(
        tiny_runner(),
        [PROMPT],
        refiner(4, ByConfidence(threshold=threshold), shift=shift),
        check=True,
        max_new_tokens=30,
    )
    assert g.output.tokens == text
    assert g.stats.passes == passes
    assert g.sources == [("block_diffusion",)] * 30


@pytest.mark.parametrize(
    "rule",
    [
        ByConfidence(threshold=0.5, remask=0.3),
        ByConfidence("factor", 0.9),
        ByConfidence("entropy", 1.5, passes=3),
        ByConfidence(threshold=None, passes=2, by_entropy=True),
        MaskPredict(passes=3),
    ],
)
def test_every_rule_is_told_what_a_dense_network_says(ops: Ops, rule: Rule) -> None:
    network, text, passes = Dense(), list(PROMPT), 0
    while len(text) < len(PROMPT) + 24:
        block = Block.masked_from(len(text), 6)
        while block.masks:
            p = probabilities(network.block_logits(text, block.tokens))
            kept = [0.0 if token < 0 else float(p[place, token]) for place, token in enumerate(block.tokens)]
            entropy = (-(p * np.log(p)).sum(axis=1)).tolist()
            rule.refine(block, Guesses(p.argmax(axis=1).tolist(), p.max(axis=1).tolist(), kept, entropy), ())
            block.num_passes += 1
        text, passes = text + block.tokens, passes + block.num_passes
    (g,) = refine(tiny_runner(ops=ops), [PROMPT], refiner(6, rule), max_new_tokens=24)
    assert g.output.tokens == text[len(PROMPT) :]
    assert g.stats.passes == passes


@pytest.mark.parametrize("shift", [1, 0])
def test_a_block_that_slides_writes_its_first_tokens_at_once(ops: Ops, shift: int) -> None:
    network, text, passes, steps = Dense(), list(PROMPT), 0, 0
    block = [-1] * 5
    while len(text) < len(PROMPT) + 30:
        p = probabilities(network.block_logits(text, block, shift))
        passes += 1
        open_ = [place for place in range(5) if block[place] < 0]
        sure = [place for place in open_ if p[place].max() >= 0.4]
        for place in sure or [max(open_, key=lambda place: p[place].max())]:
            block[place] = int(p[place].argmax())
        first = next((place for place in range(5) if block[place] < 0), 5)
        steps += first > 0
        text, block = text + block[:first], block[first:] + [-1] * first
    runner = tiny_runner(ops=ops)
    (g,) = refine(
        runner,
        [PROMPT],
        refiner(5, ByConfidence(threshold=0.4), slides=True, shift=shift),
        check=True,
        max_new_tokens=30,
    )
    assert g.output.tokens == text[len(PROMPT) : len(PROMPT) + 30]
    assert g.stats.passes == passes
    assert g.stats.steps == steps
    assert steps > 6, "it writes more often than once a block"


def test_sliding_blocks_do_not_depend_on_neighbours_or_preemption() -> None:
    ops, prompts = tiny_ops(), [[7 + i, *range(40)] for i in range(3)]
    alone = [
        refine(tiny_runner(ops=ops), [p], refiner(8, slides=True), max_new_tokens=60)[0].output.tokens for p in prompts
    ]
    found = refine(tiny_runner(ops=ops, capacity=7), prompts, refiner(8, slides=True), check=True, max_new_tokens=60)
    assert [g.output.tokens for g in found] == alone
    assert sum(g.stats.preemptions for g in found) > 0
    (g,) = refine(tiny_runner(context=64), [PROMPT], refiner(8, slides=True), check=True, max_new_tokens=100)
    assert (g.finish_reason, len(g.tokens)) == ("context", 64)


def test_both_implementations_write_the_same_text() -> None:
    texts = {
        name: [g.output.tokens for g in refine(tiny_runner(ops=make(1)), PROMPTS, refiner(6), max_new_tokens=40)]
        for name, make in MAKERS.items()
    }
    assert len({str(text) for text in texts.values()}) == 1


@pytest.mark.parametrize("length", [3, 8])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 4}])
def test_neighbours_chunks_and_known_prefixes_do_not_change_a_text(length: int, sampling: dict[str, Any]) -> None:
    ops = tiny_ops()
    alone = [
        refine(tiny_runner(ops=ops, kv="bf16"), [p], refiner(length), max_new_tokens=50, **sampling)[0].output.tokens
        for p in PROMPTS
    ]
    runner = tiny_runner(ops=ops, kv="bf16")
    for decoder in ({}, {"token_budget": 3}, {"max_running": 2}):
        found = refine(runner, PROMPTS, refiner(length), check=True, decoder=decoder, max_new_tokens=50, **sampling)
        assert [g.output.tokens for g in found] == alone
    assert found[1].stats.cached_tokens == 64


def test_a_preempted_sequence_goes_on_with_its_block() -> None:
    ops = tiny_ops()
    prompts = [[7 + i, *range(40)] for i in range(3)]
    alone = [refine(tiny_runner(ops=ops), [p], refiner(8), max_new_tokens=60)[0].output.tokens for p in prompts]
    runner = tiny_runner(ops=ops, capacity=7)
    found = refine(runner, prompts, refiner(8), check=True, max_new_tokens=60)
    assert [g.output.tokens for g in found] == alone
    assert sum(g.stats.preemptions for g in found) > 0


def test_samples_of_one_prompt_share_its_prefill_and_equal_single_requests() -> None:
    prompt = [i % 90 for i in range(70)]
    options = {"temperature": 1.0, "seed": 3, "max_new_tokens": 24}
    runner = tiny_runner(share_prefixes=False)
    loop, refining = Decoder(runner), refiner(6)
    group = [sequence_of(request(prompt, sample_index=i, **options), runner, refiner=refining) for i in range(3)]
    loop.add(group)
    for _ in loop.run():
        loop.scheduler.check()
    for i, g in enumerate(group):
        (alone,) = refine(tiny_runner(), [prompt], refiner(6), sample_index=i, **options)
        assert g.output.tokens == alone.output.tokens
    assert len({tuple(g.output.tokens) for g in group}) == 3
    assert all(g.stats.cached_tokens == 0 for g in group)


def test_a_lower_limit_gives_the_beginning_of_the_same_text() -> None:
    (whole,) = refine(tiny_runner(), [PROMPT], refiner(8), max_new_tokens=40)
    for limit in (1, 7, 8, 21):
        (g,) = refine(tiny_runner(), [PROMPT], refiner(8), max_new_tokens=limit)
        assert g.output.tokens == whole.output.tokens[:limit]
        assert g.finish_reason == "length"


def test_the_text_ends_at_an_end_token_inside_a_block_and_its_rest_is_not_refined() -> None:
    (whole,) = refine(tiny_runner(), [PROMPT], refiner(8, ByConfidence(threshold=None)), max_new_tokens=40)
    text = whole.output.tokens
    last = next(i for i, token in enumerate(text) if i > 8 and token not in text[:i])
    (g,) = refine(
        tiny_runner(), [PROMPT], refiner(8, ByConfidence(threshold=None)), max_new_tokens=40, stop_tokens=[text[last]]
    )
    assert g.output.tokens == text[: last + 1]
    assert g.finish_reason == "stop"


def test_the_text_ends_where_the_context_does() -> None:
    (g,) = refine(tiny_runner(context=64), [PROMPT], refiner(8), max_new_tokens=100)
    assert (g.finish_reason, len(g.tokens)) == ("context", 64)


def test_a_sliding_window_cuts_canvases_by_position() -> None:
    options = {"model_type": "mistral", "sliding_window": 24, "ops": tiny_ops()}
    expected = decode(tiny_runner(**options), PROMPTS, max_new_tokens=64)
    found = refine(tiny_runner(**options), PROMPTS, refiner(1), check=True, max_new_tokens=64)
    assert [g.output.tokens for g in found] == [g.output.tokens for g in expected]
    batch = refine(tiny_runner(**options), PROMPTS, refiner(6), check=True, max_new_tokens=64)
    for g, prompt in zip(batch, PROMPTS, strict=True):
        (alone,) = refine(tiny_runner(**options), [prompt], refiner(6), max_new_tokens=64)
        assert g.output.tokens == alone.output.tokens


def test_a_canvas_that_can_never_fit_is_refused() -> None:
    with pytest.raises(CacheError, match="may need"):
        refine(tiny_runner(capacity=3), [PROMPT], refiner(64), max_new_tokens=10)


def test_plain_and_refined_requests_share_passes() -> None:
    runner = tiny_runner()
    (expected,) = decode(tiny_runner(), [PROMPT], max_new_tokens=30)
    (alone,) = refine(tiny_runner(), [PROMPTS[1]], refiner(4), max_new_tokens=30)
    loop = Decoder(runner)
    plain = sequence_of(request(PROMPT, max_new_tokens=30), runner)
    refined = sequence_of(request(PROMPTS[1], max_new_tokens=30), runner, refiner=refiner(4))
    loop.add([plain])
    loop.add([refined])
    for _ in loop.run():
        loop.scheduler.check()
    assert plain.output.tokens == expected.output.tokens
    assert refined.output.tokens == alone.output.tokens


@pytest.mark.parametrize("predicts", [False, True])
def test_mask_predict_fills_the_whole_canvas_in_a_fixed_number_of_passes(predicts: bool) -> None:
    rule = MaskPredict(passes=5, predicts_length=predicts)
    (g,) = refine(tiny_runner(), [PROMPT], refiner(None, rule), check=True, max_new_tokens=24)
    assert (len(g.output.tokens), g.stats.passes, g.stats.steps) == (24, 5, 1)


def test_a_refiner_takes_no_draft() -> None:
    with pytest.raises(DrafterError, match="takes no draft"):
        refiner().check(EMPTY, 97)


def test_nothing_is_kept_of_a_request_that_has_ended() -> None:
    refining = refiner(8)
    refine(tiny_runner(), PROMPTS, refining, max_new_tokens=11)
    assert refining._blocks == {}
