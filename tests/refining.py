"""A dense network and a loop of its own, in float64: what refined text must be on a tiny llama-like model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outpace.drafters.refine.refiner import Refiner
from outpace.drafters.refine.rules import ByConfidence, Rule
from outpace.engine.decode import Decoder
from outpace.engine.sequence import SequenceState
from outpace.runner import Runner
from outpace.types import MaskFilling
from tests.decoding import request, sequence_of
from tests.tiny import tiny_config, tiny_values

Floats = NDArray[np.float64]
MASK = 96


def filling(**fields: Any) -> MaskFilling:
    """Return how the tiny network fills masks."""
    return MaskFilling(**{"mask_token": MASK, "block": 4, **fields})


def refiner(length: int | None = 4, rule: Rule | None = None, *, slides: bool = False, **fields: Any) -> Refiner:
    """Return a refiner of blocks of that length."""
    return Refiner("block_diffusion", filling(**fields), rule or ByConfidence(threshold=0.5), length, slides=slides)


def refine(
    runner: Runner,
    prompts: Sequence[Sequence[int]],
    refining: Refiner,
    *,
    check: bool = False,
    decoder: dict[str, Any] | None = None,
    **options: Any,
) -> list[SequenceState]:
    """Decode prompts in one batch with a refiner; return their sequences, raise what failed."""
    loop = Decoder(runner, **(decoder or {}))
    reuses = not refining.filling.sees_all
    sequences = [sequence_of(request(p, **options), runner, refiner=refining, reuses_cache=reuses) for p in prompts]
    for sequence in sequences:
        loop.add([sequence])
    for _ in loop.run():
        if check:
            loop.scheduler.check()
    runner.cache.check()
    for sequence in sequences:
        if sequence.error is not None:
            raise sequence.error
    return sequences


class Dense:
    """A llama-like network written down from its formulas: every score at once, under a mask of who sees whom."""

    def __init__(self, model_type: str = "llama", **overrides: Any) -> None:
        self.config = tiny_config(model_type, **overrides)
        self.x = {name: value.astype(np.float64) for name, value in tiny_values(self.config).items()}
        self.changes: dict[str, Callable[[Floats], Floats]] = {}  # weight -> what an adapter adds to its product
        self.mask_embedding: Floats | None = None

    def product(self, x: Floats, name: str, adapted: NDArray[np.bool_]) -> Floats:
        """Return x W^T + b, and what an adapter adds in the rows where it is on."""
        y = x @ self.x[f"{name}.weight"].T + self.x.get(f"{name}.bias", 0.0)
        if name in self.changes:
            y = y + np.where(adapted[:, None], self.changes[name](x), 0.0)
        return y

    def logits(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sees: NDArray[np.bool_],
        adapted: NDArray[np.bool_] | None = None,
        masked: NDArray[np.bool_] | None = None,
    ) -> Floats:
        """Return [T, V]; sees[i, j]: row i sees row j; adapted: the adapter is on; masked: the row is a mask."""
        adapted = np.zeros(len(tokens), np.bool_) if adapted is None else adapted
        config = self.config
        heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
        width = config["hidden_size"] // heads
        h = self.x["model.embed_tokens.weight"][list(tokens)]
        if masked is not None and self.mask_embedding is not None:
            h = np.where(masked[:, None], self.mask_embedding, h)
        angle = np.outer(positions, config["rope_theta"] ** (-np.arange(0, width, 2) / width))
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

        def turned(x: Floats) -> Floats:
            a, b = np.split(x, 2, axis=-1)
            return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

        for i in range(config["num_hidden_layers"]):
            name = f"model.layers.{i}"
            x = self.norm(h, f"{name}.input_layernorm")
            q, k, v = (self.product(x, f"{name}.self_attn.{p}_proj", adapted) for p in "qkv")
            q = turned(q.reshape(len(x), heads, width))
            k = np.repeat(turned(k.reshape(len(x), groups, width)), heads // groups, axis=1)
            v = np.repeat(v.reshape(len(x), groups, width), heads // groups, axis=1)
            scores = np.einsum("ihk,jhk->hij", q, k) / np.sqrt(width)
            scores = np.where(sees, scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            own = np.einsum("hij,jhk->ihk", weights, v).reshape(len(x), -1)
            h = h + self.product(own, f"{name}.self_attn.o_proj", adapted)
            x = self.norm(h, f"{name}.post_attention_layernorm")
            gate = self.product(x, f"{name}.mlp.gate_proj", adapted)
            up = self.product(x, f"{name}.mlp.up_proj", adapted)
            h = h + self.product(gate / (1 + np.exp(-gate)) * up, f"{name}.mlp.down_proj", adapted)
        return self.norm(h, "model.norm") @ self.x["lm_head.weight"].T

    def norm(self, x: Floats, name: str) -> Floats:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"]) * self.x[f"{name}.weight"]

    def block_logits(self, text: Sequence[int], block: Sequence[int], shift: int = 1) -> Floats:
        """Return the logits of each place of a block behind a text; -1 is a mask.

        The text is a causal chain, seen by the block up to its last token (shift 1: which stands in the block itself).
        """
        known, own = list(text[: len(text) - shift]), [*text[len(text) - shift :], *block]
        own = own[: len(block)]
        tokens = [*known, *(MASK if token < 0 else token for token in own)]
        is_own = np.arange(len(tokens)) >= len(known)
        sees = np.tril(np.ones((len(tokens),) * 2, np.bool_)) | (is_own[:, None] & is_own)
        masked = np.array([False] * len(known) + [token < 0 for token in own])
        return self.logits(tokens, range(len(tokens)), sees, is_own, masked)[len(known) :]


def probabilities(logits: Floats) -> Floats:
    """Return the distribution of each row."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def by_threshold(
    network: Dense, prompt: Sequence[int], count: int, length: int, threshold: float, shift: int = 1
) -> tuple[list[int], int]:
    """Return greedy block-diffusion text of `count` tokens by the definition, and how many passes it took."""
    text, passes = list(prompt), 0
    while len(text) < len(prompt) + count:
        block, wanted = [-1] * length, len(prompt) + count - len(text)
        while -1 in block[:wanted]:
            p = probabilities(network.block_logits(text, block, shift))
            passes += 1
            open_ = [place for place in range(length) if block[place] < 0]
            sure = [place for place in open_ if p[place].max() >= threshold]
            for place in sure or [max(open_, key=lambda place: p[place].max())]:
                block[place] = int(p[place].argmax())
        text += block[:wanted]
    return text[len(prompt) :], passes
