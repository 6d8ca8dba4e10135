"""What an architecture says of itself, in one file `models/<model_type>.py`, and the register of those files.

A file's `ARCHITECTURE` holds three things: which configuration keys it reads and what they may say (`config`), which
tensors each of its layers has (`layer`), and what the network does with them that the plain one does not (`sizes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from outpace.models.config import Config, ModelConfig
from outpace.models.tensors import Places
from outpace.types import MaskFilling
from outpace.weights.compressed import METHODS
from outpace.weights.gguf import GGUFFile
from outpace.weights.values import Values, shown


@dataclass(frozen=True, slots=True)
class Architecture:
    """One kind of network.

    model_type: its name in config.json. gguf: its `general.architecture` in GGUF files.
    config: return the checked config (see `outpace.models.keys`). sizes: of such a config, the network's numbers.
    layer: return the tensors of one layer by their place in it (see `outpace.models.tensors`); expert_layer: those of a
    layer that has experts, where others have none.

    gguf_mark: where several share a name in GGUF files, the metadata key (after the name) that only this one has.
    gguf_keys: further keys: ours -> the metadata key after the name. gguf_config: given a file and its config, return
    what the file says in other ways; gguf_tensors: those that it reads for that, which are not the network's.
    pairs, gguf_pairs: whether rows 2i and 2i + 1 of a query's or key's head are a rotary pair in a folder, in a GGUF
    file; else rows i and i + half are, as in the network. norms_less_one: a folder's norm weights lack 1.
    usual_eos: the end token of a folder that is silent about it. quant_method: of quantised folders that config reads.
    filling: of a checked config, how the network fills masks. folder_keys: what a folder's config.json calls our keys,
    where it has names of its own; folder_names: what its tensors' names have in place of parts of ours.
    usual: what keys of sizes mean that are absent from the `text_config` of a multimodal folder.
    """

    model_type: str
    gguf: str
    config: Callable[[Values], Config]
    layer: Callable[[ModelConfig], Places]
    sizes: Callable[[Config], ModelConfig] = ModelConfig.from_hf
    expert_layer: Callable[[ModelConfig], Places] | None = None
    gguf_mark: str | None = None
    gguf_keys: Mapping[str, str] = field(default_factory=dict)
    gguf_config: Callable[[GGUFFile, Config], Config] | None = None
    gguf_tensors: tuple[str, ...] = ()
    pairs: bool = False
    gguf_pairs: bool = False
    norms_less_one: bool = False
    usual_eos: int | None = None
    quant_method: str | None = None
    filling: Callable[[Config], MaskFilling] | None = None
    folder_keys: Mapping[str, str] = field(default_factory=dict)
    folder_names: Mapping[str, str] = field(default_factory=dict)
    usual: Mapping[str, Any] = field(default_factory=dict)

    def folder_name(self, name: str) -> str:
        """Return what a folder calls a tensor of ours."""
        for ours, theirs in self.folder_names.items():
            name = name.replace(ours, theirs)
        return name

    def places(self, sizes: ModelConfig, index: int) -> Places:
        """Return the tensors of the layer with this index, by their place in it."""
        has_experts = sizes.experts is not None and index in sizes.experts.layers
        return self.expert_layer(sizes) if self.expert_layer and has_experts else self.layer(sizes)


@cache
def architectures() -> dict[str, Architecture]:
    """Return all architectures by their model_type: one for each file here that holds an `ARCHITECTURE`."""
    package = import_module(__package__)
    modules = [import_module(f"{package.__name__}.{info.name}") for info in iter_modules(package.__path__)]
    found = [module.ARCHITECTURE for module in modules if hasattr(module, "ARCHITECTURE")]
    return {architecture.model_type: architecture for architecture in found}


def normalise(raw: Mapping[str, Any], where: str, names: Mapping[str, str] | None = None) -> Config:
    """Return the checked config. `where` is the file; `names` tells what it calls our keys, for errors.

    Raises WeightsError for what is missing, of the wrong type, absurd, inconsistent or not supported.
    """
    source = Values(raw, where, names or {})
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in architectures():
        raise source.error("model_type", f"is {shown(model_type)}, supported are {', '.join(architectures())}")
    architecture = architectures()[model_type]
    method = source.object("quantization_config").text("quant_method")
    if method is None or method != architecture.quant_method:
        if method is not None:
            raise source.error(
                "quantization_config", f"has the quant_method {shown(method)}, supported are {', '.join(METHODS)}"
            )
        source.only("quantization_config", None, null=True)
    return {"model_type": model_type} | architecture.config(source)


def folder_config(raw: Mapping[str, Any], where: str) -> Config:
    """Return the checked config of a folder, whose architecture may have names of its own for keys."""
    model_type = raw.get("model_type")
    own = architectures().get(model_type) if isinstance(model_type, str) else None
    keys = own.folder_keys if own else {}
    return normalise(dict(raw) | {ours: raw[theirs] for ours, theirs in keys.items() if theirs in raw}, where, keys)


def architecture_of(config: Config) -> Architecture:
    """Return the architecture of a checked config."""
    return architectures()[config["model_type"]]


def sizes(config: Config) -> ModelConfig:
    """Return the network's numbers of a checked config."""
    return architecture_of(config).sizes(config)
