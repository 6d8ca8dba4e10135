"""Folders whose matrices are quantised already: fp8, compressed-tensors, AWQ, GPTQ; each becomes formats that we have.

What a matrix says is kept exactly: it becomes the smallest of our formats that holds its numbers, (code - zero) times
a scale. Codes of 4 bits with one scale per 32 numbers or more are Q4_0 where all zeros are 8, and else Q5_0; codes
of 8 bits are Q8_0; floats of 8 bits are BF16 where all scales are powers of two. Where scales do not fit a half, or
groups lie scattered (act-order), and for all other floats of 8 bits, the numbers become F32. Activations are not
rounded as such a folder may ask for: its scales of activations and of caches are left aside.

Sources: the readers of these folders in transformers, compressed-tensors 0.20, AutoAWQ (version "gemm"), GPTQModel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from outpace.errors import WeightsError
from outpace.types import RawTensor
from outpace.types.mapped import release
from outpace.weights.integers import Integers, awq_integers, gptq_integers, packed_integers, plain_integers
from outpace.weights.scaled import Floats8
from outpace.weights.values import Values, shown

Matrix = Integers | Floats8
QUANTIZATION = "quantization_config"
_LEFT_ASIDE = (".input_scale", ".input_zero_point", ".input_global_scale", ".activation_scale", ".k_scale", ".v_scale")
_CT_FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized")


@dataclass(frozen=True, slots=True)
class Converted:
    """A matrix that a folder holds in another form than a network multiplies with."""

    sources: tuple[RawTensor, ...]  # what the folder has of it
    format: str
    shape: tuple[int, ...]
    read: Callable[[], RawTensor]


def convert(found: Mapping[str, RawTensor], config: Mapping[str, Any], where: str) -> dict[str, RawTensor | Converted]:
    """Return the tensors of a folder by the names of plain folders; those that a quantisation made are `Converted`.

    config: with a `quantization_config` of one of the methods above. Raises WeightsError for what cannot be
    converted exactly.
    """
    source = Values(config, where).object(QUANTIZATION)
    left = {name: tensor for name, tensor in found.items() if not name.endswith(_LEFT_ASIDE)}
    matrices = dict(_METHODS[config[QUANTIZATION]["quant_method"]](left, source))
    if not matrices:
        raise source.error("quant_method", "is there, but no matrix is quantised: the folder is damaged")
    plain: dict[str, RawTensor | Converted] = {}
    for name, (matrix, parts) in matrices.items():
        for part in parts:
            del left[part.name]
        plain[name] = Converted(parts, matrix.format, matrix.shape, _reader(name, matrix, parts))
    return {**left, **plain}


def is_converted(config: Mapping[str, Any]) -> bool:
    """Whether a config names a method that `convert` knows."""
    own = config.get(QUANTIZATION)
    return isinstance(own, Mapping) and own.get("quant_method") in _METHODS


def _reader(name: str, matrix: Matrix, parts: tuple[RawTensor, ...]) -> Callable[[], RawTensor]:
    def read() -> RawTensor:
        data = matrix.encode()
        for part in parts:
            release(part.data)
        return RawTensor(name, data, matrix.format, matrix.shape)

    return read


Made = Iterator[tuple[str, tuple[Matrix, tuple[RawTensor, ...]]]]


def _parts(found: Mapping[str, RawTensor], stem: str, *names: str) -> tuple[RawTensor, ...]:
    """Return the tensors of a matrix; raises WeightsError for one that is missing."""
    if missing := [name for name in names if f"{stem}.{name}" not in found]:
        raise WeightsError(f"tensor {stem + '.' + missing[0]!r} is missing beside others of the same matrix")
    return tuple(found[f"{stem}.{name}"] for name in names)


def _stems(found: Mapping[str, RawTensor], part: str) -> list[str]:
    return [name.removesuffix(f".{part}") for name in found if name.endswith(f".{part}")]


def _fp8(found: Mapping[str, RawTensor], source: Values) -> Made:
    source.only("fmt", "e4m3", null=True)
    blocks = source.raw.get("weight_block_size")
    for scale in ("weight_scale_inv", "weight_scale"):
        for stem in _stems(found, scale):
            parts = _parts(found, stem, "weight", scale)
            yield f"{stem}.weight", (Floats8(parts[0], parts[1], _block(blocks, source)), parts)


def _block(given: Any, source: Values) -> tuple[int, int] | None:
    """Return rows and columns that share a scale; None where they are not square blocks."""
    if given is None:
        return None
    if not isinstance(given, list) or len(given) != 2 or not all(type(n) is int and n > 0 for n in given):
        raise source.error("weight_block_size", f"must be two positive integers, is {shown(given)}")
    return given[0], given[1]


def _compressed_tensors(found: Mapping[str, RawTensor], source: Values) -> Made:
    if source.raw.get("transform_config"):
        raise source.error("transform_config", "is not supported: its rotations change what matrices mean")
    if source.raw.get("sparsity_config"):
        raise source.error("sparsity_config", "is not supported")
    bits, blocks = _groups(source)
    for stem in _stems(found, "weight_packed"):
        optional = tuple(name for name in ("weight_zero_point", "weight_g_idx") if f"{stem}.{name}" in found)
        parts = _parts(found, stem, "weight_packed", "weight_scale", "weight_shape", *optional)
        by_name = {part.name.rpartition(".")[2]: part for part in parts}
        yield f"{stem}.weight", (packed_integers(bits, **by_name), parts)
    for stem in _stems(found, "weight_scale"):
        if f"{stem}.weight_packed" in found:
            continue
        parts = _parts(found, stem, "weight", "weight_scale")
        if parts[0].format == "F8_E4M3":
            yield f"{stem}.weight", (Floats8(parts[0], parts[1], blocks), parts)
            continue
        if f"{stem}.weight_zero_point" in found:
            parts = _parts(found, stem, "weight", "weight_scale", "weight_zero_point")
        yield f"{stem}.weight", (plain_integers(parts[0], parts[1], *parts[2:]), parts)


def _groups(source: Values) -> tuple[int, tuple[int, int] | None]:
    """Return the bits of packed codes, and the blocks that share a scale: the same in all groups of a config."""
    groups = source.raw.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise source.error("config_groups", "must be an object of groups")
    formats = {source.raw.get("format"), *(group.get("format") for group in groups.values() if isinstance(group, dict))}
    if unknown := sorted(map(str, formats - {None, *_CT_FORMATS})):
        raise source.error("format", f"is {shown(unknown[0])}, supported are {', '.join(_CT_FORMATS)}")
    weights = [group.get("weights") if isinstance(group, Mapping) else None for group in groups.values()]
    if not all(isinstance(own, Mapping) for own in weights):
        raise source.error("config_groups", "has a group without weights")
    bits = {own.get("num_bits") for own in weights}  # type: ignore[union-attr]
    blocks = {tuple(own.get("block_structure") or ()) for own in weights}  # type: ignore[union-attr]
    if len(bits) > 1 or len(blocks) > 1 or not bits <= {4, 8}:
        raise source.error(
            "config_groups", f"has matrices of {sorted(map(str, bits))} bits: one of 4 and 8 is supported"
        )
    (block,) = blocks
    return bits.pop(), _block(list(block) or None, source)


def _awq(found: Mapping[str, RawTensor], source: Values) -> Made:
    source.only("bits", 4)
    source.only("version", "gemm")
    for stem in _stems(found, "qweight"):
        parts = _parts(found, stem, "qweight", "qzeros", "scales")
        yield f"{stem}.weight", (awq_integers(*parts), parts)


def _gptq(found: Mapping[str, RawTensor], source: Values) -> Made:
    if source.raw.get("bits") not in (4, 8):
        raise source.error("bits", f"is {shown(source.raw.get('bits'))}, supported are 4 and 8")
    kind = source.raw.get("checkpoint_format", "gptq")
    if kind not in ("gptq", "gptq_v2"):
        raise source.error("checkpoint_format", f"is {shown(kind)}, supported are gptq and gptq_v2")
    for stem in _stems(found, "qweight"):
        parts = _parts(found, stem, "qweight", "qzeros", "scales", "g_idx")
        yield f"{stem}.weight", (gptq_integers(source.raw["bits"], int(kind == "gptq"), *parts), parts)


_METHODS: dict[str, Callable[[Mapping[str, RawTensor], Values], Made]] = {
    "fp8": _fp8,
    "compressed-tensors": _compressed_tensors,
    "awq": _awq,
    "gptq": _gptq,
}
