from __future__ import annotations

from typing import Any

import pytest

from outpace.errors import UsageError
from outpace.train.adapt.options import ADAPTING_NAMES, AdaptOptions
from outpace.train.adapt.settings import AdaptSettings


def test_what_is_given_goes_into_the_settings_and_the_rest_is_the_recipes() -> None:
    options = AdaptOptions(kind="diffusion", block=8, max_noise=0.8)
    assert options.chosen == {"block": 8, "max_noise": 0.8}
    settings = AdaptSettings("diffusion", steps=1)
    assert all(hasattr(settings, name) for name in ADAPTING_NAMES)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "eagle"}, "unknown kind .eagle."),
        ({"kind": "jacobi", "shift": 1}, "--shift would be ignored by jacobi"),
        ({"kind": "jacobi", "max_noise": 0.5}, "--max-noise would be ignored by jacobi"),
        ({"kind": "diffusion", "clean": 0.5}, "--clean would be ignored by diffusion"),
        (
            {"kind": "diffusion", "weights": "full", "rank": 8},
            "--rank would be ignored by diffusion with --weights full",
        ),
        ({"kind": "jacobi", "weights": "full", "shift": 1}, "--shift would be ignored by jacobi with --weights full"),
        ({"kind": "diffusion", "weights": "some"}, "unknown weights .some."),
        ({"kind": "diffusion", "block": 1}, "block must be in"),
        ({"kind": "diffusion", "min_noise": 0.9, "max_noise": 0.1}, "min_noise must be below"),
        ({"kind": "diffusion", "budget": "soon"}, "--budget must be a time"),
    ],
)
def test_what_cannot_work_or_would_be_ignored_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AdaptOptions(**given)


def test_the_clean_text_is_learned_where_its_tokens_are_computed_with_what_learns() -> None:
    assert AdaptOptions(kind="jacobi", clean=0.5).chosen == {"clean": 0.5}
    assert AdaptOptions(kind="diffusion", weights="full", clean=0.5).chosen == {"weights": "full", "clean": 0.5}


def test_how_is_part_of_what_a_run_is_made_with() -> None:
    assert AdaptOptions(kind="jacobi", block=8).as_dict()["block"] == 8
