from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from outpace.errors import UsageError
from outpace.measure.text_files import decode_text, read_text

TEXT = "café\r\n日本 👩‍🚀\n"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    ],
)
def test_utf8_and_marked_utf16_are_read_with_line_ends_as_they_are(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    assert read_text(tmp_path / "x") == TEXT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"caf\xe9", "a file is not UTF-8 text: byte 0xe9 at offset 3 (line 1)"),
        (b"a\nb\n\xff", "a file is not UTF-8 text: byte 0xff at offset 4 (line 3)"),
        (codecs.BOM_UTF8 + b"a\n\xe9", "a file is not UTF-8 text: byte 0xe9 at offset 5 (line 2)"),
        ("ab".encode("utf-16-le") + b"\xd8\xd8", "a file is not UTF-8 text: byte 0xd8 at offset 4 (line 1)"),
        (codecs.BOM_UTF16_LE + b"a\0\0\xd8", "a file is not UTF-16 text: byte 0x00 at offset 4 (line 1)"),
        (b"\xed\xb2\xa9", "a file is not UTF-8 text: byte 0xed at offset 0 (line 1)"),
    ],
)
def test_anything_else_is_refused_with_the_first_wrong_byte(data: bytes, message: str) -> None:
    with pytest.raises(UsageError) as error:
        decode_text(data, "a file")
    assert str(error.value).startswith(message)
    assert "iconv" in str(error.value)
