"""What every published network must keep in the loop: texts as they are, and drafts that nobody beside it changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outpace.drafters.block import BlockDrafter
from outpace.drafters.eagle import EagleDrafter
from outpace.drafters.layouts import open_trained
from outpace.drafters.protocol import Drafter
from outpace.engine.decode import Decoder
from outpace.models import block, eagle
from outpace.models.block import BlockConfig
from outpace.models.eagle import EagleConfig
from outpace.runner import Runner
from outpace.types.tree import DraftTree
from tests.decoding import decode, request, sequence_of, tiny_runner
from tests.implementations import MAKERS
from tests.published import DFLASH, SPECULATORS, VOCAB, WIDTH, flat_config, flat_tensors, write_folder

PATHS = {path.name: path for path in sorted(SPECULATORS.iterdir())} | {"dflash": DFLASH}
LENGTH = 24
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "seed": 3}


def runner(make: Any, width: int = WIDTH) -> Runner:
    sizes = {"hidden_size": width, "intermediate_size": 24, "num_hidden_layers": 4, "head_dim": 4}
    return tiny_runner(ops=make(1), vocab_size=VOCAB, **sizes)


def drafter_of(path: Path, target: Runner) -> Drafter:
    file = open_trained(path)
    made_for = replace(file.target, num_layers=4)
    if file.kind == "block":
        network = block.build(BlockConfig.read(file.entries, made_for), file.tensors, target.model)
        return BlockDrafter(network, target, min_confidence=0.0)
    eagles = eagle.build(EagleConfig.read(file.entries, made_for), file.tensors, target.model)
    return EagleDrafter(eagles, target, min_confidence=0.0, min_expanded=0.0)


def prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(2)
    return [rng.integers(0, VOCAB, 2 + 9 * i).tolist() for i in range(count)]


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in PATHS), *((name, SAMPLED) for name in ("joint", "dflash"))]
)
def test_a_text_is_the_targets_own(name: str, options: dict[str, Any], make: Any) -> None:
    target = runner(make)
    plain = decode(target, prompts(3), max_new_tokens=LENGTH, **options)
    drafted = decode(
        target, prompts(3), drafter=drafter_of(PATHS[name], target), max_new_tokens=LENGTH, check=True, **options
    )
    assert [one.tokens for one in drafted] == [one.tokens for one in plain]
    assert all(sum(one.stats.proposed.values()) > LENGTH / 4 for one in drafted)


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
@pytest.mark.parametrize("name", PATHS)
def test_proposals_are_the_same_alone_and_in_a_batch(name: str, make: Any) -> None:
    def drafts(batch: list[list[int]]) -> dict[tuple[int, ...], list[DraftTree]]:
        target = runner(make)
        drafter, loop = drafter_of(PATHS[name], target), Decoder(target)
        asked = [request(prompt, max_new_tokens=12, **SAMPLED) for prompt in batch]
        sequences = [sequence_of(one, target, drafter=drafter, record=True) for one in asked]
        for sequence in sequences:
            loop.add([sequence])
        list(loop.run())
        return {s.request.prompt: [step.tree for step in s.steps] for s in sequences}

    together = drafts(prompts(3))
    for prompt in prompts(3):
        assert drafts([prompt])[tuple(prompt)] == together[tuple(prompt)]


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_a_drafter_may_be_narrower_than_its_target(make: Any, tmp_path: Path) -> None:
    """As the one for Llama 3.3 70B: an embedding of its own, and states of another width."""
    wide = np.random.default_rng(0).standard_normal((WIDTH, 3 * 32), np.float32) / np.float32(6)
    config = flat_config("plain", target_hidden_size=32, eagle_aux_hidden_state_layer_ids=[0, 2, 4])
    path = write_folder(tmp_path / "d", config, flat_tensors("plain") | {"fc.weight": wide})
    target = runner(make, width=32)
    (plain,) = decode(target, [[1, 2, 3]], max_new_tokens=LENGTH)
    (drafted,) = decode(target, [[1, 2, 3]], drafter=drafter_of(path, target), max_new_tokens=LENGTH, check=True)
    assert drafted.tokens == plain.tokens
    assert drafted.stats.proposed["eagle"] > 0
