from __future__ import annotations

import torch
from torch import nn

from outpace.train.objective import adamw, muon


def test_every_group_remembers_the_rate_at_its_peak_also_in_a_checkpoint() -> None:
    x, y, matrix = (nn.Parameter(torch.ones(3, *rest)) for rest in ((), (), (2,)))
    optimisers = [muon([matrix], 0.2), adamw([([x], 0.1), ([y], 0.3)])]
    rates = [[0.2], [0.1, 0.3]]
    assert [[group["base_rate"] for group in own.param_groups] for own in optimisers] == rates
    assert [[group["lr"] for group in own.param_groups] for own in optimisers] == rates
    fresh = [muon([matrix], 0.9), adamw([([x], 0.9), ([y], 0.9)])]
    for own, saved in zip(fresh, optimisers, strict=True):
        own.load_state_dict(saved.state_dict())
    assert [[group["base_rate"] for group in own.param_groups] for own in fresh] == rates
