"""What a user hands to a call, checked against the model and turned into requests: prompts and options."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from outpace.engine.loaded import LoadedModel
from outpace.errors import UsageError, shown
from outpace.tokenizer import Tokenizer
from outpace.types import Options, Request


def encode_prompts(prompt: Any, options: Options, tokenizer: Tokenizer) -> tuple[list[list[int]], bool]:
    """Return the token ids of every prompt, and whether they came as a batch.

    Raises UsageError for what is no prompt, and for template variables beside a prompt that has no template.
    """
    prompt = prompt.tolist() if isinstance(prompt, np.ndarray) else prompt
    if _kind(prompt) is not None or not isinstance(prompt, list | tuple):
        return [_encode(prompt, options, tokenizer)], False
    if not prompt:
        raise _no_prompt(prompt)
    return [_encode(part, options, tokenizer) for part in prompt], True


def encode_chat(messages: Sequence[Mapping[str, Any]], options: Options, tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of a chat, with the options' variables for its template."""
    return tokenizer.encode_chat(messages, **_template_variables(options))


def requests(loaded: LoadedModel, prompt: Sequence[int], n: int, options: Options, seed: int) -> list[Request]:
    """Return the requests of `n` samples of one prompt; seed: where the options name none.

    Raises UsageError for token ids that the model has not.
    """
    guess = options.prediction or ()
    prediction = loaded.tokenizer.encode_text(guess) if isinstance(guess, str) else guess
    for name, ids in (
        ("the prompt", prompt),
        ("stop_tokens", options.stop_tokens),
        ("logit_bias", options.sampling.logit_bias),
        ("prediction", prediction),
    ):
        _check_ids(name, ids, loaded.runner.model.config.vocab_size)
    first = Request.of(
        prompt,
        options,
        seed=seed,
        end_tokens=loaded.eos_ids,
        context=loaded.runner.context,
        prediction=prediction,
    )
    return [replace(first, sample_index=index) for index in range(n)]


def drawn_seed() -> int:
    """Return a fresh seed that any JSON reader keeps exactly."""
    return int.from_bytes(os.urandom(8), "little") >> 11


def _check_ids(name: str, ids: Iterable[int], vocab_size: int) -> None:
    wrong = [token for token in ids if not 0 <= token < vocab_size]
    if wrong:
        raise UsageError(f"{name} has token ids outside this model's [0, {vocab_size}): {wrong[:5]}")


def _encode(prompt: Any, options: Options, tokenizer: Tokenizer) -> list[int]:
    prompt = prompt.tolist() if isinstance(prompt, np.ndarray) else prompt
    kind = _kind(prompt)
    if kind is None:
        raise _no_prompt(prompt)
    if kind == "chat":
        return encode_chat(prompt, options, tokenizer)
    for name in _template_variables(options):
        raise UsageError(
            f"{name!r} is for the chat template, but the prompt is raw {'text' if kind == 'text' else 'token ids'}: "
            'give messages, [{"role": "user", "content": "..."}], or leave it out'
        )
    return tokenizer.encode(prompt) if kind == "text" else [int(token) for token in prompt]


def _kind(prompt: Any) -> Literal["text", "chat", "tokens"] | None:
    """Return which one prompt this is; None for a batch, for an empty prompt and for what is none."""
    if isinstance(prompt, str):
        return "text" if prompt else None
    if isinstance(prompt, bytes | bytearray | memoryview) or not isinstance(prompt, Sequence) or not prompt:
        return None
    if all(isinstance(part, int | np.integer) and not isinstance(part, bool) for part in prompt):
        return "tokens"
    return "chat" if all(isinstance(part, Mapping) for part in prompt) else None


def _no_prompt(prompt: Any) -> UsageError:
    cure = "; decode bytes to text first" if isinstance(prompt, bytes | bytearray | memoryview) else ""
    return UsageError(
        "a prompt is a text, a list of messages or a list of token ids, none of them empty (a batch is a list of "
        f"these); got {shown(prompt)}{cure}"
    )


def _template_variables(options: Options) -> dict[str, Any]:
    tools = {} if options.tools is None else {"tools": list(options.tools)}
    return {**(options.chat_template_kwargs or {}), **tools}
