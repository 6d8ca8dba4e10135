"""Read a model's description: what the keys of a config.json may say, in parts that architectures choose from.

Whatever the source says or leaves out, a checked config has these keys, and those that its architecture adds:

    model_type               names the architecture
    vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads,
    num_key_value_heads, head_dim, max_position_embeddings        positive integers that fit each other
    rms_norm_eps, rope_theta positive floats
    rope_scaling             None, or {"rope_type": "linear" | "llama3" | "yarn" | "longrope" | "factors", ...}
    sliding_window           None, or how many positions a token of a "sliding_attention" layer sees
    layer_types              per layer "full_attention" or "sliding_attention"
    tie_word_embeddings      whether the embedding is the output matrix too
    attention_bias           whether q, k and v have biases, and mostly o; mlp_bias, where it is on: gate, up and down
    partial_rotary_factor    where it is not 1: which part of a head turns

`build` adds `context`: how many positions are wanted, for networks that differ by that (longrope).
Rope scalings hold what `transformers` defines for them; "factors" is GGUF's form of llama3: the inverse
frequency of pair i is divided by factors[i], for all pairs that turn.

A key that is absent means what the configuration classes of `transformers` say it does, and null what the network
there makes of None (the arguments below); where it can make nothing of it, it is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from outpace.models.config import Config
from outpace.weights.values import Values, is_positive, shown

_YARN_OPTIONS = ("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow")
_ROPE_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # type -> keys it needs, keys it may have
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
    "yarn": (("factor",), (*_YARN_OPTIONS, "mscale", "mscale_all_dim", "truncate")),
    "longrope": (("short_factor", "long_factor"), ("attention_factor",)),
    "factors": (("factors",), ()),
}
_FACTORS = ("factors", "short_factor", "long_factor")  # lists with a number for each pair
_OLD_NAMES = {"su": "longrope"}
_RAMPS = {  # type -> the two bounds of its ramp with their defaults, the lower one first
    "llama3": (("low_freq_factor", 1.0), ("high_freq_factor", 4.0)),
    "yarn": (("beta_slow", 1.0), ("beta_fast", 32.0)),
}
_PARTIAL = "partial_rotary_factor"
_MOST_EXPERTS = 1 << 10  # of a layer
SIZE_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
FULL, SLIDING = "full_attention", "sliding_attention"


def decoder(
    source: Values,
    *,
    context: int,
    kv_heads: int | None = None,
    head_width: int | None = None,
    nulls: Collection[str] = ("num_key_value_heads", "head_dim"),
    eps: float = 1e-6,
    theta: float = 10000.0,
    tied: bool = False,
    rotary: float | None = None,
    ropes: Sequence[str] = ("default", "linear", "llama3", "yarn", "factors"),
    activation: tuple[str, str] = ("hidden_act", "silu"),
) -> Config:
    """Return what every decoder's config says; the arguments are the values of absent keys.

    kv_heads and head_width: None for as many as heads, and an equal share of the width. nulls: those of
    both keys in which null means that too; else it is refused. rotary: the part of a head that turns; None where only
    1 is supported. ropes: the rope types that are supported. activation: its key, and its only supported value.
    """
    source.only(*activation)
    rope_theta, scaling = _rope(source, theta, ropes)
    sizes = _sizes(source, kv_heads, head_width, nulls)
    partial = _partial(source, rotary, sizes["head_dim"])
    pairs = int(sizes["head_dim"] * partial.get(_PARTIAL, 1.0)) // 2
    for name in _FACTORS:
        if scaling and len(scaling.get(name, [])) not in (0, pairs):
            raise source.error("rope_scaling", f"has {len(scaling[name])} {name}, must have {pairs}")
    return {
        "vocab_size": source.count("vocab_size", 1 << 24),
        "max_position_embeddings": source.count("max_position_embeddings", 1 << 31, absent=context),
        "rms_norm_eps": source.number("rms_norm_eps", 1.0, absent=eps),
        "rope_theta": rope_theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": source.flag("tie_word_embeddings", absent=tied, null=False),
        **sizes,
        **partial,
    }


def _partial(source: Values, usual: float | None, width: int) -> Config:
    """Return `partial_rotary_factor`, where it is not 1."""
    if usual is None:
        source.only(_PARTIAL, 1.0)
        return {}
    factor = source.number(_PARTIAL, 1.0, absent=usual)
    if int(width * factor) % 2 or int(width * factor) == 0:
        raise source.error(_PARTIAL, f"is {factor}: {width * factor:g} channels of a head cannot turn as pairs")
    return {} if factor == 1.0 else {_PARTIAL: factor}


def _sizes(source: Values, usual_kv_heads: int | None, usual_width: int | None, nulls: Collection[str]) -> Config:
    hidden = source.count("hidden_size", 1 << 17)
    heads = source.count("num_attention_heads", 1 << 12)
    key = "num_key_value_heads"
    kv_heads = source.count(key, 1 << 12, absent=usual_kv_heads or heads, null=heads if key in nulls else None)
    if heads % kv_heads:
        raise source.error("num_attention_heads", f"is {heads}, must be a multiple of the {kv_heads} key/value heads")
    if not source.is_given("head_dim") and hidden % heads:
        raise source.error("hidden_size", f"is {hidden}, must be a multiple of the {heads} heads, or head_dim given")
    share = max(hidden // heads, 1)
    null = share if "head_dim" in nulls else None
    width = source.count("head_dim", 1 << 12, absent=usual_width or share, null=null)
    if width % 2:
        raise source.error("head_dim", f"is {width}, must be even: rotary embeddings turn pairs")
    return {
        "hidden_size": hidden,
        "intermediate_size": source.count("intermediate_size", 1 << 20),
        "num_hidden_layers": source.count("num_hidden_layers", 1 << 10),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width,
    }


def biases(source: Values, *, mlp: bool, attention: bool = False) -> Config:
    """Return whether attention and the MLP have biases.

    mlp: whether `mlp_bias` is supported. attention: what an absent `attention_bias` means.
    """
    if not mlp:
        source.only("mlp_bias", False, null=True)
    on = {"mlp_bias": True} if source.flag("mlp_bias", absent=False, null=False) else {}
    return {"attention_bias": source.flag("attention_bias", absent=attention, null=False), **on}


def no_windows(source: Values) -> Config:
    """Return the layers of a network without windows."""
    return _layers([FULL] * source.count("num_hidden_layers", 1 << 10), None)


def one_window(source: Values) -> Config:
    """Return the layers of a network whose layers all have one window; null: none has."""
    num_layers = source.count("num_hidden_layers", 1 << 10)
    window = usual_window(source, 4096)
    return _layers([SLIDING if window else FULL] * num_layers, window)


def one_window_or_none(source: Values) -> Config:
    """Return the layers of a network whose layers all have one window, if it is given."""
    return one_window(source) if source.is_given("sliding_window") else no_windows(source)


def windows_from_a_layer_on(source: Values) -> Config:
    """Return the layers where `use_sliding_window` switches windows on, from `max_window_layers` on or as listed."""
    num_layers = source.count("num_hidden_layers", 1 << 10)
    window = usual_window(source, 4096) if source.flag("use_sliding_window", absent=False, null=False) else None
    if source.is_given("layer_types"):
        return _layers(listed(source, num_layers, window), window)
    first = source.count("max_window_layers", 1 << 31, minimum=0, absent=28) if window else num_layers
    return _layers([SLIDING if i >= first else FULL for i in range(num_layers)], window)


def experts(source: Values, count: str, usual_count: int, chosen: str, usual_chosen: int) -> Config:
    """Return how many experts a layer has, and how many a token takes: the keys, and what they mean if absent."""
    num_experts = source.count(count, _MOST_EXPERTS, absent=usual_count)
    num_layers = source.count("num_hidden_layers", 1 << 10)
    if num_experts * num_layers > _MOST_EXPERTS << 6:
        raise source.error(count, f"is {num_experts} in {num_layers} layers, at most {_MOST_EXPERTS << 6} together")
    return {count: num_experts, chosen: source.count(chosen, num_experts, absent=usual_chosen)}


def layer_indices(source: Values, key: str) -> list[int]:
    """Return a list of layers; an empty one if the key is absent or null."""
    indices = source.items(key)
    if not all(type(index) is int for index in indices):
        raise source.error(key, f"must be a list of integers, is {shown(indices)}")
    return indices


def usual_window(source: Values, absent: int) -> int | None:
    """Return the window; None for null."""
    return None if source.is_null("sliding_window") else source.count("sliding_window", 1 << 31, absent=absent)


def windows_by_pattern(source: Values, period: int, usual: int = 4096) -> Config:
    """Return the layers where all but each `period`-th have a window, unless `layer_types` lists them."""
    num_layers = source.count("num_hidden_layers", 1 << 10)
    window = source.count("sliding_window", 1 << 31, absent=usual)
    if source.is_given("layer_types"):
        return _layers(listed(source, num_layers, window), window)
    return _layers([SLIDING if (i + 1) % period else FULL for i in range(num_layers)], window)


def listed(source: Values, num_layers: int, window: int | None) -> list[str]:
    """Return `layer_types`, the kind of each layer; one with a window needs a window."""
    stated = source.raw["layer_types"]
    allowed = (FULL, SLIDING) if window else (FULL,)
    if not isinstance(stated, list) or len(stated) != num_layers or not all(kind in allowed for kind in stated):
        raise source.error("layer_types", f"must be a list of {num_layers} of {', '.join(allowed)}")
    return stated


def _layers(kinds: list[str], window: int | None) -> Config:
    return {"sliding_window": window if SLIDING in kinds else None, "layer_types": kinds}


def _rope(source: Values, usual_theta: float, supported: Sequence[str]) -> tuple[float, Config | None]:
    """Return theta and scaling: two keys, or since transformers 5 one, rope_parameters, for both."""
    key = "rope_parameters" if source.is_given("rope_parameters") else "rope_scaling"
    rope = source.object(key)
    theta = (rope if rope.is_given("rope_theta") else source).number("rope_theta", 1e12, absent=usual_theta)
    kinds = [rope.raw[name] for name in ("rope_type", "type") if rope.is_given(name)] or ["default"]
    kind = _OLD_NAMES.get(kinds[0], kinds[0]) if isinstance(kinds[0], str) else kinds[0]
    if not isinstance(kind, str) or kind not in supported:
        raise source.error(key, f"has rope_type {shown(kind)}, supported are {', '.join(supported)}")
    if kinds[-1] != kinds[0]:
        raise source.error(key, f"has rope_type {kind!r} and type {shown(kinds[-1])}: they must agree")
    values = _rope_values(rope, kind)
    return theta, None if kind == "default" else {"rope_type": kind, **values}


def _rope_values(rope: Values, kind: str) -> Config:
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
    if name in _FACTORS:
        factors = rope.raw.get(name)
        if not isinstance(factors, list) or not factors or not all(is_positive(f, 1e9) for f in factors):
            raise rope.error(name, "must be a list of positive numbers")
        return [float(f) for f in factors]
    if name == "truncate":
        return rope.flag(name)
    if name == "original_max_position_embeddings":
        return rope.count(name, 1 << 31)
    return rope.number(name, 1e9)
