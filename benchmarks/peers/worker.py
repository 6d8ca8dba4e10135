"""One other engine in a process of its own: run by path, with the Python of a venv that has the engine.

It imports nothing of Outpace. It speaks JSON lines: a first line on stdin says what to load (`engine`, `model`,
`variant`, `draft`, `threads`, `context`), its answer names the engine's version, the weights' format and the settings,
or an `error`. Each further line is a batch (`prompts`: as many token ids each, `max_new_tokens`), its answer the tokens
and seconds. Greedy only.

Each engine is set up as its own documentation shows for a CPU (named in its class); what differs from its defaults
there is the number of threads, the same for everybody, and that nothing is cached from one call to the next.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from importlib import metadata
from typing import Any

Written = tuple[list[list[int]], float]  # new tokens of each sequence, seconds until all had their first


class LlamaCpp:
    """llama.cpp through llama-cpp-python, plain or with its prompt lookup. Reads GGUF as it is.

    A single sequence goes through its own loop; a batch through `llama_decode`. README, "Speculative Decoding": drafts
    of 10 tokens are good for a GPU, 2 perform better on machines with a CPU only.
    """

    package = "llama-cpp-python"
    lookup_tokens = 2

    def __init__(self, order: dict[str, Any]) -> None:
        self.api = importlib.import_module("llama_cpp")
        self.weights = "as stored"
        self.order, self.lookup, self.batch = order, order["variant"] == "lookup", order["batch"]
        self.settings = f"drafts of {self.lookup_tokens}" if self.lookup else "defaults"
        if self.batch == 1:
            self.model = self._single()
        else:
            self.context = self._several()

    def _single(self) -> Any:
        draft = None
        if self.lookup:
            speculative = importlib.import_module("llama_cpp.llama_speculative")
            draft = speculative.LlamaPromptLookupDecoding(num_pred_tokens=self.lookup_tokens)
        return self.api.Llama(
            self.order["model"], n_ctx=self.order["context"], n_threads=self.order["threads"],
            n_threads_batch=self.order["threads"], draft_model=draft, verbose=False,
        )  # fmt: skip

    def _several(self) -> Any:
        if self.lookup:
            raise ValueError("looks up for one sequence at a time")
        self.numpy = importlib.import_module("numpy")
        api, threads = self.api, self.order["threads"]
        api.llama_backend_init()
        model = api.llama_model_load_from_file(self.order["model"].encode(), api.llama_model_default_params())
        if not model:
            raise ValueError(f"cannot load {self.order['model']}")
        params = api.llama_context_default_params()
        params.n_ctx = self.order["context"] * self.batch
        params.n_seq_max = self.batch
        params.n_threads = params.n_threads_batch = threads
        self.num_words = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        self.room = params.n_batch
        self.rows = api.llama_batch_init(self.room, 0, 1)
        context = api.llama_init_from_model(model, params)
        if not context:
            raise ValueError(f"no context for {self.batch} sequences of {self.order['context']} tokens")
        return context

    def write(self, prompts: list[list[int]], count: int) -> Written:
        return self._write_one(prompts[0], count) if self.batch == 1 else self._write_several(prompts, count)

    def _write_one(self, prompt: list[int], count: int) -> Written:
        started, first, tokens = time.perf_counter(), 0.0, []
        self.model.reset()
        for token in self.model.generate(prompt, temp=0.0, repeat_penalty=1.0):
            first = first or time.perf_counter() - started
            tokens.append(int(token))
            if len(tokens) == count:
                break
        return [tokens], first

    def _write_several(self, prompts: list[list[int]], count: int) -> Written:
        started = time.perf_counter()
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        written: list[list[int]] = [[] for _ in prompts]
        size = len(prompts[0])
        rows = [(prompt[i], i, s, i == size - 1) for s, prompt in enumerate(prompts) for i in range(size)]
        for begin in range(0, len(rows), self.room):
            self._decode(rows[begin : begin + self.room], written)
        first = time.perf_counter() - started
        for step in range(1, count):
            self._decode([(own[-1], size + step - 1, s, True) for s, own in enumerate(written)], written)
        return written, first

    def _decode(self, rows: list[tuple[int, int, int, bool]], written: list[list[int]]) -> None:
        """Run rows (token, position, sequence, wanted) and add the likeliest token after every wanted one."""
        batch = self.rows
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        if self.api.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        for i, (_, _, sequence, wanted) in enumerate(rows):
            if wanted:
                logits = self.api.llama_get_logits_ith(self.context, i)
                written[sequence].append(int(self.numpy.ctypeslib.as_array(logits, (self.num_words,)).argmax()))


class Transformers:
    """Hugging Face transformers: plain, prompt lookup or assisted. A GGUF file is dequantised on loading.

    "Optimizing inference": prompt lookup with 3 tokens, assisted generation with the assistant's own defaults.
    """

    package = "transformers"
    lookup_tokens = 3

    def __init__(self, order: dict[str, Any]) -> None:
        torch = importlib.import_module("torch")
        self.torch = torch
        self.transformers = importlib.import_module("transformers")
        torch.set_num_threads(order["threads"])
        variant, _, kind = order["variant"].partition("-")
        if variant != "plain" and order["batch"] > 1:
            raise ValueError("drafts for one sequence at a time")
        dtype = torch.bfloat16 if kind == "bf16" else torch.float32
        self.weights = f"dequantised to {kind}" if order["model"].endswith(".gguf") else kind
        self.model = self._open(order["model"], dtype)
        self.extra: dict[str, Any] = {}
        self.settings = "defaults"
        if variant == "lookup":
            self.extra = {"prompt_lookup_num_tokens": self.lookup_tokens}
            self.settings = f"drafts of {self.lookup_tokens}"
        if variant == "assisted":
            self.extra = {"assistant_model": self._open(order["draft"], dtype)}

    def _open(self, path: str, dtype: Any) -> Any:
        automatic = self.transformers.AutoModelForCausalLM
        if path.endswith(".gguf"):
            folder, name = os.path.split(path)
            return automatic.from_pretrained(folder, gguf_file=name, dtype=dtype).eval()
        return automatic.from_pretrained(path, dtype=dtype).eval()

    def write(self, prompts: list[list[int]], count: int) -> Written:
        watch = _FirstPut()
        ids = self.torch.tensor(prompts)
        with self.torch.inference_mode():
            answer = self.model.generate(
                ids, attention_mask=self.torch.ones_like(ids), do_sample=False, min_new_tokens=count,
                max_new_tokens=count, repetition_penalty=1.0, temperature=None, top_p=None, top_k=None, streamer=watch,
                pad_token_id=0, **self.extra,
            )  # fmt: skip
        return answer[:, ids.shape[1] :].tolist(), watch.first


class _FirstPut:
    """A streamer that remembers when the first token came; what is put before it is the prompt."""

    def __init__(self) -> None:
        self.started, self.first, self.puts = time.perf_counter(), 0.0, 0

    def put(self, value: Any) -> None:
        self.puts += 1
        if self.puts == 2:
            self.first = time.perf_counter() - self.started

    def end(self) -> None: ...


class OnnxRuntime:
    """onnxruntime-genai: a folder that its model builder has made.

    The model cards of its own int4 models advise accuracy level 4 for speed on CPUs: give the builder
    `--extra_options int4_accuracy_level=4`. ONNX Runtime's "Thread management": threads spin between operations.
    """

    package = "onnxruntime-genai"
    settings = "defaults"

    def __init__(self, order: dict[str, Any]) -> None:
        self.og = importlib.import_module("onnxruntime_genai")
        config = self.og.Config(order["model"])
        config.overlay(
            json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": order["threads"]}}}})
        )
        self.model = self.og.Model(config)
        self.weights = "as converted"

    def write(self, prompts: list[list[int]], count: int) -> Written:
        started, first = time.perf_counter(), 0.0
        params = self.og.GeneratorParams(self.model)
        length = len(prompts[0]) + count
        params.set_search_options(
            do_sample=False, max_length=length, min_length=length, repetition_penalty=1.0, batch_size=len(prompts)
        )
        generator = self.og.Generator(self.model, params)
        generator.append_tokens(importlib.import_module("numpy").array(prompts, dtype="int32"))
        steps: list[list[int]] = []
        while len(steps) < count:
            generator.generate_next_token()
            steps.append(list(map(int, generator.get_next_tokens())))
            first = first or time.perf_counter() - started
        return [list(own) for own in zip(*steps, strict=True)], first


class OpenVino:
    """OpenVINO GenAI, plain or with its prompt lookup: a converted folder, or a GGUF file of the kinds it reads.

    Its sample of prompt lookup drafts 5 tokens after a match of up to 3. Whoever passes a scheduler's configuration
    loses the one that `LLMPipeline` makes for latency, in which a prompt is read in one pass: it is set as there, but
    for the prefix cache, which would spare all calls after the first the prompt.
    """

    package = "openvino-genai"
    lookup_tokens, lookup_ngram = 5, 3

    def __init__(self, order: dict[str, Any]) -> None:
        self.genai = importlib.import_module("openvino_genai")
        self.openvino = importlib.import_module("openvino")
        self.numpy = importlib.import_module("numpy")
        self.lookup = order["variant"] == "lookup"
        if self.lookup and order["batch"] > 1:
            raise ValueError("looks up for one sequence at a time")
        scheduler = self.genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False  # every call computes its prompt, as everybody's
        scheduler.max_num_batched_tokens = 2**63 - 1
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": order["threads"], "scheduler_config": scheduler}
        if self.lookup:
            options["prompt_lookup"] = True
        self.settings = f"drafts of {self.lookup_tokens}" if self.lookup else "defaults, no prefix cache"
        self.pipeline = self.genai.LLMPipeline(order["model"], "CPU", **options)
        self.weights = "converted from GGUF" if order["model"].endswith(".gguf") else "as converted"

    def write(self, prompts: list[list[int]], count: int) -> Written:
        config = self.genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
        if self.lookup:
            config.num_assistant_tokens, config.max_ngram_size = self.lookup_tokens, self.lookup_ngram
        ids = self.numpy.array(prompts, dtype=self.numpy.int64)
        inputs = self.genai.TokenizedInputs(self.openvino.Tensor(ids), self.openvino.Tensor(self.numpy.ones_like(ids)))
        answer = self.pipeline.generate(inputs, config)
        return [list(map(int, own)) for own in answer.tokens], answer.perf_metrics.get_ttft().mean / 1e3


ENGINES: dict[str, Any] = {
    "llama_cpp": LlamaCpp,
    "transformers": Transformers,
    "onnxruntime_genai": OnnxRuntime,
    "openvino_genai": OpenVino,
}


def main() -> None:
    """Serve until stdin ends. Whatever the engines print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    order = json.loads(sys.stdin.readline())
    try:
        engine = ENGINES[order["engine"]](order)
    except Exception as error:  # whatever an engine raises, the bench goes on without it
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"version": metadata.version(engine.package), "weights": engine.weights, "settings": engine.settings})
    for line in sys.stdin:
        task = json.loads(line)
        try:
            started = time.perf_counter()
            tokens, first = engine.write(task["prompts"], task["max_new_tokens"])
            answer({"tokens": tokens, "seconds": time.perf_counter() - started, "first_seconds": first})
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
