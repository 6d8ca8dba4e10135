"""Which tensors a network has: their place in it, their shapes, and what each kind of file calls them.

Parts (`attention`, `gated_mlp`, ...) return the tensors of one layer by their place, a field of `DecoderLayer`;
architectures join parts with `|`. This is the only list of names: files are read by it, and networks built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from outpace.models.config import ModelConfig
from outpace.types import RawTensor

Source = Literal["gguf", "folder"]
Places = dict[str, "Tensor"]


class Whole(NamedTuple):
    """A larger tensor of a file, which a network's tensor is taken out of.

    cut: return the bytes of the part, one row for each of its own; given the tensor, and its scales if it has such.
    scales: the tensor beside it that has a number for each row of its last dimension. format: of the part, where it is
    not the whole's.
    """

    name: str
    shape: tuple[int, ...]
    cut: Callable[..., NDArray[np.uint8]]
    scales: str | None = None
    format: str | None = None

    def in_layer(self, prefix: str) -> Whole:
        """Return it under its full names."""
        return self._replace(name=prefix + self.name, scales=self.scales and prefix + self.scales)


@dataclass(frozen=True, slots=True)
class Rows:
    """Takes rows as they are stored."""

    first: int
    count: int

    def __call__(self, whole: RawTensor) -> NDArray[np.uint8]:
        return whole.data[self.first : self.first + self.count]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that a network calls for.

    name: in a Hugging Face folder, and everywhere in Outpace. gguf: in a GGUF file. in_folder, in_gguf: what holds it
    there, where it is a part of a larger one. All names are relative to the layer, for a layer's tensors.
    """

    name: str
    gguf: str
    shape: tuple[int, ...]
    in_folder: Whole | None = None
    in_gguf: Whole | None = None

    def in_layer(self, index: int) -> Tensor:
        """Return it under its full names."""
        folder, gguf = f"model.layers.{index}.", f"blk.{index}."
        return replace(
            self,
            name=folder + self.name,
            gguf=gguf + self.gguf,
            in_folder=self.in_folder and self.in_folder.in_layer(folder),
            in_gguf=self.in_gguf and self.in_gguf.in_layer(gguf),
        )

    def whole(self, source: Source) -> Whole | None:
        """Return the larger tensor that holds it, if one does."""
        return self.in_gguf if source == "gguf" else self.in_folder

    def stored_name(self, source: Source) -> str:
        """Return the name of the tensor in a file that holds it."""
        whole = self.whole(source)
        return whole.name if whole else self.gguf if source == "gguf" else self.name

    def stored_shape(self, source: Source) -> tuple[int, ...]:
        """Return the shape of the tensor in a file that holds it."""
        whole = self.whole(source)
        return whole.shape if whole else self.shape

    def kept_name(self, source: Source) -> str:
        """Return what a file's tensor is called in Outpace: as in a folder, where folders have the same one."""
        same = self.stored_shape(source) == self.stored_shape("folder")
        return self.stored_name("folder" if same else source)


def embedding(sizes: ModelConfig) -> Tensor:
    """Return the embedding matrix."""
    return Tensor("model.embed_tokens.weight", "token_embd.weight", (sizes.vocab_size, sizes.width))


def final_norm(sizes: ModelConfig) -> Tensor:
    """Return the weights of the norm before the output product."""
    return Tensor("model.norm.weight", "output_norm.weight", (sizes.width,))


def output(sizes: ModelConfig) -> Tensor:
    """Return the output matrix, where it is not the embedding."""
    return Tensor("lm_head.weight", "output.weight", (sizes.vocab_size, sizes.width))


def attention(sizes: ModelConfig) -> Places:
    """Return the matrices of attention, and those of its biases that the sizes name."""
    width, q, kv = _widths(sizes)
    places: Places = {
        "wq": Tensor("self_attn.q_proj.weight", "attn_q.weight", (q, width)),
        "wk": Tensor("self_attn.k_proj.weight", "attn_k.weight", (kv, width)),
        "wv": Tensor("self_attn.v_proj.weight", "attn_v.weight", (kv, width)),
        "wo": Tensor("self_attn.o_proj.weight", "attn_output.weight", (width, q)),
    }
    return places | attention_biases(sizes)


def attention_biases(sizes: ModelConfig) -> Places:
    """Return those biases of attention that the sizes name."""
    width, q, kv = _widths(sizes)
    places: Places = {}
    if sizes.qkv_bias:
        places |= {
            "bq": Tensor("self_attn.q_proj.bias", "attn_q.bias", (q,)),
            "bk": Tensor("self_attn.k_proj.bias", "attn_k.bias", (kv,)),
            "bv": Tensor("self_attn.v_proj.bias", "attn_v.bias", (kv,)),
        }
    if sizes.output_bias:
        places["bo"] = Tensor("self_attn.o_proj.bias", "attn_output.bias", (width,))
    return places


