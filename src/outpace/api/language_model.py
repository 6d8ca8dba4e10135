"""Load a model and let it write: `load`, `LanguageModel`."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Unpack, overload

from outpace import models
from outpace.api.calls import Call, Chat, Result, Stream
from outpace.api.options import Options, Settings
from outpace.api.strategies import drafter_for
from outpace.cache import Cache
from outpace.engine.decode import Decoder
from outpace.engine.engine import Engine
from outpace.engine.loaded import LoadedModel
from outpace.errors import UsageError, unknown
from outpace.ops.protocol import Ops
from outpace.runner import Runner
from outpace.tokenizer import Tokenizer
from outpace.tune import Experience
from outpace.types import KVFormat, KVSpec
from outpace.weights.catalog import DEFAULT, cache_folder, resolve
from outpace.weights.checkpoint import open_checkpoint

Quantize = Literal["q8_0", "q4_0"]
Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]
Batch = list[str] | list[list[int]] | list[list[Message]] | list[Prompt]


def load(
    model: str | os.PathLike[str] = DEFAULT,
    *,
    threads: int | None = None,
    ops: str | Ops | None = None,
    kv: KVFormat = "bf16",
    context: int | None = None,
    cache_tokens: int | None = None,
    quantize: Quantize | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LanguageModel:
    """Load a model: a known name, a GGUF file, a Hugging Face folder, or a hub id.

    threads: of the arithmetic (None: the cores available). ops: "native" (C++), "reference" (NumPy), an instance,
    or None for the best there is. kv: storage of keys and values. context: most tokens of a text (None: the
    model's own limit). cache_tokens: most tokens that the KV cache may hold, over all texts and the shared
    prefixes it remembers (None: a quarter of the machine's memory; taken as needed). quantize: pack F32, F16 and
    BF16 weights as "q8_0" or "q4_0" (native ops; another, smaller model as it were). progress(done, total): bytes
    while a known model is fetched.

    Raises UsageError for a name or option that cannot work, WeightsError for a malformed file, DownloadError.
    """
    if kv not in ("f32", "bf16", "int8"):
        raise unknown("kv format", str(kv), ("f32", "bf16", "int8"))
    path = resolve(os.fspath(model), progress)
    checkpoint = open_checkpoint(path)
    chosen = _ops(ops, threads, quantize)
    network = models.build(checkpoint.config, checkpoint.tensors, chosen)
    limit = network.config.context
    if context is not None and not 2 <= context <= limit:
        raise UsageError(f"context must be in [2, {limit}] (this model's own limit), got {context}")
    spec = network.spec(kv)
    capacity = _blocks(spec, cache_tokens, context or limit, chosen.memory_bytes)
    cache = Cache(chosen, spec, capacity=capacity, lookback=network.lookback, fingerprint=checkpoint.fingerprint)
    tokenizer = Tokenizer.from_gguf(checkpoint.gguf) if checkpoint.gguf else Tokenizer.from_folder(path)
    return LanguageModel(
        LoadedModel(
            Runner(network, chosen, cache, context),
            tokenizer,
            name=os.fspath(model),
            path=checkpoint.path,
            fingerprint=checkpoint.fingerprint,
            eos_ids=checkpoint.eos_ids | tokenizer.eos_ids,
            num_bytes=checkpoint.num_bytes,
            costs=cache_folder().with_name("costs"),
        )
    )


def default_ops() -> Ops:
    """Return the fastest ops implementation that is installed, on all cores available."""
    return _ops(None, None, None)


def _ops(ops: str | Ops | None, threads: int | None, quantize: Quantize | None) -> Ops:
    """Return the ops implementation that was asked for; without a wish, the fastest that is installed."""
    if ops is not None and not isinstance(ops, str):
        if threads is not None or quantize is not None:
            raise UsageError("threads and quantize belong to the ops instance that was given: set them there")
        return ops
    if ops not in (None, "native", "reference"):
        raise unknown("ops", ops, ("native", "reference"))
    if quantize not in (None, "q8_0", "q4_0"):
        raise unknown("quantize", quantize, ("q8_0", "q4_0"))
    if ops == "reference" and quantize is not None:
        raise UsageError("the reference ops compute in float32 and cannot quantize: use the native ops")
    if ops != "reference":
        try:
            from outpace.ops.native import NativeOps

            return NativeOps(threads=threads, quantize=quantize)
        except ImportError as error:
            cure = "reinstall outpace where a C++ compiler is present (pip install --force-reinstall outpace)"
            if ops == "native" or quantize is not None:
                raise UsageError(f"the native ops are not installed ({error}): {cure}") from error
            warnings.warn(f"the native ops are missing, so the slow NumPy reference is used: {cure}", stacklevel=3)
    from outpace.ops.reference import ReferenceOps

    return ReferenceOps(threads=len(os.sched_getaffinity(0)) if threads is None else threads)


def _blocks(spec: KVSpec, cache_tokens: int | None, context: int, memory_bytes: int) -> int:
    """Return the cache's capacity in blocks: what was asked for, or a quarter of memory and at least one context."""
    if cache_tokens is None:
        cache_tokens = max(context + 2 * spec.block_size, memory_bytes // 4 // spec.bytes_per_token)
    if cache_tokens < 2 * spec.block_size:
        raise UsageError(f"cache_tokens must be at least {2 * spec.block_size}, got {cache_tokens}")
    return cache_tokens // spec.block_size


class LanguageModel:
    """A loaded model. Calls from several threads share its passes; each call's blocks are freed when it ends.

    A prompt is raw text (str), one chat (list of {"role", "content"}, put through the model's template), token
    ids (list[int]), or a list of any of these: a batch, answered by a list.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.engine = Engine(Decoder(loaded.runner))
        self.runner = loaded.runner
        self.tokenizer = loaded.tokenizer
        self.name = loaded.name
        self.path = loaded.path
        self.config = loaded.runner.model.config
        self.eos_ids = loaded.eos_ids
        self.num_bytes = loaded.num_bytes
        self._companions: dict[str, LanguageModel] = {}
        self._loading = threading.Lock()

    @property
    def experience(self) -> Experience:
        """What strategy "auto" has learned about this model on this machine."""
        return self.loaded.experience

    def close(self) -> None:
        """Cancel what is under way and take no more calls. Optional: a model that is dropped closes itself."""
        self.engine.close()

    # The types overlap on purpose: n=1 (an int like any other) answers with the result itself.
    @overload
    def generate(self, prompt: Prompt, *, n: Literal[1] = 1, **options: Unpack[Options]) -> Result: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, prompt: Prompt, *, n: int, **options: Unpack[Options]) -> list[Result]: ...
    @overload
    def generate(self, prompt: Batch, *, n: Literal[1] = 1, **options: Unpack[Options]) -> list[Result]: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, prompt: Batch, *, n: int, **options: Unpack[Options]) -> list[list[Result]]: ...
    def generate(
        self, prompt: Prompt | Batch, *, n: int = 1, **options: Unpack[Options]
    ) -> Result | list[Result] | list[list[Result]]:
        """Write on from the prompt and return a `Result`; with n > 1, a list of n samples.

        A batch gives a list of what each of its prompts alone gives. See `Settings` for the options.
        Raises UsageError for what cannot work (a prompt beyond the context among it).
        """
        prompts, is_batch = self._prompts(prompt)
        with self._call(prompts, options, n) as call:
            call.wait()
            results = [[call.result(g) for g in group] for group in call.groups]
        if n > 1:
            return results if is_batch else results[0]
        return [result for (result,) in results] if is_batch else results[0][0]

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """Return an iterator of `Chunk`s; closing it early frees everything. Its `.result` is there at the end."""
        prompts, is_batch = self._prompts(prompt)
        if is_batch:
            raise UsageError("a stream writes one text: give one prompt, or use generate for a batch")
        return Stream(self._call(prompts, options, follow=True))

    def chat(self, system: str | None = None, **options: Unpack[Options]) -> Chat:
        """Return a conversation that keeps its messages, and its keys and values in the cache, between turns."""

        def start(messages: list[dict[str, str]], options: Mapping[str, Any], keep: Callable[[Result], None]) -> Stream:
            prompt = self.tokenizer.encode_chat(messages)
            return Stream(self._call([prompt], options, follow=True), on_end=keep)

        return Chat(start, system, options)

    def check(self, **options: Unpack[Options]) -> None:
        """Raise UsageError for options that cannot work on this model, without generating anything."""
        drafter_for(self.loaded, Settings.of(options), self._draft_model(options))

    def companion(self, model: LanguageModel | str | os.PathLike[str]) -> LanguageModel:
        """Return a second model on the same ops settings and KV format (loaded once per name): for drafting."""
        if isinstance(model, LanguageModel):
            return model
        name = os.fspath(model)
        with self._loading:
            if name not in self._companions:
                self._companions[name] = load(name, ops=self.runner.ops, kv=self.runner.cache.spec.format)
            return self._companions[name]

    def _call(self, prompts: list[list[int]], options: Mapping[str, Any], n: int = 1, *, follow: bool = False) -> Call:
        """Submit prompts; the draft model that the options name is loaded first."""
        draft_model = self._draft_model(options)
        return Call(self.loaded, self.engine, prompts, options, n, draft_model=draft_model, follow=follow)

    def _draft_model(self, options: Mapping[str, Any]) -> LoadedModel | None:
        draft = options.get("draft_model")
        return None if draft is None else self.companion(draft).loaded

    def _prompts(self, prompt: Prompt | Batch) -> tuple[list[list[int]], bool]:
        """Return token ids of every prompt, and whether they came as a batch."""
        if isinstance(prompt, str) or not isinstance(prompt, Sequence) or not prompt or _is_one_prompt(prompt):
            return [self._encode(prompt)], False
        return [self._encode(part) for part in prompt], True

    def _encode(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str) and prompt:
            return self.tokenizer.encode(prompt)
        if isinstance(prompt, Sequence) and prompt and _is_one_prompt(prompt):
            return list(prompt) if isinstance(prompt[0], int) else self.tokenizer.encode_chat(prompt)
        raise UsageError(
            "a prompt is a text, a list of messages or a list of token ids, none of them empty (a batch is a list of "
            f"these); got {prompt!r:.80}"
        )


def _is_one_prompt(prompt: Sequence[Any]) -> bool:
    """Whether this is one chat (messages) or one text (token ids), and no batch."""
    return all(isinstance(part, int) for part in prompt) or all(isinstance(part, Mapping) for part in prompt)
