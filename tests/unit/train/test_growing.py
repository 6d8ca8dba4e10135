from __future__ import annotations

from typing import Any

import pytest

import outpace
from outpace import LanguageModel
from outpace.drafters.eagle import EagleDrafter
from outpace.train.drafting import Drafted
from outpace.train.export import read_network
from outpace.train.growing import grow
from outpace.train.networks.eagle import EagleNetwork
from outpace.train.target import EngineTarget
from outpace.train.text.corpus import Conversation
from outpace.train.trainer import Outcome
from outpace.train.views import views_of
from outpace.types.tree import DraftTree
from tests.training import written_by


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_trees_are_those_that_the_drafter_grows_while_it_decodes(
    lm: LanguageModel, trained: Outcome[Drafted], temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token by token, over all drafts of a few texts. On ops in float32: 8-bit products would turn some around."""
    exact: dict[str, Any] = {"ops": "reference", "kv": "f32", "threads": 1}
    real = outpace.load(lm.path, drafter=trained.path, **exact)
    writer = outpace.load(lm.path, **exact)
    target = EngineTarget(writer)
    seen: dict[int, DraftTree] = {}
    propose = EagleDrafter.propose

    def watch(self: EagleDrafter, sequences: Any, budgets: Any) -> list[DraftTree]:
        trees = propose(self, sequences, budgets)
        for sequence, tree in zip(sequences, trees, strict=True):
            seen[len(sequence.tokens) - 1] = tree
        return trees

    monkeypatch.setattr(EagleDrafter, "propose", watch)
    network = read_network(trained.path, "eagle", target)
    assert isinstance(network, EagleNetwork)
    same = []
    for own in written_by(writer, 4, 40, seed=5, temperature=temperature):
        seen.clear()
        options: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True, "seed": own.seed}
        prompt = own.tokens[: own.num_prompt].tolist()
        real.generate(prompt, strategy="eagle", max_draft=4, temperature=temperature, **options)
        ((batch, views),) = views_of(network, target, [own])
        ((*trees,),) = grow(network, batch, views, (4,), None)
        for anchor, tree in seen.items():
            if anchor >= own.num_prompt and anchor - own.num_prompt < len(trees):
                (found,) = trees[anchor - own.num_prompt]
                same.append((found.tokens, found.parents) == (tree.tokens, tree.parents))
    assert len(same) > 30
    assert all(same)


def test_budgets_grow_together_as_they_grow_alone(
    trained: Outcome[Drafted], target: EngineTarget, held_out: list[Conversation]
) -> None:
    network = read_network(trained.path, "eagle", target)
    assert isinstance(network, EagleNetwork)
    ((batch, views),) = views_of(network, target, held_out[:2])
    together = grow(network, batch, views, (1, 3, 6), 0.02)
    for i, budget in enumerate((1, 3, 6)):
        alone = grow(network, batch, views, (budget,), 0.02)
        for some, own in zip(together, alone, strict=True):
            assert [trees[i].tokens for trees in some] == [tree.tokens for (tree,) in own]
            assert max(len(tree.tokens) for (tree,) in own) == budget
