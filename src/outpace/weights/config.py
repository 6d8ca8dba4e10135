"""Check a model's description, and write it in one form: the keys of a Hugging Face config.json.

Whatever the source says or leaves out, the result has exactly these keys:

    model_type               "llama", "mistral", "qwen2" or "qwen3"
    vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads,
    num_key_value_heads, head_dim, max_position_embeddings        positive integers that fit each other
    rms_norm_eps, rope_theta positive floats
    rope_scaling             None, or {"rope_type": "linear" | "llama3" | "yarn" | "factors", ...}
    sliding_window           None, or how many positions a token of a "sliding_attention" layer sees
    layer_types              per layer "full_attention" or "sliding_attention"
    tie_word_embeddings      whether the embedding is the output matrix too
    attention_bias           whether q, k and v (never o) have biases

Rope scalings hold what `transformers` defines for them; "factors" is GGUF's form of llama3: the inverse
frequency of pair i is divided by factors[i], for i in [0, head_dim / 2).

A key that is absent means what the configuration classes of `transformers` say it does, and null what the network
there makes of None (`_ABSENT`, and the arguments below); where it can make nothing of it, it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outpace.weights.values import Values, is_positive, shown

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")

# Options that change the network in ways that Outpace has no code for: key -> the only value it may have, and
# whether null is as good.
_ONLY: dict[str, tuple[Any, bool]] = {
    "hidden_act": ("silu", False),
    "mlp_bias": (False, True),
    "partial_rotary_factor": (1.0, False),
    "quantization_config": (None, True),
}
_ABSENT: dict[str, dict[str, int]] = {  # model type -> key -> the value of an absent key
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "qwen3": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
}
_YARN_OPTIONS = ("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow")
_ROPE_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # type -> keys it needs, keys it may have
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
    "yarn": (("factor",), (*_YARN_OPTIONS, "mscale", "mscale_all_dim", "truncate")),
    "factors": (("factors",), ()),
}
_RAMPS = {  # type -> the two bounds of its ramp with their defaults, the lower one first
    "llama3": (("low_freq_factor", 1.0), ("high_freq_factor", 4.0)),
    "yarn": (("beta_slow", 1.0), ("beta_fast", 32.0)),
}


def normalise(raw: Mapping[str, Any], where: str, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the checked config. `where` is the file; `names` tells what it calls our keys, for errors.

    Raises WeightsError for what is missing, of the wrong type, absurd, inconsistent or not supported.
    """
    source = Values(raw, where, names or {})
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise source.error("model_type", f"is {shown(model_type)}, supported are {', '.join(MODEL_TYPES)}")
    _refuse_unsupported(source, model_type)
    theta, scaling = _rope(source)
    return {
        "model_type": model_type,
        "vocab_size": source.count("vocab_size", 1 << 24),
        "max_position_embeddings": source.count(
            "max_position_embeddings", 1 << 31, absent=_ABSENT[model_type]["max_position_embeddings"]
        ),
        "rms_norm_eps": source.number("rms_norm_eps", 1.0, absent=1e-6),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": source.flag("tie_word_embeddings", absent=False, null=False),
        "attention_bias": model_type == "qwen2",  # its config.json does not say so: it always has them
        **_sizes(source, model_type, scaling),
        **_windows(source, model_type),
    }


def _refuse_unsupported(source: Values, model_type: str) -> None:
    for key, (allowed, may_be_null) in _ONLY.items():
        value = source.raw.get(key, allowed)
        if not (value is None if may_be_null and value is None else _same(value, allowed)):
            raise source.error(key, f"is {shown(value)}, only {allowed!r} is supported")
    if model_type != "qwen2" and source.flag("attention_bias", absent=False, null=False):
        raise source.error("attention_bias", f"is true, which is not supported for {model_type}")


def _same(value: Any, allowed: Any) -> bool:
    number = isinstance(allowed, float) and type(value) in (int, float)
    return (number or type(value) is type(allowed)) and bool(value == allowed)


