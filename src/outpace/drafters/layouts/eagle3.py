"""EAGLE-3 in the layouts of SafeAILab, AngelSlim and SpecForge (one flat config.json) and of speculators (nested).

They share the network and nearly all names. What a tap is was read in the code of each:

* SafeAILab collects the input of the target's layers 2, n / 2 and n - 3, counted from 0: outputs 2, n / 2 and n - 3
  counted from 1, as ours are. AngelSlim runs its drafters the same way; neither config says so.
* speculators and vLLM name layers in `eagle_aux_hidden_state_layer_ids` and take the inputs of these: the same count.
* SGLang, and NVIDIA's files within `eagle_config`, name the layers whose *outputs* they take, from 0: one less.

A head of fewer rows than the vocabulary has comes with d2t: row i is the token i + d2t[i].
"""

from __future__ import annotations

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
from outpace.weights.values import Values, shown

_NAMES = {
    **{"fc.weight": "fc", "norm.weight": "head_norm", "lm_head.weight": "head", "embed_tokens.weight": "embedding"},
    "input_norm.weight": "tap_norm",
}
_LAYER_NAMES = {
    **{"input_layernorm.weight": "token_norm", "hidden_norm.weight": "feature_norm"},
    "post_attention_layernorm.weight": "mlp_norm",
    **{f"self_attn.{theirs}_proj.weight": ours for theirs, ours in zip("qkvo", ("wq", "wk", "wv", "wo"), strict=True)},
    **{f"self_attn.{theirs}_proj.bias": ours for theirs, ours in zip("qkvo", ("bq", "bk", "bv", "bo"), strict=True)},
    **{"self_attn.q_norm.weight": "q_norm", "self_attn.k_norm.weight": "k_norm"},
    **{f"mlp.{name}_proj.weight": name for name in ("gate", "up", "down")},
}
_LAYER_PREFIXES = ("midlayer.", "layers.0.")
_UNUSED = ("d2t", "t2d", "verifier_norm.weight", "verifier_lm_head.weight")  # maps, and copies of the target's
_TAP_KEY = "eagle_aux_hidden_state_layer_ids"
_USUAL = {  # of NVIDIA's `eagle_config`: what every network here has
    **{"use_aux_hidden_state": True, "use_input_layernorm_in_first_layer": True, "use_last_layernorm": True},
    "use_mtp_layernorm": False,
}
FIXED_TOKENS = "outpace_fixed_tokens"


def open_flat(folder: Path, raw: Mapping[str, Any], tensors: Mapping[str, RawTensor]) -> DrafterCheckpoint:
    """Return a drafter in SafeAILab's layout: a Llama's config with `draft_vocab_size`."""
    source = Values(raw, str(folder / "config.json"))
    return _open(folder, "SafeAILab", source, raw, tensors, name=UNNAMED, model_type=None)


def open_nested(folder: Path, raw: Mapping[str, Any], tensors: Mapping[str, RawTensor]) -> DrafterCheckpoint:
    """Return a drafter in the layout of speculators: `transformer_layer_config` and `speculators_config`."""
    source = Values(raw, str(folder / "config.json"))
    name, model_type = verifier(source)
    layer = source.object("transformer_layer_config").raw
    return _open(folder, "speculators", source, layer, tensors, name=name, model_type=model_type)


def _open(
    folder: Path,
    layout: str,
    source: Values,
    layer: Mapping[str, Any],
    found: Mapping[str, RawTensor],
    *,
    name: str,
    model_type: str | None,
) -> DrafterCheckpoint:
    decoder = Decoder.read(layer, source.where)
    if decoder.num_layers != 1:
        raise source.error("num_hidden_layers", f"is {decoder.num_layers}: only drafters of one layer are supported")
    rows = source.count("draft_vocab_size", decoder.vocab_size, absent=decoder.vocab_size, null=decoder.vocab_size)
    tensors = _renamed(found, source.where)
    tokens = head_tokens(found, rows, decoder.vocab_size, source.where)
    tokens, num_fixed = _fixed_first(source, tokens, tensors)
    width = source.count("target_hidden_size", 1 << 17, absent=decoder.width, null=decoder.width)
    entries: dict[str, Any] = {
        **decoder.entries(),
        **_options(source),
        **{"num_fixed": num_fixed, "head_tokens": tokens},
        **{"embedding": "embedding" in tensors, "head": "head" in tensors},
    }
    if (window := decoder.windows[0]) is not None:
        entries["window"] = window
    if (taps := _taps(source)) is not None:
        entries["taps"] = taps
    target = DrafterTarget(None, model_type, decoder.vocab_size, width, None)
    return DrafterCheckpoint(folder, "eagle", name, "", target, Entries(entries, source.where), tensors, layout)


