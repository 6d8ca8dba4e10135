"""The promise: same seed, same text, bit for bit, whatever drafts, caches and neighbours do.

Every drafter x sampling x cache option x batch size against plain decoding of each prompt alone. The default suite
takes a set of cases in which every pair of options meets; the full product is marked slow.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from outpace.drafters.combined import Combined
from outpace.drafters.draft_model import DraftModel
from outpace.drafters.jacobi import Jacobi
from outpace.drafters.lookahead import Lookahead
from outpace.drafters.ngram import NGram
from outpace.drafters.prediction import Prediction
from outpace.drafters.protocol import Drafter
from outpace.drafters.refine.refined_draft import RefinedDraft
from outpace.drafters.refine.refiner import Refiner
from outpace.drafters.refine.rules import ByConfidence, MaskPredict
from outpace.drafters.router import Auto, Experience
from outpace.drafters.suffix import Suffix
from outpace.runner import Runner
from outpace.types import MaskFilling
from outpace.types.tree import DraftTree, TreeBuilder
from tests.decoding import decode, tiny_ops, tiny_runner
from tests.eagle import tiny_drafter
from tests.networks import NETWORKS
from tests.trained import tiny_block_drafter, tiny_medusa_drafter

VOCAB = 97
LENGTH = 512
NETWORK_LENGTH = 192  # of the texts of every kind of network: beyond their windows, blocks and chunks


class Guesser:
    """Draft bushy random trees: nearly everything is rejected, and every shape of tree is verified."""

    name = "guesser"
    taps = ()

    def propose(self, sequences: Any, budgets: Any) -> list[DraftTree]:
        return [self._tree(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]

    def _tree(self, sequence: Any, budget: int) -> DraftTree:
        rng = np.random.default_rng([len(sequence.tokens), sequence.id])
        tree = TreeBuilder()
        for _ in range(budget):
            tree.add(int(rng.integers(-1, len(tree))), int(rng.integers(VOCAB)), 0.1)
        return tree.build(self.name)

    def observe(self, steps: Any, passed: Any) -> None: ...

    def forget(self, request: int) -> None: ...


def nearly(text: list[int]) -> Prediction:
    """Return a drafter that is wrong at every ninth place."""
    return Prediction([t if i % 9 else (t + 1) % VOCAB for i, t in enumerate(text)])


def auto(text: list[int]) -> Auto:
    """Return a router over several drafters, on a machine where rows are believed to be cheap and asking free."""
    experience = Experience()
    experience.cost.observe([(1, 0)], 0.001)
    experience.cost.observe_probe(16, 0, [(0.001, 0.0012)])
    return Auto([nearly(text), Suffix(remember=True), NGram(min_ngram=1), Guesser()], experience, lambda: 0.0)


def refined(name: str, target: Runner, passes: int, shift: int = 1) -> RefinedDraft:
    """Return a refiner's guesses as a drafter, by the target's network, which never saw a mask."""
    rule = MaskPredict(passes) if name == "mask_predict" else ByConfidence(threshold=0.5, passes=passes, remask=0.1)
    return RefinedDraft(Refiner(name, MaskFilling(VOCAB - 1, 6, shift), rule, 6), target, passes)


def draft_model(text: list[int], target: Runner) -> DraftModel:
    draft = tiny_runner(ops=target.ops, vocab_size=VOCAB, seed=0, kv="int8")
    return DraftModel(draft.join(target.cache, "draft"), VOCAB, branches=2)


DRAFTERS: dict[str, Callable[[list[int], Runner], Drafter]] = {
    "ngram": lambda text, target: NGram(min_ngram=1),
    "suffix": lambda text, target: Suffix(remember=True),
    "prediction": lambda text, target: nearly(text),
    "jacobi": lambda text, target: Jacobi(),
    "lookahead": lambda text, target: Lookahead(),
    "draft_model": draft_model,
    "eagle": lambda text, target: tiny_drafter(target, min_confidence=0.0),
    "medusa": lambda text, target: tiny_medusa_drafter(target),
    "block": lambda text, target: tiny_block_drafter(target),
    "block_diffusion": lambda text, target: refined("block_diffusion", target, 3),
    "mask_predict": lambda text, target: refined("mask_predict", target, 2, shift=0),
    "combined": lambda text, target: Combined([Suffix(), NGram(), Lookahead()]),
    "auto": lambda text, target: auto(text),
    "guesser": lambda text, target: Guesser(),
}
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "top_p": 0.9, "seed": 11},
    "penalties": {
        "temperature": 0.7,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.1,
        "seed": 5,
    },
}
CACHES: dict[str, dict[str, Any]] = {
    "f32": {"kv": "f32"},
    "bf16": {"kv": "bf16"},
    "int8": {"kv": "int8"},
    "window": {"model_type": "mistral", "sliding_window": 40},
}
BATCHES = (1, 3, 8)
PRODUCT = list(itertools.product(DRAFTERS, SAMPLING, CACHES, BATCHES))


# Every other kind of network, with every format of the cache.
OTHERS = [
    name
    for name in NETWORKS
    if NETWORKS[name][0] not in ("llama", "mistral", "qwen2")
    and not any(part in name for part in ("long", "plain rope"))
]
UNTIED = {"tie_word_embeddings": False}  # a tiny network that is tied says its last token for ever
NETWORK_CACHES = {
    f"{name}, {kv}": {"model_type": NETWORKS[name][0], "kv": kv, **NETWORKS[name][1], **UNTIED}
    for name in ("llama, biases", "phi3, longrope, part turns", *OTHERS)
    for kv in ("f32", "bf16", "int8")
}
NETWORK_PRODUCT = list(itertools.product(DRAFTERS, ("greedy", "sampled"), NETWORK_CACHES))


def one_each() -> list[tuple[str, str, str]]:
    """Return every network once, with drafters, samplings and formats in turn."""
    names = list(dict.fromkeys(option.rpartition(", ")[0] for option in NETWORK_CACHES))
    turns = zip(names, itertools.cycle(DRAFTERS), itertools.cycle(SAMPLING), strict=False)
    formats = itertools.cycle(("bf16", "f32", "int8", "bf16"))
    return [(drafter, sampling, f"{name}, {kv}") for (name, drafter, sampling), kv in zip(turns, formats, strict=False)]


def pairwise() -> list[tuple[Any, ...]]:
    """Return few cases of the product in which every pair of two options' values meets (greedily chosen)."""

    def pairs(case: tuple[Any, ...]) -> set[tuple[int, Any, int, Any]]:
        return {(i, case[i], j, case[j]) for i in range(4) for j in range(i)}

    missing = set().union(*map(pairs, PRODUCT))
    chosen = []
    while missing:
        best = max(PRODUCT, key=lambda case: len(pairs(case) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, VOCAB, 3 + 5 * i).tolist() for i in range(count)]


