from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors

from outpace.errors import TokenizerError
from outpace.tokenizer import Tokenizer
from outpace.tokenizer.folder import NAMES
from tests.vocabularies import byte_level_json, write_folder

HI = [{"role": "user", "content": "hi"}]


def chat_text(folder: Path) -> str:
    tokenizer = Tokenizer.from_folder(folder)
    return tokenizer.decode(tokenizer.encode_chat(HI), skip_special=False)


def test_a_chat_template_is_found_wherever_it_is_kept_own_files_first(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, chat_template="in config: {{ messages[0].content }}")
    assert chat_text(folder) == "in config: hi"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "in json"}))
    assert chat_text(folder) == "in json"
    (folder / "chat_template.jinja").write_text("in jinja")
    assert chat_text(folder) == "in jinja"


def test_a_list_of_templates_and_additional_files_are_chosen_by_name(tmp_path: Path) -> None:
    entries = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, chat_template=entries))
    assert tokenizer.decode(tokenizer.encode_chat(HI)) == "plain"
    assert tokenizer.decode(tokenizer.encode_chat(HI, tools=[])) == "tools"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("other tools")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.decode(tokenizer.encode_chat(HI, tools=[])) == "other tools"


def test_without_a_template_a_chat_is_refused_and_raw_text_named_as_the_cure(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no default chat template, so it cannot read messages: give raw text"):
        Tokenizer.from_folder(write_folder(tmp_path)).encode_chat(HI)
    named = write_folder(tmp_path, chat_template=[{"name": "rag", "template": ""}])
    with pytest.raises(TokenizerError, match=r"\(only 'rag'\)"):
        Tokenizer.from_folder(named).encode_chat(HI)


def test_named_tokens_become_control_tokens_and_variables_of_the_template(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path,
        bos_token={"content": "<|im_start|>"},
        eos_token="the",
        additional_special_tokens=["fox", "nowhere"],
        pad_token=None,
        chat_template="{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|",
    )
    (folder / "special_tokens_map.json").write_text(json.dumps({"unk_token": "<|endoftext|>", "eos_token": "fox"}))
    raw = tokenizers.Tokenizer.from_str(byte_level_json())
    if raw.token_to_id("the") is None:
        pytest.fail("the tiny vocabulary lost the word")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.bos_id == 1
    assert tokenizer.eos_ids == {raw.token_to_id("the")}
    assert raw.token_to_id("the") in tokenizer.control_ids
    assert tokenizer.decode(tokenizer.encode_chat(HI), skip_special=False) == "<|im_start|>|the||"


def test_the_configuration_can_add_tokens_that_tokenizer_json_lacks(tmp_path: Path) -> None:
    size = tokenizers.Tokenizer.from_str(byte_level_json()).get_vocab_size()
    added = {str(size): {"content": "<tool>", "special": False}, str(size + 1): {"content": "<end>", "special": True}}
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, added_tokens_decoder=added))
    assert tokenizer.vocab_size == size + 2
    assert tokenizer.encode("<tool><end>") == [size, size + 1]
    assert tokenizer.control_ids & {size, size + 1} == {size + 1}


def test_bos_comes_from_the_post_processor_or_for_llama_classes_from_the_configuration(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(byte_level_json())
    backend.post_processor = processors.TemplateProcessing(
        "<|im_start|> $A <|im_end|>", None, [("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    wrapped = backend.to_str()
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, wrapped, bos_token="<|im_start|>"))
    assert tokenizer.encode("the") == [1, *tokenizer.encode_text("the"), 2]
    assert tokenizer.encode("<|im_start|>the") == tokenizer.encode("the")
    llama = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, wrapped, **llama))
    assert tokenizer.encode("the") == [1, *tokenizer.encode_text("the")]
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, wrapped, **llama, add_bos_token=False, add_eos_token=True))
    assert tokenizer.encode("the") == [*tokenizer.encode_text("the"), 2]


