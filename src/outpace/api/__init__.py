"""Load a model and let it write: `load`, `LanguageModel`, and what their calls return."""

from outpace.api.calls import Chat, Chunk, Result, Stream
from outpace.api.language_model import LanguageModel, Message, Prompt, default_ops, load
from outpace.api.quantise import Quantised, quantize

__all__ = [
    "Chat",
    "Chunk",
    "LanguageModel",
    "Message",
    "Prompt",
    "Quantised",
    "Result",
    "Stream",
    "default_ops",
    "load",
    "quantize",
]