def runner(option: str) -> Runner:
    settings = dict((CACHES | NETWORK_CACHES)[option])
    return tiny_runner(settings.pop("model_type", "llama"), ops=tiny_ops(), vocab_size=VOCAB, **settings)


@cache
def plain(sampling: str, option: str, index: int, length: int = LENGTH) -> list[int]:
    """Plain decoding of one prompt, alone."""
    (g,) = decode(runner(option), [prompts(8)[index]], max_new_tokens=length, **SAMPLING[sampling])
    return g.output.tokens


def assert_lossless(drafter: str, sampling: str, option: str, batch: int, length: int = LENGTH) -> None:
    expected = [plain(sampling, option, i, length) for i in range(batch)]
    target = runner(option)
    guesses = DRAFTERS[drafter](expected[0], target)
    found = decode(target, prompts(batch), drafter=guesses, max_new_tokens=length, **SAMPLING[sampling])
    for g, tokens in zip(found, expected, strict=True):
        assert g.output.tokens == tokens
        assert len(tokens) == length
    assert sum(g.stats.steps for g in found) <= batch * length


@pytest.mark.parametrize(("drafter", "sampling", "option", "batch"), pairwise())
def test_drafts_do_not_change_the_text(drafter: str, sampling: str, option: str, batch: int) -> None:
    assert_lossless(drafter, sampling, option, batch)


@pytest.mark.slow
@pytest.mark.parametrize(("drafter", "sampling", "option", "batch"), sorted(set(PRODUCT) - set(pairwise())))
def test_drafts_do_not_change_the_text_in_the_full_product(
    drafter: str, sampling: str, option: str, batch: int
) -> None:
    assert_lossless(drafter, sampling, option, batch)


@pytest.mark.parametrize(("drafter", "sampling", "option"), one_each())
def test_drafts_do_not_change_the_text_of_any_network(drafter: str, sampling: str, option: str) -> None:
    assert_lossless(drafter, sampling, option, 3, NETWORK_LENGTH)


@pytest.mark.slow
@pytest.mark.parametrize(("drafter", "sampling", "option"), sorted(set(NETWORK_PRODUCT) - set(one_each())))
def test_drafts_do_not_change_the_text_of_any_network_in_the_full_product(
    drafter: str, sampling: str, option: str
) -> None:
    assert_lossless(drafter, sampling, option, 3)


def test_the_texts_are_not_trivial() -> None:
    """The equality above would mean little for texts of one token: greedy ones vary, sampled ones more so."""
    assert len(set(plain("greedy", "f32", 0))) > 8
    assert len(set(plain("sampled", "f32", 0))) > 40
    assert plain("sampled", "f32", 0) != plain("sampled", "int8", 0)  # the cache's rounding is real


def test_drafts_are_accepted() -> None:
    """And little for drafts that are always wrong: an exact prediction is nearly always accepted."""
    exact = Prediction(plain("greedy", "f32", 0))
    (g,) = decode(runner("f32"), prompts(1), drafter=exact, max_new_tokens=LENGTH)
    assert g.stats.tokens_per_step > 7


def test_the_router_drafts_with_several_drafters() -> None:
    """And little for a router that never drafts: what several drafters said is verified, and much of it accepted."""
    (g,) = decode(runner("f32"), prompts(1), drafter=auto(plain("greedy", "f32", 0)), max_new_tokens=LENGTH)
    assert {name for sources in g.sources for name in sources} >= {"prediction", "suffix", "ngram"}
    assert g.stats.tokens_per_step > 2
