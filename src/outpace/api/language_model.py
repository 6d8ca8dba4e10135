"""Load a model and let it write: `load`, `LanguageModel`."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack, cast, overload

from outpace import models
from outpace.api.adapted import adapted
from outpace.api.calls import Call, Chat, Result, Stream
from outpace.api.options import encode_chat, encode_prompts
from outpace.api.pack_cache import packed_model
from outpace.api.preflight import check_room, needs
from outpace.api.quantise import Rounded
from outpace.api.strategies import check_strategy, drafter_for
from outpace.api.trained import load_trained, opened, shipped, untuned
from outpace.cache import Cache
from outpace.drafters.router import Experience
from outpace.engine.decode import Decoder
from outpace.engine.engine import Engine
from outpace.engine.loaded import LoadedModel
from outpace.errors import UsageError, instance, integer, one_of, shown
from outpace.models.checkpoint import open_checkpoint
from outpace.ops.machine import physical_cores
from outpace.ops.protocol import Ops
from outpace.runner import Runner
from outpace.tokenizer import Tokenizer
from outpace.types import KVFormat, KVSpec, OptionKeywords, Options, Quantization
from outpace.weights.catalog import DEFAULT, cache_folder, resolve, resolve_drafter

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
    quantize: Quantization | None = None,
    drafter: str | os.PathLike[str] | None = None,
    adapter: str | os.PathLike[str] | None = None,
    pack_cache: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> LanguageModel:
    """Load a model: a known name, a GGUF file, a Hugging Face folder, or a hub id.

    Of a hub id "owner/name" the folder is fetched or, where there are GGUF files alone, one of them (the first of
    Q4_K_M, Q4_K_S, Q4_1, ...); "owner/name:Q8_0" and "owner/name:file.gguf" name one.

    threads: of the arithmetic (None: the cores available). ops: "native" (C++), "reference" (NumPy), an instance,
    or None for the best there is. kv: storage of keys and values. context: maximum tokens of a sequence (None: the
    model's own limit; of a model with "longrope", such as Phi-3: the limit up to which it computes as for short texts).
    cache_tokens: maximum tokens that the KV cache may hold, over all sequences and the shared prefixes it remembers
    (None: a quarter of the machine's memory; taken as needed). quantize: round F32, F16 and BF16 weights as
    `outpace.quantize` does, to "q8_0", "q4_k", ... (native ops; another, smaller model as it were). drafter: one that
    was trained for this model, for the strategy of its kind and auto: its file, folder or hub id (None: the one that
    the package brings for the default model).
    adapter: low-rank changes that `train diffusion`, `train jacobi` or `train medusa --joint` wrote for this model: a
    GGUF file. One for diffusion works where block_diffusion and mask_predict refine, and nowhere else; the others make
    another model of it. pack_cache: keep large models on disk as they are packed, so that the next load maps them, in a
    folder of the user's cache of at most 32 GiB. progress(done, total): bytes while a known model is fetched.

    Raises UsageError for a name or option that cannot work, and for a model that memory has no room for (weights,
    drafter, and the `context` or `cache_tokens` asked for), WeightsError for a malformed file, DownloadError.
    """
    instance("model", model, str | os.PathLike, "a name or a path")
    one_of("kv format", kv, ("f32", "bf16", "int8"))
    path = resolve(os.fspath(model), progress)
    checkpoint = open_checkpoint(path)
    chosen = _ops(ops, threads)
    rounded = None if quantize is None else Rounded(checkpoint, quantize, chosen)
    context = None if context is None else integer("context", context, 2)
    if drafter is not None:
        drafter = resolve_drafter(os.fspath(instance("drafter", drafter, str | os.PathLike, "a path or a hub id")))
    limit = models.sizes(checkpoint.config if context is None else checkpoint.config | {"context": context}).context
    if context is not None and context > limit:
        raise UsageError(f"context must be in [2, {limit}] (this model's own limit), got {context}")
    if cache_tokens is not None:
        cache_tokens = integer("cache_tokens", cache_tokens, 1)
    trained = shipped(checkpoint) if drafter is None else opened(drafter)
    found = needs(
        checkpoint, chosen, kv=kv, context=context, cache_tokens=cache_tokens, drafter=trained, rounded=rounded
    )
    check_room(found, path, kv)
    packed = packed_model(checkpoint, chosen, quantize) if pack_cache else None
    tensors = checkpoint.tensors if rounded is None else rounded
    network = models.build(checkpoint.config, tensors, chosen, context, packed)
    spec = network.spec(kv)
    capacity = _blocks(spec, cache_tokens, context or limit, chosen.memory_bytes)
    tokenizer = Tokenizer.from_gguf(checkpoint.gguf) if checkpoint.gguf else Tokenizer.from_folder(path)
    name = os.fspath(model)
    own = adapted(None if adapter is None else Path(adapter), network, checkpoint, tokenizer, name)
    if trained is not None and (warning := untuned(trained, own.tuned_by, name)):
        warnings.warn(warning, stacklevel=2)
    cache = Cache(chosen, spec, capacity=capacity, max_window=network.max_window, fingerprint=own.fingerprint)
    runner = Runner(network, chosen, cache, context, adapter=own.adapter)
    loaded = LoadedModel(
        runner,
        tokenizer,
        name=name,
        path=checkpoint.path,
        fingerprint=own.fingerprint,
        eos_ids=checkpoint.eos_ids | tokenizer.eos_ids,
        num_bytes=checkpoint.num_bytes,
        costs=cache_folder().with_name("costs"),
        trained=None if trained is None else load_trained(trained, checkpoint, runner, tokenizer, name),
        filling=own.filling,
    )
    chosen.synchronize()  # packed while the tokenizer was built; from here on the file may be replaced
    if packed is not None:
        packed.save()
    return LanguageModel(loaded, pack_cache)


def default_ops() -> Ops:
    """Return the fastest ops implementation that is installed, on all cores available."""
    return _ops(None, None)


def _ops(ops: str | Ops | None, threads: int | None) -> Ops:
    """Return the ops implementation that was asked for; without a wish, the fastest that is installed."""
    if ops is not None and not isinstance(ops, str):
        if not hasattr(ops, "plan"):
            raise UsageError(f'ops must be "native", "reference" or an instance of one, got {shown(ops)}')
        if threads is not None:
            raise UsageError("threads belong to the ops instance that was given: set them there")
        return ops
    if ops is not None:
        one_of("ops", ops, ("native", "reference"))
    if ops != "reference":
        try:
            from outpace.ops.native import NativeOps

            return NativeOps(threads=threads)
        except ImportError as error:
            cure = "reinstall outpace where a C++ compiler is present (pip install --force-reinstall outpace)"
            if ops == "native":
                raise UsageError(f"the native ops are not installed ({error}): {cure}") from error
            warnings.warn(f"the native ops are missing, so the slow NumPy reference is used: {cure}", stacklevel=3)
    from outpace.ops.reference import ReferenceOps

    return ReferenceOps(threads=physical_cores() if threads is None else threads)


def _blocks(spec: KVSpec, cache_tokens: int | None, context: int, memory_bytes: int) -> int:
    """Return the cache's capacity in blocks: what was asked for, or a quarter of memory and at least one context."""
    if cache_tokens is None:
        cache_tokens = max(context + 2 * spec.block_size, memory_bytes // 4 // spec.bytes_per_token)
    return integer("cache_tokens", cache_tokens, 2 * spec.block_size) // spec.block_size


class LanguageModel:
    """A loaded model. Calls from several threads share its passes; each call's blocks are freed when it ends.

    A prompt is raw text (str), one chat (list of {"role", "content"}, put through the model's template), token
    ids (list[int]), or a list of any of these: a batch, answered by a list.
    """

    def __init__(self, loaded: LoadedModel, pack_cache: bool = True) -> None:
        self.loaded = loaded
        self._pack_cache = pack_cache  # of companions too
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

    def __repr__(self) -> str:
        ops, kv = self.runner.ops.name, self.runner.cache.spec.format
        return (
            f"<LanguageModel {self.name}: {self.config.model_type}, {self.num_bytes / 1e6:.0f} MB, {ops} ops, "
            f"keys and values in {kv}, context {self.runner.context:,}>"
        )

    @property
    def experience(self) -> Experience:
        """What strategy "auto" has learned about this model on this machine."""
        return self.loaded.experience

    def close(self) -> None:
        """Cancel what is under way and take no more calls. Optional: a model that is dropped closes itself."""
        self.engine.close()

    # The types overlap on purpose: n=1 (an int like any other) answers with the result itself.
    @overload
    def generate(self, prompt: Prompt, *, n: Literal[1] = 1, **options: Unpack[OptionKeywords]) -> Result: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, prompt: Prompt, *, n: int, **options: Unpack[OptionKeywords]) -> list[Result]: ...
    @overload
    def generate(self, prompt: Batch, *, n: Literal[1] = 1, **options: Unpack[OptionKeywords]) -> list[Result]: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, prompt: Batch, *, n: int, **options: Unpack[OptionKeywords]) -> list[list[Result]]: ...
    def generate(
        self, prompt: Prompt | Batch, *, n: int = 1, **options: Unpack[OptionKeywords]
    ) -> Result | list[Result] | list[list[Result]]:
        """Write on from the prompt and return a `Result`; with n > 1, a list of n samples.

        A batch gives a list of what each of its prompts alone gives. The options are the fields of
        `outpace.types.Options` and `SamplingParams`; None means "not given".
        Raises UsageError for what cannot work (a prompt beyond the context among it).
        """
        n = 1 if n is None else integer("n", n, 1)
        wanted = Options.of(options)
        prompts, is_batch = encode_prompts(prompt, wanted, self.tokenizer)
        with self._call(prompts, wanted, n) as call:
            call.wait()
            results = [[call.result(g) for g in group] for group in call.groups]
        if n > 1:
            return results if is_batch else results[0]
        return [result for (result,) in results] if is_batch else results[0][0]

    def stream(self, prompt: Prompt, **options: Unpack[OptionKeywords]) -> Stream:
        """Return an iterator of `Chunk`s; closing it early frees everything. Its `.result` is there at the end."""
        wanted = Options.of(options)
        prompts, is_batch = encode_prompts(prompt, wanted, self.tokenizer)
        if is_batch:
            raise UsageError("a stream writes one text: give one prompt, or use generate for a batch")
        return Stream(self._call(prompts, wanted, follow=True))

    def chat(self, system: str | None = None, **options: Unpack[OptionKeywords]) -> Chat:
        """Return a conversation that keeps its messages, and its keys and values in the cache, between turns."""

        def start(messages: list[dict[str, str]], wanted: Options, keep: Callable[[Result], None]) -> Stream:
            prompt = encode_chat(messages, wanted, self.tokenizer)
            return Stream(self._call([prompt], wanted, follow=True), on_end=keep)

        return Chat(start, system, options)

    def check(self, **options: Unpack[OptionKeywords]) -> None:
        """Raise UsageError for options that cannot work on this model, without generating anything."""
        wanted = Options.of(options)
        drafter_for(self.loaded, wanted, self._draft_model(wanted))

    def companion(self, model: LanguageModel | str | os.PathLike[str]) -> LanguageModel:
        """Return a second model on the same ops settings and KV format (loaded once per name): for drafting."""
        if isinstance(model, LanguageModel):
            return model
        if not isinstance(model, str | os.PathLike):
            raise UsageError(f"a draft model is a model's name, its path, or a loaded model, got {shown(model)}")
        name = os.fspath(model)
        with self._loading:
            if name not in self._companions:
                self._companions[name] = load(
                    name, ops=self.runner.ops, kv=self.runner.cache.spec.format, pack_cache=self._pack_cache
                )
            return self._companions[name]

    def _call(self, prompts: list[list[int]], options: Options, n: int = 1, *, follow: bool = False) -> Call:
        """Submit prompts; the draft model that the options name is loaded first."""
        draft_model = self._draft_model(options)
        return Call(self.loaded, self.engine, prompts, options, n, draft_model=draft_model, follow=follow)

    def _draft_model(self, options: Options) -> LoadedModel | None:
        check_strategy(options)  # before a model is loaded for nothing
        draft = cast("LanguageModel | str | os.PathLike[str] | None", options.draft_model)
        return None if draft is None else self.companion(draft).loaded
