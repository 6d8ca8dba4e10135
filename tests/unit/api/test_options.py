from __future__ import annotations

from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import outpace
from outpace import LanguageModel, UsageError
from outpace.api.options import encode_prompts, requests
from outpace.drafters.ngram import NGram
from outpace.types import OptionKeywords, Options
from tests.folder import TEMPLATE, make_folder

CHAT = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "look_up"}}]
WITH_VARIABLES = (
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}{% if enable_thinking is defined and not enable_thinking %}"
    "no thinking\n{% endif %}{% if documents %}documents: {{ documents | tojson }}\n{% endif %}" + TEMPLATE
)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = make_folder(tmp_path_factory.mktemp("model") / "tiny", template=WITH_VARIABLES)
    return outpace.load(folder, ops="reference", threads=1, context=96)


# -- prompts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    [
        "", [], (), [[]], ["a", ""], [["a", ["b"]]], 3, [1.5], None, [None], [[1, 2], 3], [True, False], b"the cat",
        bytearray(b"x"), [b"the cat"], memoryview(b"x"), {"role": "user"}, np.array([]), np.array([1.5]), np.array(3),
        np.zeros((2, 2, 2), np.int64), {1, 2}, object(),
    ],
)  # fmt: skip
def test_a_prompt_that_is_none_is_refused(lm: LanguageModel, prompt: Any) -> None:
    with pytest.raises(UsageError, match="a prompt is a text, a list of messages or a list of token ids"):
        lm.generate(prompt)
    with pytest.raises(UsageError, match="a prompt is a text, a list of messages or a list of token ids"):
        lm.stream(prompt)


