from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, get_type_hints

import numpy as np
import pytest

from outpace.drafters.ngram import NGram
from outpace.errors import UsageError
from outpace.types import LogitsProcessor, Named, OptionKeywords, Options, SamplingParams, given

# Where a keyword takes more than the field's normal form.
WIDER: dict[str, Any] = {
    "stop": str | Sequence[str],
    "stop_tokens": Sequence[int],
    "logits_processors": Sequence[LogitsProcessor],
    "strategy": str | Sequence[str] | Named,
    "prediction": str | Sequence[int] | None,
    "draft_model": str | os.PathLike[str] | Named | None,
    "tools": Sequence[Mapping[str, Any]] | None,
}


class Undone:
    def propose(self) -> None: ...


def test_the_keyword_arguments_are_the_fields_of_the_dataclasses() -> None:
    hints = get_type_hints(SamplingParams) | get_type_hints(Options)
    names = [field.name for kind in (SamplingParams, Options) for field in fields(kind) if field.name != "sampling"]
    keywords = get_type_hints(OptionKeywords)
    assert sorted(keywords) == sorted(names)
    for name in names:
        assert keywords[name] == WIDER.get(name, hints[name]) | None, name


def test_every_option_has_a_help_text_of_one_sentence_and_a_check() -> None:
    for option in fields(Options)[1:]:
        assert option.metadata["help"].endswith(".")
        assert callable(option.metadata["read"])


def test_options_take_flat_keywords_and_none_means_not_given() -> None:
    options = Options.of({"temperature": 0.5, "top_k": 3, "stop": "x", "seed": 7})
    assert (options.sampling.temperature, options.sampling.top_k, options.stop, options.seed) == (0.5, 3, ("x",), 7)
    nothing = dict.fromkeys(get_type_hints(OptionKeywords).keys() - {"max_new_tokens"})
    assert Options.of(nothing) == Options()
    assert Options.of({"max_new_tokens": None}).max_new_tokens is None
    assert given({"stop": None, "max_new_tokens": None, "seed": 0}) == {"max_new_tokens": None, "seed": 0}


def test_options_have_a_normal_form() -> None:
    options = Options.of(
        {
            "max_new_tokens": np.int64(5), "stop": ["a", "b"], "stop_tokens": np.array([3, 4]),
            "seed": np.uint64(2**63), "ignore_eos": np.True_, "logits_processors": [max],
            "strategy": ["ngram", "suffix"],
            "prediction": [np.int32(1)], "tools": [{"type": "function"}], "chat_template_kwargs": {"documents": (1, 2)},
        }
    )  # fmt: skip
    assert options == Options(
        max_new_tokens=5, stop=("a", "b"), stop_tokens=(3, 4), seed=2**63, ignore_eos=True, logits_processors=(max,),
        strategy=("ngram", "suffix"), prediction=(1,), tools=({"type": "function"},),
        chat_template_kwargs={"documents": [1, 2]},
    )  # fmt: skip
    assert type(options.max_new_tokens) is type(options.seed) is int
    assert Options.of({"strategy": ["recompute"]}).strategy == "recompute"


def test_what_an_option_holds_is_not_changed_by_the_caller_later() -> None:
    tool = {"type": "function"}
    options = Options.of({"tools": [tool]})
    tool["type"] = "other"
    assert options.tools == ({"type": "function"},)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_new_tokens", 1.5, "max_new_tokens must be a whole number, got 1.5"),
        ("max_new_tokens", True, "max_new_tokens must be a whole number, got True"),
        ("seed", "7", "seed must be a whole number, got '7'"),
        ("stop", [5], "stop must hold strings of at least one character, got 5"),
        ("stop", 5, "stop must be a list of strings, got 5"),
        ("stop", b"x", "stop must be a list of strings, got b'x'"),
        ("stop_tokens", 5, "stop_tokens must be a list of token ids, got 5"),
        ("stop_tokens", ["x"], r"stop_tokens\[0\] must be a whole number, got 'x'"),
        ("ignore_eos", 1, "ignore_eos must be True or False, got 1"),
        ("constraint", "json", "constraint must be a Constraint, an object with a method mask, got 'json'"),
        ("logits_processors", max, "logits_processors must be a list of functions, got <built-in function max>"),
        ("logits_processors", ["x"], r"logits_processors must hold functions of \(tokens, logits\), got 'x'"),
        ("logprobs", True, "logprobs must be a whole number, got True"),
        ("logprobs", 2000, r"logprobs must be in \[0, 1024\], got 2000"),
        ("strategy", [], r"strategy must be a strategy's name, a list of names, or a Drafter, got \[\]"),
        ("strategy", 5, "strategy must be a strategy's name, a list of names, or a Drafter, got 5"),
        ("strategy", NGram, "strategy must be a strategy's name, a list of names, or a Drafter, got <class"),
        ("strategy", Undone(), r"a Drafter also has name, taps, observe, forget: docs/adding-a-drafter.md"),
        ("draft_model", "", "draft_model must be a model's name"),
        ("strategy", [5], "strategy must hold strings of at least one character, got 5"),
        ("max_draft", "8", "max_draft must be a whole number, got '8'"),
        ("prediction", "", "prediction is empty: give the text that you expect, or leave it out"),
        ("prediction", b"x", "prediction must be a list of token ids, got b'x'"),
        ("draft_model", 5, "draft_model must be a model's name, its path, or a loaded model, got 5"),
        ("verification", "walk", "unknown verification 'walk': allowed: exact, rejection, typical"),
        ("typical_epsilon", 1, "typical_epsilon must be between 0 and 1, got 1"),
        ("typical_delta", 0.5, "typical_delta belongs to verification=\"typical\", but it is 'exact'"),
        ("trace", "yes", "trace must be True or False, got 'yes'"),
        ("salt", "x", "salt must be bytes, such as b\"tenant 7\", got 'x'"),
        ("tools", {"type": "function"}, "tools must be a list of JSON schemas, got {'type': 'function'}"),
        (
            "tools",
            [max],
            'an item of tools must be a JSON schema: a dict like {"type": "function", ...}, got <built-in',
        ),
        ("tools", [{"x": max}], "tools must be what JSON can hold"),
        ("chat_template_kwargs", [1], r"chat_template_kwargs must be a dict of template variables, got \[1\]"),
        (
            "chat_template_kwargs",
            {5: 1},
            "a key of chat_template_kwargs must be the name of a template variable, got 5",
        ),
        ("chat_template_kwargs", {"messages": []}, "chat_template_kwargs may not set 'messages': it is the prompt"),
        ("temprature", 1, "unknown option 'temprature': did you mean 'temperature'"),
        ("sampling", SamplingParams(), "unknown option 'sampling'"),
    ],
)
def test_wrong_values_and_wrong_types_are_refused_by_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Options.of({name: value})
