"""How a network fills masks, and the canvas that it is given."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MaskFilling:
    """What a network was trained for that fills masked tokens: masked diffusion, or an adapted autoregressive model.

    mask_token: the id that stands for a masked token. block: how many tokens are filled together; 0: all. shift: 1
    where the row of position p predicts token p + 1, as in an autoregressive model; 0 where it predicts token p.
    sees_all: every token sees the whole text and the whole canvas, in both directions; so nothing can be cached.
    schedule: how many tokens each of a fixed number of passes fills (see `ByConfidence`). by_entropy: whether the
    published sampler fills the positions of least entropy first, and not those of the largest probability.
    is_trained: False for an autoregressive model that never saw a mask.
    """

    mask_token: int
    block: int
    shift: int = 1
    sees_all: bool = False
    schedule: str = "even"
    by_entropy: bool = False
    is_trained: bool = True


@dataclass(frozen=True, slots=True)
class Canvas:
    """Tokens that a pass guesses together, behind the known ones of a sequence.

    They, and the last `num_known` known tokens, see each other in both directions, and everything before.
    tokens: input ids, the mask's where nothing is known yet (masked). The last `num_scored` rows get logits.
    """

    tokens: tuple[int, ...]
    masked: tuple[bool, ...]
    num_known: int
    num_scored: int
