"""Folders whose matrices are quantised already: fp8, compressed-tensors, AWQ, GPTQ; each becomes formats that we have.

What a matrix says is kept exactly: it becomes the smallest of our formats that holds its numbers, (code - zero) times
a scale. Codes of 4 bits with one scale per 32 numbers or more are Q4_0 where all zeros are 8, and else Q5_0; codes
of 8 bits are Q8_0; floats of 8 bits are BF16 where all scales are powers of two. Where scales do not fit a half, or
groups lie scattered (act-order), and for all other floats of 8 bits, the numbers become F32. Activations are not
rounded as such a folder may ask for: its scales of activations and of caches are left aside.

Sources: the readers of these folders in transformers, compressed-tensors 0.20, AutoAWQ (version "gemm"), auto-gptq
0.7.1, GPTQModel 7.7 and optimum 2.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from outpace.errors import WeightsError
from outpace.types import RawTensor
from outpace.types.mapped import release
from outpace.weights.integers import Integers, Zeros, awq_integers, gptq_integers, packed_integers, plain_integers
from outpace.weights.scaled import Floats8
from outpace.weights.values import Values, shown

Matrix = Integers | Floats8
QUANTIZATION = "quantization_config"
_LEFT_ASIDE = (".input_scale", ".input_zero_point", ".input_global_scale", ".activation_scale", ".k_scale", ".v_scale")
_CT_FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized")
_CT_BY_GROUP = "mixed-precision"  # each group of a config states its own format


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
    matrices = dict(METHODS[config[QUANTIZATION]["quant_method"]](left, source))
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
    return isinstance(own, Mapping) and own.get("quant_method") in METHODS


def _reader(name: str, matrix: Matrix, parts: tuple[RawTensor, ...]) -> Callable[[], RawTensor]:
    def read() -> RawTensor:
        data = matrix.encode()
        for part in parts:
            release(part.data)
        return RawTensor(name, data, matrix.format, matrix.shape)

    return read


Made = Iterator[tuple[str, tuple[Matrix, tuple[RawTensor, ...]]]]


def _parts(
    found: Mapping[str, RawTensor], stem: str, *names: str, optional: tuple[str, ...] = ()
) -> tuple[RawTensor, ...]:
    """Return the tensors of a matrix, the optional ones where they are; raises WeightsError for one that is missing."""
    if missing := [name for name in names if f"{stem}.{name}" not in found]:
        raise WeightsError(f"tensor {stem + '.' + missing[0]!r} is missing beside others of the same matrix")
    return tuple(found[f"{stem}.{name}"] for name in (*names, *optional) if f"{stem}.{name}" in found)


def _stems(found: Mapping[str, RawTensor], part: str) -> list[str]:
    return [name.removesuffix(f".{part}") for name in found if name.endswith(f".{part}")]


def _fp8(found: Mapping[str, RawTensor], source: Values) -> Made:
    source.only("fmt", "e4m3", null=True)
    if source.is_given("weight_scale_semantics"):
        raise source.error("weight_scale_semantics", "is GPTQModel's: it divides by scales that others multiply with")
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
    sparsity = source.object("sparsity_config").raw.get("format", "dense")
    if sparsity != "dense":
        raise source.error("sparsity_config", f"has the format {shown(sparsity)}, only dense is supported")
    blocks = _blocks(source)
    for stem in _stems(found, "weight_packed"):
        parts = _parts(
            found, stem, "weight_packed", "weight_scale", "weight_shape", optional=("weight_zero_point", "weight_g_idx")
        )
        yield f"{stem}.weight", (packed_integers(**_by_name(parts)), parts)
    for stem in _stems(found, "weight_scale"):
        if f"{stem}.weight_packed" in found:
            continue
        parts = _parts(found, stem, "weight", "weight_scale", optional=("weight_zero_point", "weight_g_idx"))
        if parts[0].format == "F8_E4M3" and len(parts) == 2:
            yield f"{stem}.weight", (Floats8(parts[0], parts[1], blocks), parts)
        else:
            yield f"{stem}.weight", (plain_integers(**_by_name(parts)), parts)


def _by_name(parts: tuple[RawTensor, ...]) -> dict[str, RawTensor]:
    return {part.name.rpartition(".")[2]: part for part in parts}


def _blocks(source: Values) -> tuple[int, int] | None:
    """Return the blocks that share a scale: the same in all groups of a config."""
    groups = source.raw.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise source.error("config_groups", "must be an object of groups")
    formats = {source.raw.get("format"), *(group.get("format") for group in groups.values() if isinstance(group, dict))}
    if unknown := sorted(map(str, formats - {None, _CT_BY_GROUP, *_CT_FORMATS})):
        raise source.error("format", f"is {shown(unknown[0])}, supported are {', '.join(_CT_FORMATS)}")
    weights = [group.get("weights") if isinstance(group, Mapping) else None for group in groups.values()]
    if not all(isinstance(own, Mapping) for own in weights):
        raise source.error("config_groups", "has a group without weights")
    if other := sorted({str(own.get("num_bits")) for own in weights} - {"4", "8"}):  # type: ignore[union-attr]
        raise source.error("config_groups", f"has matrices of {other[0]} bits, supported are 4 and 8")
    blocks = {tuple(own.get("block_structure") or ()) for own in weights}  # type: ignore[union-attr]
    if len(blocks) > 1:
        raise source.error("config_groups", f"has blocks of {sorted(blocks)}: one kind is supported")
    return _block(list(blocks.pop()) or None, source)


def _awq(found: Mapping[str, RawTensor], source: Values) -> Made:
    source.only("bits", 4)
    source.only("w_bit", 4)
    _layout(source, "version", "format", "checkpoint_format", allowed=("gemm",))
    _only_plain_words(source)
    if source.raw.get("backend") == "llm-awq":
        raise source.error("backend", "is llm-awq, whose layout is not supported: take a folder of version gemm")
    for stem in _stems(found, "qweight"):
        parts = _parts(found, stem, "qweight", "qzeros", "scales")
        yield f"{stem}.weight", (awq_integers(*parts), parts)


def _gptq(found: Mapping[str, RawTensor], source: Values) -> Made:
    bits = source.raw.get("bits")
    if bits not in (4, 8):
        raise source.error("bits", f"is {shown(bits)}, supported are 4 and 8")
    layout = _layout(source, "format", "checkpoint_format", allowed=("gptq", "gptq_v2"))
    _only_plain_words(source)
    varies = bool(source.object("dynamic").raw)
    for name, own in source.object("dynamic").raw.items():
        if isinstance(own, Mapping) and (other := sorted({"format", "method", "pack_dtype"} & own.keys())):
            raise source.error("dynamic", f"has {other[0]} for {shown(name)}, which is not supported")
    zeros: Zeros = "plain" if layout == "gptq_v2" else "words_less_one" if _is_by_gptqmodel(source) else "less_one"
    for stem in _stems(found, "qweight"):
        parts = _parts(found, stem, "qweight", "qzeros", "scales", "g_idx")
        yield f"{stem}.weight", (gptq_integers(None if varies else bits, zeros, *parts), parts)


def _is_by_gptqmodel(source: Values) -> bool:
    """Whether GPTQModel wrote the folder: it says so itself, and optimum says so of it."""
    makers = source.object("meta").raw.get("quantizer")
    named = makers if isinstance(makers, list) else [makers]
    return any(isinstance(maker, str) and maker.startswith("gptqmodel:") for maker in named)


def _layout(source: Values, *keys: str, allowed: tuple[str, ...]) -> str:
    """Return how matrices are laid out, which may stand under several keys; the first of `allowed` under none."""
    given = {key: value for key in keys if (value := source.text(key)) is not None}
    for key, value in given.items():
        if value.lower() not in allowed:
            raise source.error(key, f"is {shown(value)}, supported are {' and '.join(allowed)}")
    layouts = {value.lower() for value in given.values()}
    if len(layouts) > 1:
        raise source.error(" and ".join(given), f"are {' and '.join(map(shown, given.values()))}: they must agree")
    return layouts.pop() if layouts else allowed[0]


def _only_plain_words(source: Values) -> None:
    """Raise for what GPTQModel may do beside: words of other sizes, rotations, an adapter."""
    source.only("pack_dtype", "int32", null=True)
    if source.is_given("rotation"):
        raise source.error("rotation", "is not supported: it changes what matrices mean")
    if source.raw.get("adapter"):
        raise source.error("adapter", "is not supported: matrices are to be read without one")


METHODS: dict[str, Callable[[Mapping[str, RawTensor], Values], Made]] = {
    "fp8": _fp8,
    "compressed-tensors": _compressed_tensors,
    "awq": _awq,
    "gptq": _gptq,
}
