"""The options that load a model, and loading it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from outpace.cli.fields import Fields, Spelling
from outpace.cli.progress import progress_on_stderr
from outpace.types import Quantization
from outpace.weights.catalog import DEFAULT, KNOWN

if TYPE_CHECKING:
    from outpace.api import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Loading:
    """The parameters of `outpace.load`, as the command line spells them."""

    model: str = field(
        default=DEFAULT, metadata={"help": "A known name (`outpace models`), a GGUF file, a folder or a hub id."}
    )
    threads: int | None = field(default=None, metadata={"help": "Number of CPU threads. (default: all cores)"})
    ops: Literal["native", "reference"] | None = field(
        default=None, metadata={"help": "Arithmetic in C++ or in NumPy. (default: native, if it is installed)"}
    )
    kv: Literal["f32", "bf16", "int8"] = field(default="bf16", metadata={"help": "Storage format of the KV cache."})
    context: int | None = field(
        default=None,
        metadata={"help": "Maximum length of prompt and answer together, in tokens. (default: the model's limit)"},
    )
    cache_tokens: int | None = field(
        default=None, metadata={"help": "Capacity of the KV cache, in tokens. (default: a quarter of the memory)"}
    )
    quantize: Quantization | None = field(
        default=None,
        metadata={"help": "Round F32, F16 and BF16 weights while loading, as `outpace quantize` does: another model."},
    )
    drafter: str | None = field(
        default=None,
        metadata={"help": "A drafter trained for the model: a file, a folder or a hub id. (default: the model's own)"},
    )
    adapter: str | None = field(
        default=None,
        metadata={"help": "What `train diffusion`, `jacobi` or `medusa --joint` made for the model: a GGUF file."},
    )
    pack_cache: bool = field(
        default=True,
        metadata={"help": "Keep large models on disk as they are packed, which makes their next load quicker."},
    )


PACKING: dict[str, Spelling] = {
    "pack_cache": Spelling(
        bool,
        "Do not keep large models on disk as they are packed, which makes their next load quicker.",
        lambda option, value: not value,
        option="--no-pack-cache",
    )
}


def loading_fields(*without: str) -> Fields:
    """Return the options that load a model, under a heading of their own in the help text."""
    return Fields(
        {Loading: "Model"},
        short={"model": "-m"},
        spellings=PACKING,
        without=frozenset(without),
        defaults={"pack_cache": False},  # of the option, which says the opposite
    )


def open_model(model: str, **settings: Any) -> LanguageModel:
    """Load a model, fetched first where it is a known one that is not here."""
    from outpace.api import load

    with fetching(model) as progress:
        return load(model, progress=progress, **settings)


@contextmanager
def fetching(model: str) -> Iterator[Callable[[int, int], None] | None]:
    """Give the callback that shows the download on standard error, where a known model has to be fetched first."""
    if model not in KNOWN or KNOWN[model].present:
        yield None
        return
    with progress_on_stderr() as show:
        yield lambda done, total: show(done, total, f"fetching {model}: {done / 1e6:.0f} of {total / 1e6:.0f} MB")
