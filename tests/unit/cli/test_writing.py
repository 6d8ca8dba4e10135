from __future__ import annotations

from pathlib import Path

import pytest

from outpace.cli.writing import argument_text, generation_fields
from outpace.errors import UsageError


def test_an_argument_in_another_locale_is_read_as_utf8() -> None:
    """Python leaves the bytes of an argument that the locale cannot decode as half surrogates."""
    undecoded = "日本 é".encode().decode("ascii", "surrogateescape")
    assert argument_text(undecoded, "the prompt") == "日本 é"
    assert argument_text("日本 é", "the prompt") == "日本 é"
    with pytest.raises(UsageError, match=r"the prompt is not UTF-8 text: byte 0xe9 at offset 3"):
        argument_text("caf\udce9", "the prompt")


def test_template_variables_are_json_where_they_can_be() -> None:
    read = generation_fields().spellings["chat_template_kwargs"].read
    pairs = ["a=false", "b=3", 'c={"d": [1]}', "e=plain text", "f=", "g=x=y"]
    assert read("--template-var", pairs) == {
        "a": False, "b": 3, "c": {"d": [1]}, "e": "plain text", "f": "", "g": "x=y",
    }  # fmt: skip


def test_files_are_read_with_their_option_in_every_error(tmp_path: Path) -> None:
    spellings = generation_fields().spellings
    (tmp_path / "x").write_text('[{"name": "é"}]', encoding="utf-8")
    assert spellings["tools"].read("--tools", tmp_path / "x") == [{"name": "é"}]
    assert spellings["prediction"].read("--prediction", tmp_path / "x") == '[{"name": "é"}]'
    for content in (b"{", b"\xff", b"[" * 100_000, b""):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(UsageError, match=r"^--tools: "):
            spellings["tools"].read("--tools", tmp_path / "x")
    with pytest.raises(UsageError, match=r"^--prediction: .* cannot be read"):
        spellings["prediction"].read("--prediction", tmp_path)
