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
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from outpace.errors import WeightsError

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")

# Options that change the network in ways that Outpace has no code for: key -> the only value it may have.
_ONLY = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
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
    source = _Source(raw, where, names or {})
    model_type = raw.get("model_type")
    if model_type not in MODEL_TYPES:
        raise source.error("model_type", f"is {model_type!r}, supported are {', '.join(MODEL_TYPES)}")
    for key, allowed in _ONLY.items():
        if raw.get(key) not in (None, allowed):
            raise source.error(key, f"is {raw[key]!r}, only {allowed!r} is supported")
    if model_type != "qwen2" and source.flag("attention_bias", False):
        raise source.error("attention_bias", f"is true, which is not supported for {model_type}")
    theta, scaling = _rope(source)
    return {
        "model_type": model_type,
        "vocab_size": source.count("vocab_size", 1 << 24),
        "max_position_embeddings": source.count("max_position_embeddings", 1 << 31),
        "rms_norm_eps": source.number("rms_norm_eps", 1.0),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": source.flag("tie_word_embeddings", False),
        "attention_bias": model_type == "qwen2",  # its config.json does not say so: it always has them
        **_sizes(source, scaling),
        **_windows(source, model_type),
    }


def _sizes(source: _Source, scaling: Mapping[str, Any] | None) -> dict[str, int]:
    hidden = source.count("hidden_size", 1 << 17)
    heads = source.count("num_attention_heads", 1 << 12)
    kv_heads = source.count("num_key_value_heads", 1 << 12, default=heads)
    if heads % kv_heads:
        raise source.error("num_attention_heads", f"is {heads}, must be a multiple of the {kv_heads} key/value heads")
    if source.raw.get("head_dim") is None and hidden % heads:
        raise source.error("hidden_size", f"is {hidden}, must be a multiple of the {heads} heads, or head_dim given")
    width = source.count("head_dim", 1 << 12, default=hidden // heads)
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


def _windows(source: _Source, model_type: str) -> dict[str, Any]:
    """Return the window and which layers it holds for, by each model type's own rule."""
    num_layers = source.count("num_hidden_layers", 1 << 10)
    first = 0  # the first layer with a window
    window: int | None = None
    if model_type == "mistral" and source.raw.get("sliding_window", 4096) is not None:  # 4096: left out by old files
        window = source.count("sliding_window", 1 << 31, default=4096)
    elif model_type in ("qwen2", "qwen3") and source.flag("use_sliding_window", False):
        window = source.count("sliding_window", 1 << 31, default=4096)
        first = source.count("max_window_layers", 1 << 31, low=0, default=28)
    kinds = [("sliding_attention" if window and i >= first else "full_attention") for i in range(num_layers)]
    stated = source.raw.get("layer_types")
    if stated is not None and model_type.startswith("qwen"):
        kinds = _layer_types(source, stated, num_layers, window)
    return {"sliding_window": window if "sliding_attention" in kinds else None, "layer_types": kinds}


def _layer_types(source: _Source, stated: Any, num_layers: int, window: int | None) -> list[str]:
    allowed = ("full_attention", "sliding_attention") if window else ("full_attention",)
    if not isinstance(stated, list) or len(stated) != num_layers or not all(kind in allowed for kind in stated):
        raise source.error("layer_types", f"must be a list of {num_layers} of {', '.join(allowed)}")
    return stated


def _rope(source: _Source) -> tuple[float, dict[str, Any] | None]:
    """Return theta and scaling: two keys, or since transformers 5 one, rope_parameters, for both."""
    key = "rope_scaling" if source.raw.get("rope_parameters") is None else "rope_parameters"
    stated = source.raw.get(key)
    if stated is None:
        return source.number("rope_theta", 1e12, default=10000.0), None
    if not isinstance(stated, dict):
        raise source.error(key, f"must be an object, is {stated!r}")
    rope = source.inner(key, {name: value for name, value in stated.items() if value is not None})
    holder = rope if "rope_theta" in rope.raw else source
    theta = holder.number("rope_theta", 1e12, default=10000.0)
    kind = rope.raw.get("rope_type", rope.raw.get("type", "default"))
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
        raise source.error(key, f"has rope_type {kind!r}, supported are {', '.join(_ROPE_KEYS)}")
    return theta, None if kind == "default" else {"rope_type": kind, **_rope_values(rope, kind)}


def _rope_values(rope: _Source, kind: str) -> dict[str, Any]:
    needed, optional = _ROPE_KEYS[kind]
    given = rope.raw.keys() - {"rope_type", "type", "rope_theta"}
    if extra := sorted(given - {*needed, *optional}):
        raise rope.error(", ".join(extra), f"would be ignored: {kind} has no such option")
    values = {name: _rope_value(rope, name) for name in (*needed, *sorted(given & {*optional}))}
    if kind in _RAMPS:
        (low, lowest), (high, highest) = _RAMPS[kind]
        if values.get(low, lowest) >= values.get(high, highest):  # the ramp between them divides by its length
            raise rope.error(low, f"must be below {high}")
    return values


def _rope_value(rope: _Source, name: str) -> Any:
    if name == "factors":
        factors = rope.raw.get(name)
        if not isinstance(factors, list) or not factors or not all(_positive(f, 1e9) for f in factors):
            raise rope.error(name, "must be a list of positive numbers")
        return [float(f) for f in factors]
    if name == "truncate":
        return rope.flag(name, True)
    if name == "original_max_position_embeddings":
        return rope.count(name, 1 << 31)
    return rope.number(name, 1e9)


def _positive(value: Any, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= high


@dataclass(frozen=True, slots=True)
class _Source:
    """Raw values, taken out one by one with their type and range checked."""

    raw: Mapping[str, Any]
    where: str
    names: Mapping[str, str] = field(default_factory=dict)

    def error(self, key: str, problem: str) -> WeightsError:
        return WeightsError(f"{self.where}: {self.names.get(key, key)} {problem}")

    def inner(self, key: str, raw: Mapping[str, Any]) -> _Source:
        return _Source(raw, f"{self.where}: {self.names.get(key, key)}", self.names)

    def count(self, key: str, high: int, *, low: int = 1, default: int | None = None) -> int:
        value = self._get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self.error(key, f"must be an integer in [{low}, {high}], is {value!r}")
        return value

    def number(self, key: str, high: float, *, default: float | None = None) -> float:
        value = self._get(key, default)
        if not _positive(value, high):
            raise self.error(key, f"must be a number in (0, {high:g}], is {value!r}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, is {value!r}")
        return value

    def _get(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        value = default if value is None else value
        if value is None:
            raise self.error(key, "is missing")
        return value