def fused_attention(sizes: ModelConfig) -> Places:
    """Return the matrices of attention, where those of queries, keys and values are one in files."""
    width, q, kv = _widths(sizes)
    whole = ("self_attn.qkv_proj.weight", "attn_qkv.weight", (q + 2 * kv, width))
    return {
        "wq": _rows("self_attn.q_proj.weight", *whole, first=0, count=q),
        "wk": _rows("self_attn.k_proj.weight", *whole, first=q, count=kv),
        "wv": _rows("self_attn.v_proj.weight", *whole, first=q + kv, count=kv),
        "wo": Tensor("self_attn.o_proj.weight", "attn_output.weight", (width, q)),
    }


def _rows(name: str, folder: str, gguf: str, shape: tuple[int, int], first: int, count: int) -> Tensor:
    """Return a tensor that is some rows of a larger one, in both kinds of files."""
    rows = Rows(first, count)
    return Tensor(name, gguf, (count, shape[1]), Whole(folder, shape, rows), Whole(gguf, shape, rows))


def wide_norms(sizes: ModelConfig) -> Places:
    """Return the RMS norms over all queries of a token, and over all keys."""
    _, q, kv = _widths(sizes)
    return {
        "q_wide_norm": Tensor("self_attn.q_norm.weight", "attn_q_norm.weight", (q,)),
        "k_wide_norm": Tensor("self_attn.k_norm.weight", "attn_k_norm.weight", (kv,)),
    }


def fused_mlp(sizes: ModelConfig) -> Places:
    """Return the matrices of the gated MLP, where gate and up are one in files."""
    width, inner = sizes.width, sizes.feed_forward_width
    whole = ("mlp.gate_up_proj.weight", "ffn_up.weight", (2 * inner, width))
    return {
        "gate": _rows("mlp.gate_proj.weight", *whole, first=0, count=inner),
        "up": _rows("mlp.up_proj.weight", *whole, first=inner, count=inner),
        "down": Tensor("mlp.down_proj.weight", "ffn_down.weight", (width, inner)),
    }


def head_norms(sizes: ModelConfig) -> Places:
    """Return the RMS norms of each head of queries and keys."""
    shape = (sizes.head_width,)
    return {
        "q_norm": Tensor("self_attn.q_norm.weight", "attn_q_norm.weight", shape),
        "k_norm": Tensor("self_attn.k_norm.weight", "attn_k_norm.weight", shape),
    }


def gated_mlp(sizes: ModelConfig) -> Places:
    """Return the matrices of the gated MLP, and its biases if the sizes name them."""
    width, inner = sizes.width, sizes.feed_forward_width
    places = {
        "gate": Tensor("mlp.gate_proj.weight", "ffn_gate.weight", (inner, width)),
        "up": Tensor("mlp.up_proj.weight", "ffn_up.weight", (inner, width)),
        "down": Tensor("mlp.down_proj.weight", "ffn_down.weight", (width, inner)),
    }
    if sizes.mlp_bias:
        places |= {
            "gate_bias": Tensor("mlp.gate_proj.bias", "ffn_gate.bias", (inner,)),
            "up_bias": Tensor("mlp.up_proj.bias", "ffn_up.bias", (inner,)),
            "down_bias": Tensor("mlp.down_proj.bias", "ffn_down.bias", (width,)),
        }
    return places


def pre_norms(sizes: ModelConfig) -> Places:
    """Return the norms before attention and before the MLP, as Llama and its relatives name them."""
    return {
        "attn_norm": Tensor("input_layernorm.weight", "attn_norm.weight", (sizes.width,)),
        "mlp_norm": Tensor("post_attention_layernorm.weight", "ffn_norm.weight", (sizes.width,)),
    }


def norms(sizes: ModelConfig, **names: str) -> Places:
    """Return norms by their place, as an architecture's folders name them: place=name."""
    gguf = {"attn_norm": "attn_norm", "attn_post_norm": "post_attention_norm"}
    gguf |= {"mlp_norm": "ffn_norm", "mlp_post_norm": "post_ffw_norm"}
    return {place: Tensor(f"{name}.weight", f"{gguf[place]}.weight", (sizes.width,)) for place, name in names.items()}


def _widths(sizes: ModelConfig) -> tuple[int, int, int]:
    return sizes.width, sizes.num_heads * sizes.head_width, sizes.num_kv_heads * sizes.head_width
