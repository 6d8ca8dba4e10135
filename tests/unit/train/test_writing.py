from __future__ import annotations

import numpy as np
import pytest
import torch

from outpace.api import LanguageModel
from outpace.models.checkpoint import open_checkpoint
from outpace.ops import philox
from outpace.train import writing
from outpace.train.networks.emulated import EmulatedNetwork
from outpace.train.text.loops import KEPT, LONGEST_PERIOD, cut_loop
from outpace.train.writing import Ask, TextWriter, gumbel, is_looping, likely, loop_ends
from outpace.types import TOKEN_STREAM

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network(lm: LanguageModel) -> EmulatedNetwork:
    return EmulatedNetwork(lm.config, open_checkpoint(lm.path).tensors, device=CPU)


def asked(lm: LanguageModel, count: int) -> list[Ask]:
    rng = np.random.default_rng(5)
    return [
        Ask(
            rng.integers(0, lm.config.vocab_size, rng.integers(2, 30)).tolist(),
            (0.0, 0.8, 1.0)[i % 3],
            0.03 if i % 3 else 0.0,
            2**63 + 77 * i,
        )
        for i in range(count)
    ]


def test_texts_are_those_of_the_engine_with_the_same_seeds(lm: LanguageModel, network: EmulatedNetwork) -> None:
    asks = asked(lm, 12)
    found = TextWriter(network, sorted(lm.tokenizer.eos_ids), 40, rows=5).write(asks)
    for ask, own in zip(asks, found, strict=True):
        expected = lm.generate(
            list(ask.tokens),
            max_new_tokens=40,
            temperature=ask.temperature,
            min_p=ask.min_p,
            seed=ask.seed,
            strategy="none",
        ).tokens
        end = cut_loop(expected)
        assert own.useful == end
        assert own.tokens[:end].tolist() == expected[:end]


def test_a_text_ends_at_its_first_stop_token_and_leaves_the_others_alone(
    lm: LanguageModel, network: EmulatedNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts leave at different times, so that the rest move up."""
    asks = asked(lm, 9)
    whole = TextWriter(network, [lm.config.vocab_size], 24).write(asks)
    stops = [int(own.tokens[3]) for own in whole[:4]]
    monkeypatch.setattr(writing, "_CHECK", 2)
    monkeypatch.setattr(writing, "_LIVE", 1.0)
    monkeypatch.setattr(writing, "KEPT", 10**6)
    ended = TextWriter(network, stops, 24).write(asks)
    assert len({len(own.tokens) for own in ended}) > 1
    for own, before in zip(ended, whole, strict=True):
        places = np.flatnonzero(np.isin(before.tokens, stops))
        end = int(places[0]) + 1 if len(places) else 24
        assert own.tokens.tolist() == before.tokens[:end].tolist()


@pytest.mark.parametrize("size", [5, 64, 97, 1000, 20000])
def test_likely_tokens_are_the_largest_logits(size: int) -> None:
    logits = torch.randn(3, size, generator=torch.Generator().manual_seed(size))
    values, tokens = likely(logits)
    expected = logits.sort(dim=1, descending=True)
    assert torch.equal(values, expected.values[:, :128])
    assert torch.equal(tokens, expected.indices[:, :128])


def test_noise_is_that_of_the_engine() -> None:
    seeds, positions = [1, 2**63 + 12345, 2**64 - 1], [0, 17, 4000]
    keys = torch.tensor([(seed & 0xFFFFFFFF, seed >> 32) for seed in seeds])
    tokens = torch.arange(1001).expand(3, -1)
    found = gumbel(keys, torch.tensor(positions), tokens).numpy()
    for row, seed, position in zip(found, seeds, positions, strict=True):
        expected = philox.gumbel(seed, position, 1001, 0, TOKEN_STREAM)
        np.testing.assert_allclose(row, expected, rtol=1e-6, atol=1e-7)


def test_loops_are_cut_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for period in (1, 2, 3, 7, 39, 40, 41, 60, 64, 65):
        for start in (0, 5, 60):
            for times in (41, 42, 130):
                row = rng.integers(0, 50, 220)
                loop = np.resize(rng.integers(0, 50, period), times + period)[: 220 - start]
                row[start : start + len(loop)] = loop
                rows.append(row)
    out, ends = torch.from_numpy(np.stack(rows)), torch.from_numpy(rng.integers(50, 221, len(rows)))
    expected = [cut_loop(row[:end]) for row, end in zip(rows, ends.tolist(), strict=True)]
    assert loop_ends(out, ends).tolist() == expected
    assert 10 < sum(a < b for a, b in zip(expected, ends.tolist(), strict=True)) < len(rows) - 10
    for size in (30, 60, 130, 220):
        expected = [_ends_in_a_loop(row[:size]) for row in rows]
        assert is_looping(out[:, :size]).tolist() == expected
        assert any(expected) == (size > 42)


def _ends_in_a_loop(row: np.ndarray) -> bool:
    for period in range(1, LONGEST_PERIOD + 1):
        run = 0
        while run + period < len(row) and row[-1 - run] == row[-1 - run - period]:
            run += 1
        if run > max(KEPT, period):
            return True
    return False
