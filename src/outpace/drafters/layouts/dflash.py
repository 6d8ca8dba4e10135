"""DFlash in the layouts of z-lab (a Qwen3's config with `dflash_config`) and of speculators (nested).

z-lab counts layers from 0 and takes their outputs, so its 1 is our tap 2; of the last layer it would take the output
behind the final norm, which no tap is. speculators names, as for EAGLE-3, layers whose inputs are taken: our own count.
The masks are embeddings of one token, the head is the target's unless it has fewer rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from outpace.drafters.layouts.decoder import Decoder
from outpace.drafters.layouts.indices import head_tokens
from outpace.drafters.layouts.verifier import UNNAMED, verifier
from outpace.errors import WeightsError
from outpace.types import RawTensor
from outpace.weights.drafter import DrafterCheckpoint
from outpace.weights.trained import DrafterTarget, Entries
from outpace.weights.values import Values

KEY = "dflash_config"
_NAMES = {"fc.weight": "fc", "hidden_norm.weight": "context_norm", "norm.weight": "head_norm", "lm_head.weight": "head"}
_PARTS = {
    **{"input_layernorm.weight": "attn_norm", "post_attention_layernorm.weight": "mlp_norm"},
    **{f"self_attn.{name}_proj.weight": f"w{name}" for name in "qkvo"},
    **{f"self_attn.{name}_norm.weight": f"{name}_norm" for name in "qk"},
    **{f"mlp.{name}_proj.weight": name for name in ("gate", "up", "down")},
}
_LAYER = re.compile(r"layers\.(\d{1,4})\.(.+)")
_UNUSED = ("d2t", "t2d", "embed_tokens.weight", "verifier_norm.weight", "verifier_lm_head.weight")
_ONLY: dict[str, Any] = {  # options that change the network in ways that there is no code for -> the usual value
    **{"input_embedding_scale": 1.0, "output_multiplier": 1.0, "final_logit_softcapping": None, "is_causal": None},
    **{"conv_kernel_size": None, "selector_rank": None, "sample_from_anchor": False},
}


def open_flat(folder: Path, raw: Mapping[str, Any], found: Mapping[str, RawTensor]) -> DrafterCheckpoint:
    """Return a drafter in z-lab's layout."""
    source = Values(raw, str(folder / "config.json"))
    own = source.object(KEY)
    _refuse_unsupported(source, own)
    decoder = Decoder.read({key: raw[key] for key in raw if key != KEY}, source.where)
    num_layers = source.count("num_target_layers", 1 << 16) if source.is_given("num_target_layers") else None
    taps = _layers(own, "target_layer_ids", 1)
    if num_layers is not None and taps[-1] >= num_layers:
        raise own.error("target_layer_ids", f"must be layers before the last, {num_layers - 1}, are {taps}")
    size = (own if own.is_given("block_size") else source).count("block_size", 1 << 10, minimum=2, absent=16)
    target = DrafterTarget(None, None, decoder.vocab_size, decoder.width, num_layers)
    entries = {"taps": taps, "num_masks": size - 1, "mask_token": own.count("mask_token_id", 1 << 24, minimum=0)}
    return _checkpoint(folder, "DFlash", source, decoder, entries, target, UNNAMED, decoder.vocab_size, found)


def open_nested(folder: Path, raw: Mapping[str, Any], found: Mapping[str, RawTensor]) -> DrafterCheckpoint:
    """Return a drafter in the layout of speculators."""
    source = Values(raw, str(folder / "config.json"))
    _refuse_unsupported(source, source)
    decoder = Decoder.read(source.object("transformer_layer_config").raw, source.where)
    rows = source.count("draft_vocab_size", decoder.vocab_size, absent=decoder.vocab_size, null=decoder.vocab_size)
    name, model_type = verifier(source)
    target = DrafterTarget(None, model_type, decoder.vocab_size, decoder.width, None)
    entries = {
        "taps": _layers(source, "aux_hidden_state_layer_ids", 0),
        "num_masks": source.count("block_size", 1 << 10, minimum=2, absent=8) - 1,
        "mask_token": source.count("mask_token_id", 1 << 24, minimum=0),
    }
    return _checkpoint(folder, "speculators", source, decoder, entries, target, name, rows, found)


def _checkpoint(
    folder: Path,
    layout: str,
    source: Values,
    decoder: Decoder,
    own: Mapping[str, Any],
    target: DrafterTarget,
    name: str,
    rows: int,
    found: Mapping[str, RawTensor],
) -> DrafterCheckpoint:
    if decoder.has_biases or any(decoder.windows):
        raise source.error(
            "attention_bias and layer_types", "must be false and full_attention: others are not supported"
        )
    tensors = _renamed(found, source.where)
    if rows < decoder.vocab_size and "head" not in tensors:
        raise WeightsError(f"{source.where}: tensor 'lm_head.weight' is missing: the head has {rows} rows of its own")
    tokens = head_tokens(found, rows, decoder.vocab_size, source.where)
    entries = {
        **{key: value for key, value in decoder.entries().items() if key not in ("width", "biases")},
        **{"num_layers": decoder.num_layers, "num_fixed": len(tokens), "head_tokens": tokens},
        **{"head": "head" in tensors, "head_norms": True},  # whatever type its config calls itself
        **own,
    }
    return DrafterCheckpoint(folder, "block", name, "", target, Entries(entries, source.where), tensors, layout)


def _refuse_unsupported(*sources: Values) -> None:
    for source in sources:
        for key, usual in _ONLY.items():
            value = source.raw.get(key, usual)
            if value is not None and value != usual:
                raise source.error(key, f"is {value!r:.60}, only {usual!r} is supported")


def _layers(source: Values, key: str, shift: int) -> list[int]:
    stated = source.items(key)
    if not stated or not all(type(layer) is int and 0 <= layer < 1 << 16 for layer in stated):
        raise source.error(key, f"must be a list of layers, is {stated!r:.60}")
    return [layer + shift for layer in stated]


def _renamed(found: Mapping[str, RawTensor], where: str) -> dict[str, RawTensor]:
    """Return the tensors by our names; WeightsError for one that the network has no place for."""
    tensors: dict[str, RawTensor] = {}
    for name, tensor in found.items():
        layer = _LAYER.fullmatch(name)
        if name in _UNUSED or name.endswith("rotary_emb.inv_freq"):
            continue
        if name in _NAMES:
            ours = _NAMES[name]
        elif layer is not None and layer[2] in _PARTS:
            ours = f"{int(layer[1])}.{_PARTS[layer[2]]}"
        else:
            raise WeightsError(f"{where}: tensor {name!r} has no place in a DFlash drafter")
        tensors[ours] = replace(tensor, name=name)
    if missing := [name for name, ours in _NAMES.items() if ours != "head" and ours not in tensors]:
        raise WeightsError(f"{where}: tensor {missing[0]!r} is missing: fetch the drafter again")
    return tensors