def _sizes(source: Values, model_type: str, scaling: Mapping[str, Any] | None) -> dict[str, int]:
    absent = _ABSENT[model_type]
    hidden = source.count("hidden_size", 1 << 17)
    heads = source.count("num_attention_heads", 1 << 12)
    kv_heads = source.count("num_key_value_heads", 1 << 12, absent=absent.get("num_key_value_heads", heads), null=heads)
    if heads % kv_heads:
        raise source.error("num_attention_heads", f"is {heads}, must be a multiple of the {kv_heads} key/value heads")
    if not source.is_given("head_dim") and hidden % heads:
        raise source.error("hidden_size", f"is {hidden}, must be a multiple of the {heads} heads, or head_dim given")
    share = max(hidden // heads, 1)
    null = None if model_type.startswith("qwen") else share
    width = source.count("head_dim", 1 << 12, absent=absent.get("head_dim", share), null=null)
    if width % 2:
        raise source.error("head_dim", f"is {width}, must be even: rotary embeddings turn pairs")
    if scaling and scaling["rope_type"] == "factors" and len(scaling["factors"]) != width // 2:
        raise source.error("rope_scaling", f"has {len(scaling['factors'])} factors, must have {width // 2}")
    return {
        "hidden_size": hidden,
        "intermediate_size": source.count("intermediate_size", 1 << 20),
        "num_hidden_layers": source.count("num_hidden_layers", 1 << 10),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width,
    }


def _windows(source: Values, model_type: str) -> dict[str, Any]:
    """Return the window and which layers it holds for, by each model type's own rule."""
    num_layers = source.count("num_hidden_layers", 1 << 10)
    first = 0  # the first layer with a window
    window: int | None = None
    switched_on = model_type == "mistral" or (
        model_type in ("qwen2", "qwen3") and source.flag("use_sliding_window", absent=False, null=False)
    )
    if switched_on and not source.is_null("sliding_window"):  # null: no window; absent: an old file's usual one
        window = source.count("sliding_window", 1 << 31, absent=4096)
    by_layer = model_type.startswith("qwen") and source.is_given("layer_types")
    if window and model_type != "mistral" and not by_layer:
        first = source.count("max_window_layers", 1 << 31, minimum=0, absent=28)
    kinds = [("sliding_attention" if window and i >= first else "full_attention") for i in range(num_layers)]
    if by_layer:
        kinds = _layer_types(source, num_layers, window)
    return {"sliding_window": window if "sliding_attention" in kinds else None, "layer_types": kinds}


def _layer_types(source: Values, num_layers: int, window: int | None) -> list[str]:
    stated = source.raw["layer_types"]
    allowed = ("full_attention", "sliding_attention") if window else ("full_attention",)
    if not isinstance(stated, list) or len(stated) != num_layers or not all(kind in allowed for kind in stated):
        raise source.error("layer_types", f"must be a list of {num_layers} of {', '.join(allowed)}")
    return stated


def _rope(source: Values) -> tuple[float, dict[str, Any] | None]:
    """Return theta and scaling: two keys, or since transformers 5 one, rope_parameters, for both."""
    key = "rope_parameters" if source.is_given("rope_parameters") else "rope_scaling"
    rope = source.object(key)
    theta = (rope if rope.is_given("rope_theta") else source).number("rope_theta", 1e12, absent=10000.0)
    kinds = [rope.raw[name] for name in ("rope_type", "type") if rope.is_given(name)] or ["default"]
    kind = kinds[0]
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
        raise source.error(key, f"has rope_type {shown(kind)}, supported are {', '.join(_ROPE_KEYS)}")
    if kinds[-1] != kind:
        raise source.error(key, f"has rope_type {kind!r} and type {shown(kinds[-1])}: they must agree")
    values = _rope_values(rope, kind)
    return theta, None if kind == "default" else {"rope_type": kind, **values}


def _rope_values(rope: Values, kind: str) -> dict[str, Any]:
    needed, optional = _ROPE_KEYS[kind]
    given = {name for name in rope.raw if rope.is_given(name)} - {"rope_type", "type", "rope_theta"}
    if extra := sorted(given - {*needed, *optional}):
        raise rope.error(", ".join(extra), f"would be ignored: {kind} has no such option")
    values = {name: _rope_value(rope, name) for name in (*needed, *sorted(given & {*optional}))}
    if "truncate" in optional and rope.is_null("truncate"):
        values["truncate"] = False  # every other option that is null is as if absent
    if kind in _RAMPS:
        (low, lowest), (high, highest) = _RAMPS[kind]
        if values.get(low, lowest) >= values.get(high, highest):  # the ramp between them divides by its length
            raise rope.error(low, f"must be below {high}")
    return values


def _rope_value(rope: Values, name: str) -> Any:
    if name == "factors":
        factors = rope.raw.get(name)
        if not isinstance(factors, list) or not factors or not all(is_positive(f, 1e9) for f in factors):
            raise rope.error(name, "must be a list of positive numbers")
        return [float(f) for f in factors]
    if name == "truncate":
        return rope.flag(name)
    if name == "original_max_position_embeddings":
        return rope.count(name, 1 << 31)
    return rope.number(name, 1e9)
