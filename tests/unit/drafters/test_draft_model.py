from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from outpace.drafters.draft_model import DraftModel
from outpace.engine.decode import Decoder
from outpace.errors import UsageError
from outpace.ops.reference import ReferenceOps
from outpace.runner import Runner
from tests.decoding import decode, request, sequence_of, tiny_ops, tiny_runner

VOCAB = 97
PROMPT = [5, 6, 7, 8, 9, 10]
LONG = [(7 * i) % 89 for i in range(150)]


def drafting(target: Runner, seed: int = 0, **options: Any) -> DraftModel:
    """Return a draft model for a target; of the same seed, it is the target itself."""
    fields = {name: options.pop(name) for name in ("branches", "min_confidence") if name in options}
    draft = tiny_runner(ops=target.ops, seed=seed, **options).join(target.cache, "draft")
    return DraftModel(draft, target.model.config.vocab_size, **({"min_confidence": 0.0} | fields))


def proposed(g: Any) -> int:
    return g.stats.proposed.get("draft_model", 0)


def accepted(g: Any) -> int:
    return g.stats.accepted.get("draft_model", 0)


def count_tokens(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every pass of the runner adds its number of tokens."""
    counts: list[int] = []
    forward = runner.forward

    def counting(batch: Any, taps: Sequence[int] = ()) -> Any:
        counts.append(sum(s.end - s.start + len(s.tree) for s in batch))
        return forward(batch, taps)

    monkeypatch.setattr(runner, "forward", counting)
    return counts


def test_a_draft_model_that_is_the_target_is_always_right() -> None:
    target = tiny_runner()
    (plain,) = decode(target, [PROMPT], max_new_tokens=64)
    (drafted,) = decode(target, [PROMPT], max_new_tokens=64, drafter=drafting(target), max_draft=7, check=True)
    assert drafted.output.tokens == plain.output.tokens
    assert drafted.stats.steps == 8


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
@pytest.mark.parametrize("branches", [1, 3])
def test_any_draft_model_leaves_the_text_as_it_is_whatever_the_others_in_the_batch_do(model_type, branches) -> None:
    target = tiny_runner(model_type, ops=tiny_ops())
    prompts = [PROMPT, LONG[:31], LONG[:70], PROMPT[:2]]
    plain = decode(target, prompts, max_new_tokens=80)
    drafter = drafting(target, seed=1, branches=branches)
    drafted = decode(target, prompts, max_new_tokens=80, drafter=drafter, check=True)
    assert [g.output.tokens for g in drafted] == [g.output.tokens for g in plain]
    assert sum(proposed(g) for g in drafted) > 100


def test_the_draft_model_reads_every_token_once(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_runner(ops=tiny_ops())
    drafter = drafting(target)
    counts = count_tokens(drafter.runner, monkeypatch)
    (g,) = decode(target, [LONG], max_new_tokens=60, drafter=drafter, max_draft=5)
    assert max(counts) <= 256
    # Every token of the sequence but the last, a draft's last guess among them, in the pass after it was accepted.
    assert sum(counts) <= len(LONG) + len(g.output.tokens) - 1


def test_what_was_rejected_is_read_again_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_runner(ops=tiny_ops())
    drafter = drafting(target, seed=1)
    counts = count_tokens(drafter.runner, monkeypatch)
    (g,) = decode(target, [LONG], max_new_tokens=60, drafter=drafter, max_draft=5)
    rejected = proposed(g) - accepted(g)
    assert accepted(g) < proposed(g)
    assert sum(counts) <= len(LONG) + len(g.output.tokens) - 1 + rejected


def test_the_next_turn_of_a_conversation_finds_what_the_draft_model_read(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_runner(ops=tiny_ops())
    drafter = drafting(target)
    (first,) = decode(target, [LONG], max_new_tokens=40, drafter=drafter)
    counts = count_tokens(drafter.runner, monkeypatch)
    again = [*LONG, *first.output.tokens, 1, 2, 3]
    decode(target, [again], max_new_tokens=2, drafter=drafter)
    assert 0 < sum(counts) <= 2 * 32, "what lies beyond the last whole block"


def test_samples_of_one_prompt_read_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_runner(ops=tiny_ops())
    drafter = drafting(target)
    counts = count_tokens(drafter.runner, monkeypatch)
    loop = Decoder(target)
    asked = [request(LONG, max_new_tokens=2, temperature=0.8, seed=1, sample_index=i, max_draft=1) for i in range(6)]
    loop.add([sequence_of(each, target, drafter=drafter) for each in asked])
    for _ in loop.run():
        target.cache.check()
    assert len(LONG) < sum(counts) < len(LONG) + 6 * 32


def test_a_sequence_that_is_recomputed_every_step_is_drafted_all_the_same() -> None:
    target = tiny_runner(share_prefixes=False)
    (plain,) = decode(target, [PROMPT], max_new_tokens=12)
    drafter = drafting(target, seed=1)
    (drafted,) = decode(target, [PROMPT], max_new_tokens=12, drafter=drafter, reuses_cache=False, check=True)
    assert drafted.output.tokens == plain.output.tokens


# -- a draft may cost time, never a text -------------------------------------------------------------


@pytest.mark.parametrize("prompt", [[95, *PROMPT], [*PROMPT, 96]])
def test_a_prompt_with_a_token_that_the_draft_model_lacks_is_not_drafted(prompt: list[int]) -> None:
    target = tiny_runner()
    drafter = drafting(target, vocab_size=95)
    (plain,) = decode(target, [prompt], max_new_tokens=16)
    (drafted,) = decode(target, [prompt], max_new_tokens=16, drafter=drafter)
    assert drafted.output.tokens == plain.output.tokens
    assert proposed(drafted) == 0


def test_drafting_stops_where_the_target_writes_a_token_that_the_draft_model_lacks() -> None:
    def late(tokens: Sequence[int], logits: Any) -> Any:
        if len(tokens) == len(PROMPT) + 6:
            logits[96] = 1e6
        return logits

    target = tiny_runner()
    options: dict[str, Any] = {"max_new_tokens": 24, "logits_processors": (late,)}
    (plain,) = decode(target, [PROMPT], **options)
    drafter = drafting(target, vocab_size=95)
    (drafted,) = decode(target, [PROMPT], drafter=drafter, **options)
    assert drafted.output.tokens == plain.output.tokens
    assert drafted.output.tokens[6] == 96
    assert proposed(drafted) > 0
    assert drafted.stats.steps > 24 - 7, "from then on every step writes one token"


def test_a_bias_on_tokens_that_the_draft_model_lacks_is_the_targets_alone() -> None:
    target = tiny_runner()
    bias = {96: -5.0, 95: -3.0, 4: 0.5}
    (plain,) = decode(target, [PROMPT], max_new_tokens=24, logit_bias=bias)
    (drafted,) = decode(
        target, [PROMPT], max_new_tokens=24, logit_bias=bias, drafter=drafting(target, vocab_size=95), check=True
    )
    assert drafted.output.tokens == plain.output.tokens
    assert proposed(drafted) > 0


def test_a_draft_model_with_more_tokens_than_the_target_drafts_those_that_both_have() -> None:
    target = tiny_runner(vocab_size=64)
    (plain,) = decode(target, [PROMPT], max_new_tokens=24)
    (drafted,) = decode(target, [PROMPT], max_new_tokens=24, drafter=drafting(target, vocab_size=97, branches=2))
    assert drafted.output.tokens == plain.output.tokens
    assert proposed(drafted) > 24


@pytest.mark.parametrize("vocab_size", [90, 97, 130])
def test_rejection_sampling_gets_the_distribution_that_guesses_were_drawn_from(vocab_size: int) -> None:
    target = tiny_runner()
    drafter = drafting(target, vocab_size=vocab_size, branches=3)
    table = target.cache.open(())
    table.reserve(len(PROMPT) + 8)
    for number, verification in enumerate(("exact", "rejection")):
        asked = request(PROMPT, temperature=1.0, verification=verification)
        view = SimpleNamespace(id=number, tokens=PROMPT, request=asked, table=table)
        [tree] = drafter.propose([view], [8])
        assert len(tree) == 8
        if verification == "exact":
            assert tree.q is None
            continue
        assert tree.q is not None
        assert tree.q.shape == (9, 97)
        parents = {parent + 1 for parent in tree.parents}
        np.testing.assert_allclose(tree.q.sum(axis=1), [row in parents for row in range(9)], atol=1e-9)
        assert all(tree.q[parent + 1, token] > 0 for parent, token in zip(tree.parents, tree.tokens, strict=True))


def test_a_prompt_beyond_the_draft_models_sliding_window_is_decoded_without_a_draft() -> None:
    target = tiny_runner("mistral", ops=tiny_ops(), sliding_window=24)
    drafter = drafting(target, model_type="mistral", sliding_window=24)
    options: dict[str, Any] = {"max_new_tokens": 64, "decoder": {"token_budget": 32}}
    long, short = decode(target, [LONG, LONG[:20]], drafter=drafter, check=True, **options)
    plain = decode(target, [LONG, LONG[:20]], max_new_tokens=64)
    assert [g.output.tokens for g in (long, short)] == [g.output.tokens for g in plain]
    assert proposed(long) == 0
    assert short.stats.steps < 20


def test_a_draft_never_exceeds_the_slots_that_are_reserved() -> None:
    target = tiny_runner()
    drafter = drafting(target)

    view = SimpleNamespace(id=1, tokens=PROMPT, request=request(PROMPT), table=target.cache.open(()))
    view.table.reserve(len(PROMPT) + 2)
    [tree] = drafter.propose([view], [8])
    assert len(tree) == 3, "the last guess needs no slot: it is not computed"
    view.table.reserve(len(PROMPT) + 8)
    [tree] = drafter.propose([view], [8])
    assert len(tree) == 8
    view.table.close()
    target.cache.check()


def test_other_ops_and_another_kv_format_than_the_targets_will_do() -> None:
    target = tiny_runner(ops=tiny_ops(), kv="int8")
    (plain,) = decode(target, [PROMPT], max_new_tokens=32)
    draft = tiny_runner(ops=ReferenceOps(), kv="f32").join(target.cache, "draft")
    (drafted,) = decode(target, [PROMPT], max_new_tokens=32, drafter=DraftModel(draft, VOCAB), check=True)
    assert drafted.output.tokens == plain.output.tokens
    assert accepted(drafted) > 10


@pytest.mark.parametrize(("option", "value"), [("branches", 0), ("min_confidence", 1.5), ("min_confidence", -0.1)])
def test_options_out_of_range_are_refused(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=option):
        drafting(tiny_runner(), **{option: value})
