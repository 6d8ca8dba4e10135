"""The tensors of experts: each has matrices of its own in the network, whatever a file makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpace.errors import WeightsError
from outpace.models.config import ExpertSizes, ModelConfig
from outpace.models.tensors import Places, Rows, Tensor, Whole
from outpace.ops.formats import BLOCKS
from outpace.types import RawTensor

_GROUP = 32  # numbers of an MXFP4 block
EXPERTS = "experts."  # begins the places of experts: "experts.gate.17" is entry 17 of the field `gate` of `Experts`


def experts(sizes: ModelConfig) -> Places:
    """Return the router and the matrices of experts, each of which is a tensor of its own in a folder."""
    own = expert_sizes(sizes)
    places = {"experts.router": Tensor("mlp.gate.weight", "ffn_gate_inp.weight", (own.num_experts, sizes.width))}
    for index in range(own.num_experts):
        for part, shape in _shapes(sizes).items():
            places[f"{EXPERTS}{part}.{index}"] = _expert(part, "weight", index, own.num_experts, shape)
    return places


def biased_experts(sizes: ModelConfig) -> Places:
    """Return the router and the matrices of experts with biases.

    In a folder, those of all experts are one tensor, where the outputs of gate and up take turns: floats [E, in, out],
    or MXFP4 codes [E, out, in / 32, 16] with scales [E, out, in / 32].
    """
    own = expert_sizes(sizes)
    count = own.num_experts
    places = {
        "experts.router": Tensor("mlp.router.weight", "ffn_gate_inp.weight", (count, sizes.width)),
        "experts.router_bias": Tensor("mlp.router.bias", "ffn_gate_inp.bias", (count,)),
    }
    for index in range(count):
        for part, (out, inner) in _shapes(sizes).items():
            name, first, step = ("down_proj", 0, 1) if part == "down" else ("gate_up_proj", int(part == "up"), 2)
            whole = _whole(f"mlp.experts.{name}", index, count, (inner, step * out), (first, step))
            if own.is_packed:
                whole = _packed(f"mlp.experts.{name}", index, count, (step * out, inner), (first, step))
            places[f"{EXPERTS}{part}.{index}"] = _expert(part, "weight", index, count, (out, inner), whole)
            biases = Whole(f"mlp.experts.{name}_bias", (count, step * out), Numbers(index, first, step))
            places[f"{EXPERTS}{part}_bias.{index}"] = _expert(part, "bias", index, count, (out,), biases)
    return places


def _whole(name: str, index: int, count: int, shape: tuple[int, int], turn: tuple[int, int]) -> Whole:
    return Whole(name, (count, *shape), Outputs(index, shape, *turn))


def _packed(name: str, index: int, count: int, shape: tuple[int, int], turn: tuple[int, int]) -> Whole:
    out, inputs = shape
    blocks = (out, inputs // _GROUP, _GROUP // 2)
    return Whole(f"{name}_blocks", (count, *blocks), Blocks(index, out, *turn), f"{name}_scales", "MXFP4")


def _expert(
    part: str, kind: str, index: int, count: int, shape: tuple[int, ...], in_folder: Whole | None = None
) -> Tensor:
    """Return one expert's tensor: in a GGUF file those of all experts stand one behind the other."""
    rows = shape[0] if len(shape) == 2 else 1
    stack = Whole(f"ffn_{part}_exps.{kind}", (count, *shape), Rows(index * rows, rows))
    name, gguf = f"mlp.experts.{index}.{part}_proj.{kind}", f"ffn_{part}_exps.{index}.{kind}"
    return Tensor(name, gguf, shape, in_folder, stack)


def expert_sizes(sizes: ModelConfig) -> ExpertSizes:
    """Return the sizes of a network's experts, which it has."""
    assert sizes.experts is not None, "a network without experts"
    return sizes.experts


def _shapes(sizes: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return the shapes of the three matrices of an expert."""
    width, inner = sizes.width, expert_sizes(sizes).width
    return {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}


@dataclass(frozen=True, slots=True)
class Outputs:
    """Takes a matrix [out, in] from a stack [count, in, out]: each `step`-th of its outputs, from `first` on."""

    index: int
    shape: tuple[int, int]  # of one in the stack, (in, out)
    first: int = 0
    step: int = 1

    def __call__(self, whole: RawTensor) -> NDArray[np.uint8]:
        block, (width, out) = BLOCKS[whole.format], self.shape
        if block.size != 1:
            raise WeightsError(f"tensor {whole.name!r} is {whole.format}: its blocks cannot be taken apart")
        own = whole.data[self.index * width : (self.index + 1) * width].reshape(width, out, block.bytes)
        turned = own[:, self.first :: self.step].swapaxes(0, 1)
        return np.ascontiguousarray(turned).reshape(-1, width * block.bytes)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Takes MXFP4 blocks as GGUF files have them from a stack of codes [count, out, groups, 16] and its scales.

    Each `step`-th output of one in the stack, from `first` on. In the stack, a byte has the codes of numbers 2i and
    2i + 1 of a group, the first in its low half; in a block, behind its scale, of numbers i and i + 16.
    """

    index: int
    out: int
    first: int = 0
    step: int = 1

    def __call__(self, codes: RawTensor, scales: RawTensor) -> NDArray[np.uint8]:
        for stored in (codes, scales):
            if stored.format != "U8":
                raise WeightsError(f"tensor {stored.name!r} is {stored.format}, must be U8: MXFP4 codes and scales")
        rows = slice(self.index * self.out + self.first, (self.index + 1) * self.out, self.step)
        own = codes.data.reshape(-1, codes.shape[2], _GROUP // 2)[rows]
        numbers = np.stack([own & 15, own >> 4], axis=3).reshape(*own.shape[:2], 2, _GROUP // 2)
        blocks = np.concatenate([scales.data[rows][:, :, None], numbers[:, :, 0] | numbers[:, :, 1] << 4], axis=2)
        return blocks.reshape(len(blocks), -1)


@dataclass(frozen=True, slots=True)
class Numbers:
    """Takes a vector from a stack [count, n] of F32, F16 or BF16: each `step`-th number, from `first` on."""

    index: int
    first: int = 0
    step: int = 1

    def __call__(self, whole: RawTensor) -> NDArray[np.uint8]:
        own = whole.data[self.index].reshape(-1, BLOCKS[whole.format].bytes)
        return np.ascontiguousarray(own[self.first :: self.step]).reshape(1, -1)
