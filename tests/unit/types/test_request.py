from __future__ import annotations

from dataclasses import fields

import pytest

from outpace.errors import UsageError
from outpace.types import Options, Request


def test_a_request_holds_what_its_options_mean_for_it() -> None:
    options = Options(stop_tokens=(3,), max_new_tokens=None, strategy="auto")
    request = Request.of([1, 2], options, context=64, seed=9, end_tokens=frozenset([0]), prediction=[5])
    assert request == Request((1, 2), options, 9, 0, frozenset([0, 3]), 64, 16, (5,))
    assert Request.of([1], Options(seed=4, ignore_eos=True, stop_tokens=(3,)), seed=9, end_tokens=frozenset([0])) == (
        Request((1,), Options(seed=4, ignore_eos=True, stop_tokens=(3,)), 4, 0, frozenset([3]), 256, 16)
    )
    assert Request.of([1], Options(strategy="none")).max_draft == 8
    assert Request.of([1], Options(max_draft=0)).max_draft == 0
    with pytest.raises(UsageError, match="the prompt is empty"):
        Request.of([])


def test_no_option_is_spelled_again_in_a_request_but_for_what_is_resolved() -> None:
    again = {f.name for f in fields(Request)} & {f.name for f in fields(Options)}
    assert again == {"seed", "stop_tokens", "max_new_tokens", "max_draft", "prediction"}
