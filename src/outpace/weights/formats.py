"""The stored number formats that Outpace reads, and how many bytes a row of each takes."""

from __future__ import annotations

# name -> (values in a block, bytes of a block)
BLOCKS = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (32, 34),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}


def row_bytes(format: str, width: int) -> int | None:
    """Return the bytes of a row of `width` values, or None where they do not fill whole blocks."""
    values, num_bytes = BLOCKS[format]
    blocks, rest = divmod(width, values)
    return None if rest else blocks * num_bytes