def test_truncation_and_padding_in_tokenizer_json_do_not_touch_prompts(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(byte_level_json())
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    text = "the quick brown fox jumps"
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, backend.to_str()))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "tokenizer.json is not a tokenizer"),
        ("tokenizer.json", "not json", "tokenizer.json is not a tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: is not valid JSON"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: must be a JSON object, is a list"),
        ("tokenizer_config.json", '{"bos_token": 5}', "tokenizer_config.json: bos_token must be a token"),
        ("special_tokens_map.json", '{"bos_token": [5]}', "special_tokens_map.json: bos_token must be a token"),
        ("tokenizer_config.json", '{"bos_token": {"content": 5}}', "bos_token must be a token"),
        ("tokenizer_config.json", '{"additional_special_tokens": 5}', "additional_special_tokens must be a list, is 5"),
        ("tokenizer_config.json", '{"additional_special_tokens": [5]}', "additional_special_tokens must be a token"),
        ("tokenizer_config.json", '{"tokenizer_class": ["x"]}', "tokenizer_class must be a string, is ['x']"),
        (
            "tokenizer_config.json",
            '{"tokenizer_class": "LlamaTokenizer", "add_bos_token": 1}',
            "add_bos_token must be true or false, is 1",
        ),
        ("tokenizer_config.json", '{"chat_template": 5}', "chat_template 'default' must be a string, is 5"),
        ("tokenizer_config.json", '{"chat_template": [5]}', "chat_template has an entry without a name: 5"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "a"}]}', "chat_template 'a' must be a string, is None"),
        ("chat_template.json", '{"chat_template": 5}', "chat_template.json: chat_template 'default' must be a string"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "y"}}}', "'x' must be an id in"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"99999999": {"content": "y"}}}', "must be an id in"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "added_tokens_decoder must be an object"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"9": 5}}', "added_tokens_decoder: 9 must be an object"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"9": {}}}', "added_tokens_decoder: 9: content is missing"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"9": {"content": "new", "lstrip": 0}}}',
            "9: lstrip must be true or false",
        ),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"9": {"content": "new"}}}', "do not belong together"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"9": {"content": "<<"}}}', "do not belong together"),
    ],
)
def test_a_malformed_file_is_refused_by_name(tmp_path: Path, name: str, content: str, message: str) -> None:
    write_folder(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerError, match=re.escape(message)):
        Tokenizer.from_folder(tmp_path)


def test_bytes_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja: is not UTF-8"):
        Tokenizer.from_folder(tmp_path)


def test_a_folder_without_tokenizer_json_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has no tokenizer.json.*save_pretrained"):
        Tokenizer.from_folder(tmp_path)


KNOWN = st.sampled_from(["content", "id", "name", "template", "special", "0", "5", "459", "default", "lstrip"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | KNOWN, inner, max_size=3),
    max_leaves=8,
)
KEYS = {
    "tokenizer_config.json": [
        *NAMES,
        *("added_tokens_decoder", "additional_special_tokens", "tokenizer_class", "add_bos_token", "add_eos_token"),
        "chat_template",
    ],
    "special_tokens_map.json": [*NAMES, "additional_special_tokens"],
    "chat_template.json": ["chat_template"],
    "tokenizer.json": [*json.loads(byte_level_json())],
}


@pytest.mark.parametrize("name", KEYS)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_value_in_any_key_gives_a_tokenizer_or_an_error(tmp_path: Path, name: str, data: st.DataObject) -> None:
    write_folder(tmp_path, chat_template="{{ messages }}", tokenizer_class="LlamaTokenizer", bos_token="<|im_start|>")
    for other in ("special_tokens_map.json", "chat_template.json"):
        (tmp_path / other).unlink(missing_ok=True)
    content = json.loads((tmp_path / name).read_text()) if (tmp_path / name).exists() else {}
    content |= data.draw(st.dictionaries(st.sampled_from(KEYS[name]), ANYTHING, min_size=1, max_size=3))
    (tmp_path / name).write_text(json.dumps(content))
    try:
        tokenizer = Tokenizer.from_folder(tmp_path)
        assert tokenizer.decode(tokenizer.encode_text("the fox")) is not None
        assert len(tokenizer.fingerprint) == 64
        tokenizer.encode_chat(HI)
    except TokenizerError:
        return