def test_bytes_are_no_token_ids_and_the_cure_is_named(lm: LanguageModel) -> None:
    with pytest.raises(UsageError, match="got b'the cat'; decode bytes to text first"):
        lm.generate(b"the cat")  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([{}], 'message 0 needs a "role"'),
        ([{"role": "user"}], 'message 0 needs a "content"'),
        ([*CHAT, {"role": "user", "content": 5}], 'message 1 needs a "content"'),
        ([{"role": 5, "content": "x"}], 'message 0 needs a "role"'),
    ],
)
def test_a_message_of_the_wrong_shape_is_refused_by_its_field(lm: LanguageModel, prompt: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        lm.generate(prompt)


@pytest.mark.parametrize(
    "same", [np.array([5, 6, 7]), [np.int64(5), np.uint8(6), 7], (5, 6, 7), range(5, 8), np.array([5, 6, 7], np.uint16)]
)
def test_token_ids_may_be_numpys(lm: LanguageModel, same: Any) -> None:
    prompts, is_batch = encode_prompts(same, Options(), lm.tokenizer)
    assert (prompts, is_batch) == ([[5, 6, 7]], False)
    assert {type(token) for token in prompts[0]} == {int}
    assert encode_prompts([same, "a"], Options(), lm.tokenizer) == ([[5, 6, 7], lm.tokenizer.encode("a")], True)


def test_an_array_of_two_dimensions_is_a_batch(lm: LanguageModel) -> None:
    assert encode_prompts(np.array([[5, 6], [7, 8]]), Options(), lm.tokenizer) == ([[5, 6], [7, 8]], True)


# -- template variables --------------------------------------------------------------------------------


def written(lm: LanguageModel, prompt: Any, **options: Any) -> str:
    """Return the prompt as text, control tokens too."""
    ((ids,), _) = encode_prompts(prompt, Options.of(options), lm.tokenizer)
    return lm.tokenizer.decode(ids, skip_special=False)


def test_tools_and_variables_reach_the_template(lm: LanguageModel) -> None:
    plain = written(lm, CHAT)
    assert (
        written(lm, CHAT, tools=TOOLS) == f'tools: [{{"type": "function", "function": {{"name": "look_up"}}}}]\n{plain}'
    )
    assert written(lm, CHAT, chat_template_kwargs={"enable_thinking": False}) == f"no thinking\n{plain}"
    assert written(lm, CHAT, chat_template_kwargs={"enable_thinking": True, "unknown": 1}) == plain
    assert written(lm, CHAT, chat_template_kwargs={"documents": [{"text": "é"}]}).startswith(
        'documents: [{"text": "é"}]'
    )
    assert written(lm, CHAT, chat_template_kwargs={"add_generation_prompt": False}) + "<|im_start|>assistant\n" == plain


def test_they_reach_it_from_generate_stream_and_chat(lm: LanguageModel) -> None:
    options: dict[str, Any] = {"tools": TOOLS, "max_new_tokens": 3}
    want = len(written(lm, CHAT, tools=TOOLS))
    assert want > len(written(lm, CHAT))
    num_tokens = lm.generate(CHAT, **options).stats.prompt_tokens
    assert num_tokens == len(encode_prompts(CHAT, Options.of(options), lm.tokenizer)[0][0])
    with lm.stream(CHAT, **options) as stream:
        list(stream)
    chats = [lm.chat(**options), lm.chat(max_new_tokens=3), lm.chat(tools=[], max_new_tokens=3)]
    turns = [chats[0].send("hi"), chats[1].send("hi", tools=TOOLS), chats[2].send("hi", tools=TOOLS)]
    for result in (stream.result, *turns):
        assert result is not None
        assert result.stats.prompt_tokens == num_tokens


@pytest.mark.parametrize("prompt", ["hi", [5, 6], [CHAT, "hi"]])
def test_beside_a_raw_prompt_they_are_refused_since_no_template_would_see_them(lm: LanguageModel, prompt: Any) -> None:
    with pytest.raises(UsageError, match="'tools' is for the chat template, but the prompt is raw t"):
        lm.generate(prompt, tools=TOOLS)
    with pytest.raises(UsageError, match="'enable_thinking' is for the chat template, but the prompt is raw"):
        lm.generate(prompt, chat_template_kwargs={"enable_thinking": False})


# -- requests ------------------------------------------------------------------------------------------


def test_samples_of_a_prompt_differ_in_their_index_only(lm: LanguageModel) -> None:
    found = requests(lm.loaded, [5, 6], 3, Options(prediction="the cat"), seed=8)
    assert [request.sample_index for request in found] == [0, 1, 2]
    assert {request.seed for request in found} == {8}
    assert found[0].prediction == tuple(lm.tokenizer.encode_text("the cat"))


@pytest.mark.parametrize(
    ("prompt", "options", "name"),
    [
        ([5, 320], {}, "the prompt"),
        ([5, -1], {}, "the prompt"),
        ([5], {"stop_tokens": [1000]}, "stop_tokens"),
        ([5], {"logit_bias": {320: 1.0}}, "logit_bias"),
        ([5], {"prediction": [7, 320]}, "prediction"),
    ],
)
def test_token_ids_that_the_model_has_not_are_refused(
    lm: LanguageModel, prompt: Any, options: dict[str, Any], name: str
) -> None:
    with pytest.raises(UsageError, match=rf"{name} has token ids outside this model's \[0, 320\)"):
        lm.generate(prompt, **options)


_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(0, 20), st.floats(), st.text(max_size=5),
    st.binary(max_size=5),
    st.sampled_from([object(), int, np.int32(3), np.float32(0.5), np.True_, 1j, Ellipsis, NGram(), "none", "suffix"]),
)  # fmt: skip
_junk = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner),
        st.frozensets(st.integers(0, 400), max_size=3), st.lists(st.integers(-5, 400), max_size=3).map(np.array),
        st.dictionaries(st.integers(-5, 400), inner, max_size=2),
    ),
    max_leaves=6,
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(get_type_hints(OptionKeywords)))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=_junk)
@example(value=[])
@example(value="")
@example(value={})
@example(value=10**30)
def test_whatever_an_option_is_given_works_or_is_a_usage_error(lm: LanguageModel, name: str, value: Any) -> None:
    if name == "draft_model" and isinstance(value, str):
        return  # a hub id or a path: `load` has its own tests
    message, result = "", None
    try:
        result = lm.generate([5, 6, 7], **{"max_new_tokens": 2, name: value})
    except UsageError as error:
        message = str(error)
    assert result or name in message or name in ("tools", "chat_template_kwargs", "strategy")


@given(value=_junk)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_given_as_a_prompt_works_or_is_a_usage_error(lm: LanguageModel, value: Any) -> None:
    message = "a prompt is"
    try:
        encode_prompts(value, Options(), lm.tokenizer)
    except UsageError as error:
        message = str(error)
    assert any(word in message for word in ("a prompt is", "a prompt must be text", "message "))
