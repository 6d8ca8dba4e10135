"""What `SamplingParams` takes, and what it refuses: values and types."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from outpace.errors import UsageError
from outpace.types import NUMERIC_PARAMS, SamplingParams

FILTERS = {"top_k": 5, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.9, "top_n_sigma": 1.0}


@pytest.mark.parametrize("name", NUMERIC_PARAMS)
@pytest.mark.parametrize("value", ["0.7", None, True, [0.5], 1j, np.bool_(True), np.array([1.0]), b"1"], ids=repr)
def test_what_is_no_number_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name} must be a (whole )?number, got "):
        SamplingParams(**{"temperature": 1.0, name: value})


@pytest.mark.parametrize("name", NUMERIC_PARAMS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -101.0, 1e300])
def test_what_is_no_possible_value_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{name} must be "):
        SamplingParams(**{"temperature": 1.0, name: value})


@pytest.mark.parametrize("value", [1.5, 1.0, np.float64(3)])
def test_top_k_is_a_whole_number(value: Any) -> None:
    with pytest.raises(UsageError, match=r"top_k must be a whole number, got (np.float64\()?[13]"):
        SamplingParams(temperature=1.0, top_k=value)


def test_numbers_of_other_libraries_become_pythons_own() -> None:
    params = SamplingParams(temperature=np.float32(0.5), top_k=np.int64(7), top_p=Fraction(1, 2), presence_penalty=1)
    assert params == SamplingParams(temperature=0.5, top_k=7, top_p=0.5, presence_penalty=1.0)
    for name in NUMERIC_PARAMS:
        assert type(getattr(params, name)) is (int if name == "top_k" else float), name


@pytest.mark.parametrize("temperature", [1e-4, 9.99e-4])
def test_a_temperature_that_divides_logits_beyond_float32_is_refused(temperature: float) -> None:
    with pytest.raises(UsageError, match=r"temperature must be 0 \(greedy\) or at least 0.001"):
        SamplingParams(temperature=temperature)


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ([1, 2], "must map token ids to numbers"),
        (None, "must map token ids to numbers"),
        ("5", "must map token ids to numbers"),
        ({"50256": -100}, "a token id of logit_bias must be a whole number, got '50256'"),
        ({1.0: 1.0}, "whole number, got 1.0"),
        ({True: 1.0}, "whole number, got True"),
        ({-1: 1.0}, "a token id of logit_bias must be in"),
        ({2**31: 1.0}, "a token id of logit_bias must be in"),
        ({5: "1"}, "logit_bias of token 5 must be a number, got '1'"),
        ({5: None}, "logit_bias of token 5 must be a number"),
        ({5: math.nan}, "logit_bias of token 5 must be in"),
        ({5: math.inf}, "logit_bias of token 5 must be in"),
        ({5: 1e38}, "logit_bias of token 5 must be in"),
    ],
)
def test_a_bias_that_cannot_work_is_refused(bias: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SamplingParams(logit_bias=bias)


def test_biases_are_copied_as_pythons_own_numbers() -> None:
    given = {np.int32(3): np.float32(1.5), 4: -math.inf, 5: 2}
    params = SamplingParams(logit_bias=given)
    given[6] = 1.0
    assert params.logit_bias == {3: 1.5, 4: -math.inf, 5: 2.0}
    assert {type(token) for token in params.logit_bias} == {int}
    assert {type(bias) for bias in params.logit_bias.values()} == {float}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_that_cannot_have_an_effect_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name}=.* has no effect at temperature 0 \(greedy\)"):
        SamplingParams(**{name: FILTERS[name]})
    SamplingParams(**{"temperature": 0.5, name: FILTERS[name]})


def test_every_option_has_a_help_text_that_is_a_sentence() -> None:
    for option in dataclasses.fields(SamplingParams):
        text = option.metadata["help"]
        assert text[0].isupper(), option.name
        assert text.endswith("."), option.name


@pytest.mark.parametrize(
    ("params", "is_argmax"),
    [
        ({}, True),
        ({"temperature": 0.5}, False),
        ({"repetition_penalty": 1.1}, False),
        ({"logit_bias": {1: 0.0}}, False),
    ],
)
def test_plain_greedy_sampling_is_known(params: dict[str, Any], is_argmax: bool) -> None:
    assert SamplingParams(**params).is_argmax is is_argmax


def test_numbers_are_the_numeric_fields_in_their_order() -> None:
    params = SamplingParams(temperature=0.5, top_k=3, logit_bias={1: 2.0})
    assert dict(zip(NUMERIC_PARAMS, params.numbers, strict=True)) == {
        name: float(getattr(params, name)) for name in NUMERIC_PARAMS
    }
    assert params.numbers[:2].tolist() == [0.5, 3.0]
