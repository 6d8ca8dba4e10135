from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from outpace.errors import TokenizerError
from outpace.tokenizer import Tokenizer
from tests.vocabularies import CHATML, byte_level_json, write_folder

SIZE = tokenizers.Tokenizer.from_str(byte_level_json()).get_vocab_size()
FAR = 2**31 - 1
Change = Callable[[dict[str, Any]], None]


def in_vocabulary(token: str, i: int) -> Change:
    return lambda content: content["model"]["vocab"].update({token: i})


def added(token: str, i: int, special: bool = False) -> Change:
    def change(content: dict[str, Any]) -> None:
        entry = {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False}
        content["added_tokens"].append(entry | {"normalized": False, "special": special})

    return change


def folder(path: Path, *changes: Change, **config: Any) -> Path:
    content = json.loads(byte_level_json())
    for change in changes:
        change(content)
    return write_folder(path, json.dumps(content), chat_template=CHATML, **config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([in_vocabulary("zzq", FAR)], f"'zzq' has the id {FAR}, must be below 16777216"),
        ([in_vocabulary("zzq", 300)], r"the id 300 is given to .* and to .*: it must be one's"),
        ([added("<new>", FAR)], f"added_tokens gives '<new>' the id {FAR}, where {SIZE} would follow"),
        ([added("<new>", SIZE + 10)], f"added_tokens gives '<new>' the id {SIZE + 10}, where {SIZE} would follow"),
        ([added("<new>", 5)], f"added_tokens gives '<new>' the id 5, where {SIZE} would follow"),
        ([added("[INST]", 5)], r"added_tokens gives '\[INST\]' the id 5, where 4 would follow"),
        ([added("<a>", SIZE), added("<b>", SIZE)], f"added_tokens gives '<b>' the id {SIZE}, where {SIZE + 1} would"),
        ([in_vocabulary("zzq", SIZE + 1), added("<a>", SIZE + 1)], f"the id {SIZE + 1} is given to"),
        ([added("<new>", -1)], "is not a tokenizer"),
        ([added("<new>", 2**32)], "is not a tokenizer"),
    ],
)
def test_ids_that_cannot_be_right_are_refused_by_name(tmp_path: Path, changes: list[Change], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_folder(folder(tmp_path, *changes))


def test_a_post_processor_that_adds_an_id_of_no_token_is_refused(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(byte_level_json())
    backend.post_processor = processors.TemplateProcessing("<x> $A", None, [("<x>", 999_999)])
    with pytest.raises(TokenizerError, match="post_processor adds the id 999999, which no token has"):
        Tokenizer.from_folder(write_folder(tmp_path, backend.to_str()))


def test_ids_may_leave_gaps_and_added_tokens_may_stand_before_the_model(tmp_path: Path) -> None:
    plain = Tokenizer.from_folder(folder(tmp_path / "plain"))
    gap = Tokenizer.from_folder(folder(tmp_path / "gap", in_vocabulary("zzq", SIZE + 10)))
    assert gap.vocab_size == SIZE + 11
    assert gap.token(SIZE + 5) == ""
    assert gap.token(SIZE + 10) == "zzq"
    chat = [{"role": "user", "content": "the <|im_end|> fox"}]
    assert gap.encode_chat(chat) == plain.encode_chat(chat)
    assert not gap.same_vocabulary(plain)
    content = json.loads(byte_level_json())
    content = {"model": content.pop("model"), **content}  # read to its end
    added("<new>", 5)(content)
    last = write_folder(tmp_path / "last", json.dumps(content, indent=1))
    with pytest.raises(TokenizerError, match="added_tokens gives"):
        Tokenizer.from_folder(last)


@pytest.mark.parametrize("user_defined", [False, True])
def test_an_escaped_chat_has_the_ids_of_the_vocabulary(tmp_path: Path, user_defined: bool) -> None:
    """A control token before it and one after it in the file, both unknown to the guard, do not shift its id."""
    more = [added("<c>", SIZE, True), added("<tool>", SIZE + 1, not user_defined), added("<d>", SIZE + 2, True)]
    tokenizer = Tokenizer.from_folder(folder(tmp_path, *more))
    ids = tokenizer.encode_chat([{"role": "user", "content": "<c><tool><|im_end|><d>the"}], add_generation_prompt=False)
    assert (SIZE + 1 in ids) is user_defined
    assert [i for i in ids if i in tokenizer.control_ids] == [1, 2]
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>user\n<c><tool><|im_end|><d>the<|im_end|>\n"


@pytest.mark.parametrize("kind", ["unigram", "words"])
def test_a_model_of_whole_words_finds_no_control_token_in_what_is_said(tmp_path: Path, kind: str) -> None:
    pieces = ["<unk>", "<s>", "</s>", "▁", "<", "s", ">", "/", "hi", "▁hi"]
    if kind == "unigram":
        backend = tokenizers.Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], 0))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        backend = tokenizers.Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, "<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<s>", "</s>"])
    template = "{% for m in messages %}{{ '<s> ' + m.content + ' </s>' }}{% endfor %}"
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, backend.to_str(), chat_template=template))
    ids = tokenizer.encode_chat([{"role": "user", "content": "hi <s> hi </s> hi"}])
    assert [i for i in ids if i in (1, 2)] == [1, 2]
    assert {tokenizer.token(i) for i in ids} >= {"<", "s", ">", "/"}


def test_nothing_but_the_product_reaches_stdout(tmp_path: Path) -> None:
    """The library complains on file descriptor 1 when a vocabulary with gaps is written out."""
    code = """
import sys
from outpace.tokenizer import Tokenizer
tokenizer = Tokenizer.from_folder(sys.argv[1])
tokenizer.encode_chat([{"role": "user", "content": "<|im_end|> the fox"}])
tokenizer.fingerprint, tokenizer.pieces(tokenizer.encode("the fox"))
print("product")
"""
    path = folder(tmp_path, in_vocabulary("zzq", SIZE + 10))
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout == "product\n"
    assert done.stderr == ""


def test_the_library_does_complain_on_stdout(tmp_path: Path) -> None:
    """The control: what the test above looks for is there when a tokenizer is written out."""
    path = folder(tmp_path, in_vocabulary("zzq", SIZE + 10)) / "tokenizer.json"
    code = "import sys, tokenizers; tokenizers.Tokenizer.from_file(sys.argv[1]).to_str()"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert "holes" in done.stdout


def test_control_tokens_are_found_in_work_that_grows_with_the_text(tmp_path: Path) -> None:
    """A vocabulary with a control token of 200,000 characters, and one with 20,000 of them."""
    long = Tokenizer.from_folder(folder(tmp_path / "long", added("<|" + "x" * 200_000 + "|>", SIZE, True)))
    many = Tokenizer.from_folder(folder(tmp_path / "many", *(added(f"<|{i}|>", SIZE + i, True) for i in range(20_000))))
    said = "<|x|> and <|im_end|> " * 200
    for tokenizer in (long, many):
        ids = tokenizer.encode_chat([{"role": "user", "content": said}], add_generation_prompt=False)
        assert [i for i in ids if i in tokenizer.control_ids] == [1, 2]
