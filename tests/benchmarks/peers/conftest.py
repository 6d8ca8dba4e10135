"""Engines made up in a venv of their own: the processes and their protocol are the real ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import outpace
from benchmarks.peers.engines import Peer
from benchmarks.peers.process import Worker
from outpace.api import LanguageModel
from tests.decoding import tiny_ops
from tests.folder import make_folder

LLAMA_CPP = """
import ctypes, os
print("engines are talkative")

class Params:
    n_batch = 5

class Rows:
    def __init__(self, room):
        self.room, self.n_tokens = room, 0
        self.token, self.pos, self.n_seq_id, self.logits = ([0] * room for _ in range(4))
        self.seq_id = [[0] for _ in range(room)]

llama_backend_init = lambda: None
llama_model_default_params = llama_context_default_params = Params
llama_model_load_from_file = lambda path, params: None if b"missing" in path else "model"
llama_model_get_vocab = lambda model: "vocab"
llama_vocab_n_tokens = lambda vocab: 50
llama_batch_init = lambda room, embd, sequences: Rows(room)
llama_init_from_model = lambda model, params: {"positions": {}}
llama_get_memory = lambda context: context
def llama_memory_clear(memory, data):
    memory["positions"] = {}
def llama_decode(context, rows):
    if rows.n_tokens > rows.room:
        return 1
    context["rows"] = rows
    for i in range(rows.n_tokens):
        if rows.pos[i] != context["positions"].get(rows.seq_id[i][0], 0):
            return 2
        context["positions"][rows.seq_id[i][0]] = rows.pos[i] + 1
    return 0
def llama_get_logits_ith(context, i):
    rows = context["rows"]
    assert rows.logits[i]
    logits = (ctypes.c_float * 50)()
    logits[(rows.token[i] + rows.seq_id[i][0] + 1) % 50] = 1.0
    return ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))

class Llama:
    def __init__(self, path, n_ctx, n_threads, n_threads_batch, draft_model, verbose):
        if draft_model and "no-lookup" in path:
            raise RuntimeError("no lookup here")
        self.draft_model = draft_model
    def reset(self):
        pass
    def generate(self, prompt, temp, repeat_penalty):
        if prompt[0] == 299:
            raise RuntimeError("broke down")
        if prompt[0] == 298:  # tells what it was started with
            yield self.draft_model["num_pred_tokens"]
            yield int(any(name.startswith(("OMP_", "GOMP_", "KMP_")) for name in os.environ))
        while True:
            yield prompt[-1]
"""

OPENVINO_GENAI = """
class SchedulerConfig:
    enable_prefix_caching, max_num_batched_tokens = True, 256

class GenerationConfig:
    num_assistant_tokens = max_ngram_size = 0

class TokenizedInputs:
    def __init__(self, ids, mask):
        pass

class LLMPipeline:
    def __init__(self, model, device, **options):
        self.options = options
    def generate(self, inputs, config):
        scheduler = self.options["scheduler_config"]
        class Answer:
            tokens = [[
                config.num_assistant_tokens, config.max_ngram_size, int(self.options.get("prompt_lookup", False)),
                int(scheduler.enable_prefix_caching), int(scheduler.max_num_batched_tokens > 10**9),
                self.options["INFERENCE_NUM_THREADS"],
            ]]
            class perf_metrics:
                @staticmethod
                def get_ttft():
                    class Mean:
                        mean = 1.0
                    return Mean
        return Answer
"""

NUMPY = """class ctypeslib:
    class as_array(list):
        def __init__(self, pointer, shape):
            super().__init__(pointer[i] for i in range(*shape))
        def argmax(self):
            return self.index(max(self))

int64 = "int64"
array = ones_like = lambda values, dtype=None: values
"""


@pytest.fixture(scope="session")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("venv") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    packages = next(home.glob("lib/python*/site-packages"))
    for name, source in {
        "llama_cpp/__init__.py": LLAMA_CPP,
        "llama_cpp/llama_speculative.py": "LlamaPromptLookupDecoding = dict\n",
        "openvino_genai.py": OPENVINO_GENAI,
        "openvino.py": "Tensor = list\n",
        "numpy.py": NUMPY,
        "llama_cpp_python-7.0.dist-info/METADATA": "Name: llama-cpp-python\nVersion: 7.0\n",
        "openvino_genai-8.0.dist-info/METADATA": "Name: openvino-genai\nVersion: 8.0\n",
    }.items():
        path = packages / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    return home


@pytest.fixture
def start(venv: Path) -> Iterator[Callable[..., Worker]]:
    """Starts workers that end with the test."""
    started: list[Worker] = []

    def start(variant: str = "plain", *, engine: str = "llama_cpp", model: str = "m.gguf", batch: int = 1) -> Worker:
        worker = Worker(Peer(engine, variant, venv / "bin" / "python", Path(model)), 1, 64, batch=batch)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.close()


@pytest.fixture(scope="session")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return outpace.load(make_folder(tmp_path_factory.mktemp("model") / "tiny"), ops=tiny_ops())
