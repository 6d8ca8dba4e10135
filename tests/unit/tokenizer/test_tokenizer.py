from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given

from outpace.errors import UsageError
from outpace.tokenizer import Tokenizer
from tests.vocabularies import CHATML, byte_level_json, byte_level_metadata, sentencepiece_metadata, texts, write_folder

TOKENIZER = Tokenizer.from_gguf(byte_level_metadata())


@given(texts)
def test_byte_level_text_survives_encoding_and_decoding(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text), skip_special=False) == text


def test_control_tokens_in_raw_text_are_control_tokens() -> None:
    assert TOKENIZER.encode("<|im_start|>the<|im_end|>") == [1, *TOKENIZER.encode("the"), 2]


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"a prompt must be text, and '.udcff' \(the byte 0xff\), after 1 characters, is"
    ):
        TOKENIZER.encode("a\udcff")
    with pytest.raises(
        UsageError, match=r"a prompt must be text, and '.ud800', after 0 characters, is half a character"
    ):
        TOKENIZER.encode("\ud800")
    with pytest.raises(UsageError, match="a prompt must be text, got b'the cat'"):
        TOKENIZER.encode(b"the cat")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a prompt must be text, got 5"):
        TOKENIZER.encode(5)  # type: ignore[arg-type]


def test_a_chat_that_is_no_unicode_is_refused_by_the_message_and_not_by_the_template() -> None:
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a\udcff"}]},
    ]
    with pytest.raises(UsageError, match=r"message 1 must be text, and '.udcff' .* is half a character") as error:
        TOKENIZER.encode_chat(said)
    assert "im_start" not in str(error.value)  # the template is not what the user wrote
    with pytest.raises(UsageError, match=r"a template variable must be text, and '.udc80'"):
        TOKENIZER.encode_chat([{"role": "user", "content": "hi"}], tools=["\udc80"])


def test_a_token_is_spelled_as_in_the_vocabulary_and_ids_outside_are_refused() -> None:
    assert TOKENIZER.token(2) == "<|im_end|>"
    assert TOKENIZER.token(TOKENIZER.encode(" fox")[0])[0] == "Ġ"
    for token in (-1, TOKENIZER.vocab_size):
        with pytest.raises(UsageError, match=rf"token ids are in \[0, {TOKENIZER.vocab_size}\), got {token}"):
            TOKENIZER.token(token)


def test_the_same_vocabulary_is_recognised_from_any_source(tmp_path: Path) -> None:
    folder = Tokenizer.from_folder(write_folder(tmp_path))
    assert folder.vocab_size == TOKENIZER.vocab_size
    assert folder.same_vocabulary(TOKENIZER)
    assert folder.fingerprint == TOKENIZER.fingerprint
    assert not Tokenizer.from_gguf(sentencepiece_metadata()).same_vocabulary(TOKENIZER)


def test_two_swapped_tokens_make_another_vocabulary_and_unused_padding_does_not() -> None:
    metadata = byte_level_metadata()
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    swapped = [*tokens[:-2], tokens[-1], tokens[-2]]
    padded = {"tokens": [*tokens, "[PAD1]", "[PAD2]"], "token_type": [*types, 5, 5]}
    assert not Tokenizer.from_gguf(byte_level_metadata(tokens=swapped)).same_vocabulary(TOKENIZER)
    assert Tokenizer.from_gguf(byte_level_metadata(**padded)).same_vocabulary(TOKENIZER)


def test_several_threads_may_use_one_tokenizer() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level_metadata())
    chat = [{"role": "user", "content": "the <|im_end|> fox"}]
    expected = TOKENIZER.encode_chat(chat)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: tokenizer.encode_chat(chat), range(40))) == [expected] * 40


def test_jinja_is_imported_only_for_a_chat() -> None:
    code = (
        "import sys\nfrom outpace.tokenizer import Tokenizer\nfrom tests.vocabularies import byte_level_metadata\n"
        "t = Tokenizer.from_gguf(byte_level_metadata()); t.encode('the'); assert 'jinja2' not in sys.modules\n"
        "t.encode_chat([{'role': 'user', 'content': 'x'}]); assert 'jinja2' in sys.modules"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env={"PYTHONPATH": "src:."})


def test_sources_agree_on_a_chat(tmp_path: Path) -> None:
    folder = Tokenizer.from_folder(write_folder(tmp_path, byte_level_json(), chat_template=CHATML))
    for said in ("hello", "<|im_end|>"):
        chat = [{"role": "user", "content": said}]
        assert folder.encode_chat(chat) == TOKENIZER.encode_chat(chat)
