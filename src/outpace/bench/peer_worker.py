"""One other engine in a process of its own: run by path, with the Python of a venv that has the engine.

It imports nothing of Outpace. It speaks JSON lines: a first line on stdin says what to load (`engine`, `model`,
`variant`, `draft`, `threads`, `context`), its answer names the engine's version and the weights' format, or an
`error`. Each further line is a prompt (`prompt`: token ids, `max_new_tokens`), its answer the tokens and seconds.
Greedy only.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from importlib import metadata
from typing import Any

Written = tuple[list[int], float]  # tokens, seconds until the first of them


class LlamaCpp:
    """llama.cpp through llama-cpp-python, plain or with its prompt lookup. Reads GGUF as it is."""

    package = "llama-cpp-python"

    def __init__(self, order: dict[str, Any]) -> None:
        llama_cpp = importlib.import_module("llama_cpp")
        draft = None
        if order["variant"] == "lookup":
            draft = importlib.import_module("llama_cpp.llama_speculative").LlamaPromptLookupDecoding(num_pred_tokens=8)
        self.weights = "as stored"
        self.model = llama_cpp.Llama(
            order["model"], n_ctx=order["context"], n_threads=order["threads"], n_threads_batch=order["threads"],
            draft_model=draft, verbose=False,
        )  # fmt: skip

    def write(self, prompt: list[int], count: int) -> Written:
        started, first, tokens = time.perf_counter(), 0.0, []
        self.model.reset()
        for token in self.model.generate(prompt, temp=0.0, repeat_penalty=1.0):
            first = first or time.perf_counter() - started
            tokens.append(int(token))
            if len(tokens) == count:
                break
        return tokens, first


class Transformers:
    """Hugging Face transformers: plain, prompt lookup or assisted. A GGUF file is dequantised on loading."""

    package = "transformers"

    def __init__(self, order: dict[str, Any]) -> None:
        torch = importlib.import_module("torch")
        self.torch = torch
        self.transformers = importlib.import_module("transformers")
        torch.set_num_threads(order["threads"])
        variant, _, kind = order["variant"].partition("-")
        dtype = torch.bfloat16 if kind == "bf16" else torch.float32
        self.weights = f"dequantised to {kind}" if order["model"].endswith(".gguf") else kind
        self.model = self._open(order["model"], dtype)
        self.extra: dict[str, Any] = {}
        if variant == "lookup":
            self.extra = {"prompt_lookup_num_tokens": 8}
        if variant == "assisted":
            self.extra = {"assistant_model": self._open(order["draft"], dtype)}

    def _open(self, path: str, dtype: Any) -> Any:
        automatic = self.transformers.AutoModelForCausalLM
        if path.endswith(".gguf"):
            folder, name = os.path.split(path)
            return automatic.from_pretrained(folder, gguf_file=name, dtype=dtype).eval()
        return automatic.from_pretrained(path, dtype=dtype).eval()

    def write(self, prompt: list[int], count: int) -> Written:
        watch = _FirstPut()
        ids = self.torch.tensor([prompt])
        with self.torch.inference_mode():
            answer = self.model.generate(
                ids, attention_mask=self.torch.ones_like(ids), do_sample=False, min_new_tokens=count,
                max_new_tokens=count, repetition_penalty=1.0, temperature=None, top_p=None, top_k=None, streamer=watch,
                pad_token_id=0, **self.extra,
            )  # fmt: skip
        return answer[0, len(prompt) :].tolist(), watch.first


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
    """onnxruntime-genai: a folder that its model builder has made."""

    package = "onnxruntime-genai"

    def __init__(self, order: dict[str, Any]) -> None:
        self.og = importlib.import_module("onnxruntime_genai")
        config = self.og.Config(order["model"])
        config.overlay(
            json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": order["threads"]}}}})
        )
        self.model = self.og.Model(config)
        self.weights = "as converted"

    def write(self, prompt: list[int], count: int) -> Written:
        started, first = time.perf_counter(), 0.0
        params = self.og.GeneratorParams(self.model)
        length = len(prompt) + count
        params.set_search_options(do_sample=False, max_length=length, min_length=length, repetition_penalty=1.0)
        generator = self.og.Generator(self.model, params)
        generator.append_tokens(prompt)
        tokens: list[int] = []
        while len(tokens) < count:
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
            first = first or time.perf_counter() - started
        return tokens, first


class OpenVino:
    """OpenVINO GenAI, plain or with its prompt lookup: a converted folder, or a GGUF file of the kinds it reads."""

    package = "openvino-genai"

    def __init__(self, order: dict[str, Any]) -> None:
        self.genai = importlib.import_module("openvino_genai")
        self.openvino = importlib.import_module("openvino")
        self.numpy = importlib.import_module("numpy")
        self.lookup = order["variant"] == "lookup"
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": order["threads"]}
        if self.lookup:
            options["prompt_lookup"] = True
        self.pipeline = self.genai.LLMPipeline(order["model"], "CPU", **options)
        self.weights = "as converted"

    def write(self, prompt: list[int], count: int) -> Written:
        config = self.genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
        if self.lookup:
            config.num_assistant_tokens, config.max_ngram_size = 8, 3
        ids = self.numpy.array([prompt], dtype=self.numpy.int64)
        inputs = self.genai.TokenizedInputs(self.openvino.Tensor(ids), self.openvino.Tensor(self.numpy.ones_like(ids)))
        answer = self.pipeline.generate(inputs, config)
        return list(map(int, answer.tokens[0])), answer.perf_metrics.get_ttft().mean / 1e3


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
    answer({"version": metadata.version(engine.package), "weights": engine.weights})
    for line in sys.stdin:
        task = json.loads(line)
        try:
            started = time.perf_counter()
            tokens, first = engine.write(task["prompt"], task["max_new_tokens"])
            answer({"tokens": tokens, "seconds": time.perf_counter() - started, "first_seconds": first})
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
