"""The network that Llama and its relatives share: embedding, pre-norm decoder layers, final norm, output product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from outpace.errors import UsageError, WeightsError
from outpace.models.config import ModelConfig
from outpace.ops.protocol import KV, Array, DecoderLayer, Layer, Ops, Plan, Rope, Vector, Weight
from outpace.types import KVFormat, KVSpec, RawTensor


@dataclass(frozen=True, slots=True)
class Transformer:
    """A network ready to run: handles of one ops implementation, and what the cache must know."""

    config: ModelConfig
    ops: Ops
    embedding: Weight
    layers: tuple[Layer, ...]
    norm: Vector
    output: Weight

    def spec(self, format: KVFormat) -> KVSpec:
        """Return the geometry of the keys and values that this network caches."""
        config = self.config
        return KVSpec(config.num_layers, config.num_kv_heads, config.head_width, format)

    @property
    def max_window(self) -> int | None:
        """How far back any layer reads, itself included; None: to the beginning."""
        return self.config.max_window

    def forward(self, plan: Plan, kv: KV, taps: Sequence[int] = ()) -> tuple[Array, dict[int, Array]]:
        """Return the logits of the plan's scored rows, [R, V], and the hidden states at each tap, [T, D].

        Writes keys and values into their slots. Tap 0 is the embedding, i the output of the i-th layer (1 ... n), and
        n + 1 that of the final norm. Logits have the same bits whatever is tapped. Raises UsageError for other taps.
        """
        last = len(self.layers) + 1
        for tap in taps:
            if not 0 <= tap <= last:
                raise UsageError(
                    f"tap {tap} is outside [0, {last}]: 0 is the embedding, 1 to {last - 1} are the layers' outputs, "
                    f"{last} is the final norm's"
                )
        x = self.ops.embed(self.embedding, plan)
        hidden = {0: x} if 0 in taps else {}
        for i, layer in enumerate(self.layers, 1):
            x = self.ops.decoder_layer(x, layer, kv, plan)
            if i in taps:
                hidden[i] = x
        if last in taps:
            hidden[last] = self.ops.rms_norm(x, self.norm, self.config.eps)
        return self.ops.logits(x, self.norm, self.config.eps, self.output, plan), hidden


def assemble(
    config: ModelConfig,
    tensors: Mapping[str, RawTensor],
    ops: Ops,
    qkv_bias: bool = False,
    qk_norm: bool = False,
) -> Transformer:
    """Return the network of these tensors (Hugging Face names), packed by `ops`.

    WeightsError for a missing tensor, a wrong shape, or a tensor that the network has no place for: leaving it out
    would change the text.
    """
    shelf = _Shelf(tensors, ops)
    rope = ops.rope(np.array(config.inv_freq, np.float64), config.rope_scale, config.context)
    embedding = shelf.matrix("model.embed_tokens.weight", config.vocab_size, config.width)
    layers = tuple(
        ops.layer(_layer(shelf, config, rope, index, qkv_bias, qk_norm)) for index in range(config.num_layers)
    )
    norm = shelf.vector("model.norm.weight", config.width)
    output = embedding if config.tied else shelf.matrix("lm_head.weight", config.vocab_size, config.width)
    shelf.refuse_leftovers(config.model_type)
    return Transformer(config, ops, embedding, layers, norm, output)


def _layer(
    shelf: _Shelf,
    config: ModelConfig,
    rope: Rope,
    index: int,
    qkv_bias: bool,
    qk_norm: bool,
) -> DecoderLayer:
    width, ffn, head = config.width, config.feed_forward_width, config.head_width
    q_width, kv_width = config.num_heads * head, config.num_kv_heads * head
    attention, mlp = f"model.layers.{index}.self_attn", f"model.layers.{index}.mlp"
    return DecoderLayer(
        index=index,
        attn_norm=shelf.vector(f"model.layers.{index}.input_layernorm.weight", width),
        wq=shelf.matrix(f"{attention}.q_proj.weight", q_width, width),
        wk=shelf.matrix(f"{attention}.k_proj.weight", kv_width, width),
        wv=shelf.matrix(f"{attention}.v_proj.weight", kv_width, width),
        wo=shelf.matrix(f"{attention}.o_proj.weight", width, q_width),
        bq=shelf.vector(f"{attention}.q_proj.bias", q_width) if qkv_bias else None,
        bk=shelf.vector(f"{attention}.k_proj.bias", kv_width) if qkv_bias else None,
        bv=shelf.vector(f"{attention}.v_proj.bias", kv_width) if qkv_bias else None,
        q_norm=shelf.vector(f"{attention}.q_norm.weight", head) if qk_norm else None,
        k_norm=shelf.vector(f"{attention}.k_norm.weight", head) if qk_norm else None,
        mlp_norm=shelf.vector(f"model.layers.{index}.post_attention_layernorm.weight", width),
        gate=shelf.matrix(f"{mlp}.gate_proj.weight", ffn, width),
        up=shelf.matrix(f"{mlp}.up_proj.weight", ffn, width),
        down=shelf.matrix(f"{mlp}.down_proj.weight", width, ffn),
        rope=rope,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_width=head,
        eps=config.eps,
        window=config.windows[index],
    )


class _Shelf:
    """The tensors of a file, taken off one by one: raw bytes are let go as soon as they are packed."""

    def __init__(self, tensors: Mapping[str, RawTensor], ops: Ops) -> None:
        self._tensors = dict(tensors)
        self._ops = ops

    def matrix(self, name: str, rows: int, columns: int) -> Weight:
        return self._ops.pack(self._take(name, (rows, columns)))

    def vector(self, name: str, width: int) -> Vector:
        return self._ops.vector(self._take(name, (width,)))

    def refuse_leftovers(self, model_type: str) -> None:
        """Raise if something is left that changes the network: a bias, a norm or a layer that we would not run."""
        # Old files store the rotary frequencies, which the config gives.
        left = [name for name in self._tensors if not name.endswith("rotary_emb.inv_freq")]
        if left:
            raise WeightsError(
                f"tensor {left[0]!r} has no place in a network of type {model_type!r} with this config "
                f"({len(left)} such tensors): the file is of another architecture, or damaged"
            )

    def _take(self, name: str, shape: tuple[int, ...]) -> RawTensor:
        tensor = self._tensors.pop(name, None)
        if tensor is None:
            raise WeightsError(f"tensor {name!r} of shape {shape} is missing")
        if tensor.shape != shape:
            raise WeightsError(
                f"tensor {name!r} must have the shape {shape} by the config, the file has {tensor.shape}"
            )
        return tensor