def _fixed_first(source: Values, tokens: tuple[int, ...], tensors: dict[str, RawTensor]) -> tuple[tuple[int, ...], int]:
    """Return the rows' tokens and how many are always looked at; reorders the head so that those come first.

    Only what `export` wrote says that some are not.
    """
    fixed = source.items(FIXED_TOKENS)
    if not fixed or "head" not in tensors:
        return tokens, len(tokens)
    row_of = {token: row for row, token in enumerate(tokens)}
    if not all(type(token) is int and token in row_of for token in fixed) or len(set(fixed)) < len(fixed):
        raise source.error(FIXED_TOKENS, "must be different tokens of the head")
    head, rows = tensors["head"], [row_of[token] for token in fixed]
    order = [*rows, *sorted(set(range(len(tokens))) - set(rows))]
    if len(head.data) == len(tokens):  # else its shape is refused later
        tensors["head"] = replace(head, data=head.data[order])
    return tuple(tokens[row] for row in order), len(fixed)


def _options(source: Values) -> dict[str, Any]:
    """Return in which ways the network differs from the plain one."""
    eagle = source.object("eagle_config")
    for key, usual in _USUAL.items():
        if eagle.flag(key, absent=usual, null=usual) != usual:
            raise eagle.error(key, f"is {not usual}, only {usual} is supported")

    def flag(key: str) -> bool:
        return source.flag(key, absent=False, null=False) or eagle.flag(key, absent=False, null=False)

    if flag("norm_before_fc") and flag("fc_norm"):
        raise source.error("fc_norm", "and norm_before_fc are true, and there is one norm before fc at most")
    return {
        "tap_norm": "joint" if flag("norm_before_fc") else "each" if flag("fc_norm") else "none",
        "tap_residual": False,
        "norm_before_residual": flag("norm_before_residual"),
        "norm_output": flag("norm_output"),
    }


def _taps(source: Values) -> list[int] | None:
    """Return the tapped layers as we count them; None if the config leaves them to convention."""
    eagle = source.object("eagle_config")
    for values, shift in ((source, 0), (eagle, 1)):
        if stated := values.items(_TAP_KEY):
            if not all(type(layer) is int and 0 <= layer < 1 << 16 for layer in stated):
                raise values.error(_TAP_KEY, f"must be a list of layers, is {shown(stated)}")
            return [layer + shift for layer in stated]
    return None


def _renamed(found: Mapping[str, RawTensor], where: str) -> dict[str, RawTensor]:
    """Return the tensors by our names; WeightsError for one that the network has no place for."""
    tensors: dict[str, RawTensor] = {}
    for name, tensor in found.items():
        if name in _UNUSED or name.endswith("rotary_emb.inv_freq"):
            continue
        ours = _our_name(name)
        if ours is None or ours in tensors:
            raise WeightsError(f"{where}: tensor {name!r} has no place in an EAGLE-3 drafter of one layer")
        tensors[ours] = replace(tensor, name=name)
    if missing := [name for name in ("fc.weight", "norm.weight") if _NAMES[name] not in tensors]:
        raise WeightsError(f"{where}: tensor {missing[0]!r} is missing: not an EAGLE-3 drafter, or cut short")
    if missing := [
        name for name, ours in _LAYER_NAMES.items() if ours not in tensors and name.endswith("_proj.weight")
    ]:
        raise WeightsError(f"{where}: tensor '{_LAYER_PREFIXES[0]}{missing[0]}' is missing: fetch the drafter again")
    return tensors


def _our_name(name: str) -> str | None:
    if name in _NAMES:
        return _NAMES[name]
    for prefix in _LAYER_PREFIXES:
        if name.startswith(prefix):
            return _LAYER_NAMES.get(name.removeprefix(prefix))
    kind, _, number = name.removesuffix(".weight").partition(".")
    return f"tap_norm.{int(number)}" if kind == "fc_norm" and number.isascii() and number.isdigit() else None
