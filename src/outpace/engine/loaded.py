"""The loaded model: what everybody above the network needs of it, drafters and what they have learned included."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from functools import cached_property
from pathlib import Path

from outpace.drafters.protocol import Drafter
from outpace.drafters.router import Experience
from outpace.runner import Runner
from outpace.tokenizer import Tokenizer
from outpace.types import MaskFilling
from outpace.version import VERSION

_BLOCK = 8  # tokens that a model which was never trained to fill masks is asked for


class LoadedModel:
    """A network ready to run, its tokenizer and end tokens, and the drafters that live as long as it does.

    costs: folder in which the router keeps what it learns about passes (None: nowhere). trained: the drafter that was
    trained for it, if there is one. filling: how it fills masks; None: it was not trained to.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        name: str,
        path: Path,
        fingerprint: bytes,
        eos_ids: frozenset[int],
        num_bytes: int,
        costs: Path | None,
        trained: Drafter | None = None,
        filling: MaskFilling | None = None,
    ) -> None:
        self.runner = runner
        self.tokenizer = tokenizer
        self.name = name
        self.path = path
        self.fingerprint = fingerprint
        self.eos_ids = eos_ids
        self.num_bytes = num_bytes
        self.trained = trained
        self.filling = filling or MaskFilling(min(eos_ids, default=0), _BLOCK, is_trained=False)
        self._costs = costs
        self._drafters: dict[Hashable, Drafter] = {}
        self._followers: dict[LoadedModel, Runner] = {}
        self._lock = threading.RLock()  # drafters are made by the threads that ask for them

    @cached_property
    def experience(self) -> Experience:
        """What strategy "auto" has learned about this model on this machine."""
        return Experience.of(self.runner, self.fingerprint, VERSION, self._costs)

    def follower(self, model: LoadedModel) -> Runner:
        """Return a runner of a draft model, whose keys and values are a group of layers in this model's cache.

        The first to ask adds the group; it stays as long as this model.
        """
        with self._lock:
            if model not in self._followers:
                cache = self.runner.cache
                self._followers[model] = model.runner.join(cache, f"draft_model {len(cache.groups)}")
            return self._followers[model]

    def drafter(self, key: Hashable, make: Callable[[], Drafter]) -> Drafter:
        """Return the drafter of that key; the first to ask makes it."""
        with self._lock:
            if key not in self._drafters:
                self._drafters[key] = make()
            return self._drafters[key]
