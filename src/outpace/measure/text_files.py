"""Text that the user hands over in a file or a pipe: UTF-8 in every locale, or UTF-16 with its byte order mark."""

from __future__ import annotations

import codecs
from pathlib import Path

from outpace.errors import UsageError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8", "UTF-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)


def read_text(path: Path) -> str:
    """Return the file's text, line ends as they are. Raises UsageError for what `decode_text` refuses, OSError."""
    return decode_text(path.read_bytes(), str(path))


def decode_text(data: bytes, name: str) -> str:
    """Return `data` as text, without a byte order mark; `name` is for the message.

    Raises UsageError, with the first wrong byte and its offset, for anything but UTF-8 and marked UTF-16.
    """
    mark, encoding, spoken = next((known for known in _MARKS if data.startswith(known[0])), (b"", "utf-8", "UTF-8"))
    try:
        return data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        offset = len(mark) + error.start
        line = data.count(b"\n", 0, offset) + 1
        raise UsageError(
            f"{name} is not {spoken} text: byte 0x{data[offset]:02x} at offset {offset} (line {line}); convert it to "
            "UTF-8 first, for example with `iconv -f latin1 -t utf-8`"
        ) from error
