"""The same prompts through other engines, each in a process of its own, alternating with ours."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpace.api import LanguageModel
from outpace.measure.bench.alternate import full_batches
from outpace.measure.bench.sample import PLAIN, call
from outpace.measure.prompts import TaskPrompt

WORKER = Path(__file__).with_name("worker.py")
OURS = "outpace"
_WARM_UP = 8  # tokens
_DRAFT_ROOM = 16  # tokens past a text's end that an engine may draft

# Engine -> variants. A variant's part behind "-" is the number format that weights are turned into.
VARIANTS: dict[str, tuple[str, ...]] = {
    "llama_cpp": ("plain", "lookup"),
    "onnxruntime_genai": ("plain",),
    "openvino_genai": ("plain", "lookup"),
    "transformers": ("plain-f32", "plain-bf16", "lookup-bf16", "assisted-bf16"),
}


@dataclass(frozen=True, slots=True)
class PeerSample:
    """A batch of texts by one engine. agreed: leading tokens equal to our plain texts'."""

    engine: str
    variant: str
    category: str
    group: int
    repeat: int
    batch: int
    prompt_tokens: int  # of all texts, and so on
    tokens: int
    seconds: float
    first_seconds: float
    agreed: int

    @property
    def rate(self) -> float:
        """Tokens per second after the first token; of a batch, over the whole call.

        Ours begins to write the first texts of a batch while it still reads the last prompts, others do not: where
        reading ends and writing begins is no moment that all have.
        """
        if self.batch > 1:
            return self.tokens / self.seconds
        return (self.tokens - 1) / (self.seconds - self.first_seconds)

    @property
    def prefill_rate(self) -> float | None:
        """Prompt tokens per second until the first token; None for a batch."""
        return self.prompt_tokens / self.first_seconds if self.batch == 1 else None


@dataclass(frozen=True, slots=True)
class Absent:
    """An engine or variant that was not measured, and why."""

    engine: str
    variant: str
    reason: str


@dataclass(frozen=True, slots=True)
class Peer:
    """An engine that can be started: with which Python, on which model."""

    engine: str
    variant: str
    python: Path
    model: Path
    draft: Path | None = None


def find_peers(
    venvs: Sequence[Path], model: Path, converted: dict[str, Path], draft: Path | None
) -> tuple[list[Peer], list[Absent]]:
    """Return the peers that the venvs hold, and what is missing.

    converted: engine -> folder with the model in that engine's own format (else it is given `model` itself).
    """
    homes = {engine: python for venv in reversed(venvs) for engine, python in _installed(venv).items()}
    peers: list[Peer] = []
    absent: list[Absent] = []
    for engine, variants in VARIANTS.items():
        for variant in variants:
            if engine not in homes:
                absent.append(Absent(engine, variant, "not installed in the venvs given"))
            elif engine == "onnxruntime_genai" and engine not in converted:
                absent.append(Absent(engine, variant, "needs a converted model: give --onnx FOLDER"))
            elif variant.startswith("assisted") and draft is None:
                absent.append(Absent(engine, variant, "needs a smaller model: give --draft-model"))
            else:
                peers.append(Peer(engine, variant, homes[engine], converted.get(engine, model), draft))
    return peers, absent


def _installed(venv: Path) -> dict[str, Path]:
    """Return the engines that a venv has, with its Python."""
    python = venv / "bin" / "python"
    if not python.exists():
        return {}
    probe = f"import importlib.util as u; print([e for e in {list(VARIANTS)!r} if u.find_spec(e)])"
    done = subprocess.run([str(python), "-c", probe], check=True, capture_output=True, text=True)
    return {engine: python for engine in VARIANTS if repr(engine) in done.stdout}


class Worker:
    """A peer's process: it loads once and waits, idle, for prompts. Closing it ends the process."""

    def __init__(self, peer: Peer, threads: int, context: int, batch: int = 1) -> None:
        self.peer = peer
        quiet = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [str(peer.python), "-I", "-W", "ignore", str(WORKER)],
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | quiet,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.about = self.ask(
            {
                "engine": peer.engine, "variant": peer.variant, "model": str(peer.model),
                "draft": str(peer.draft) if peer.draft else None, "threads": threads,
                "context": context + _DRAFT_ROOM,
                "batch": batch,
            }
        )  # fmt: skip

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Return the worker's answer; an "error" where it failed or died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"error": f"its process ended (exit code {self._process.wait()})"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            try:
                stream.close()
            except BrokenPipeError:
                continue


def start_peers(
    peers: Sequence[Peer],
    threads: int,
    context: int,
    absent: list[Absent],
    tick: Callable[[str], None],
    batch: int = 1,
) -> Iterator[Worker]:
    """Start a worker per peer, one after another, and yield those that come up; the others are added to `absent`.

    context: most tokens of a text, prompt included. batch: how many texts it will write at a time.
    """
    for peer in peers:
        tick(f"starting {peer.engine}, {peer.variant}")
        worker = Worker(peer, threads, context, batch)
        if "error" in worker.about:
            absent.append(Absent(peer.engine, peer.variant, worker.about["error"]))
            worker.close()
        else:
            yield worker


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts that are answered together, cut to the length of the shortest."""

    category: str
    prompts: list[list[int]]


def batches_of(prompts: Sequence[TaskPrompt], encoded: Sequence[list[int]], size: int) -> list[Batch]:
    """Return the prompts in batches of `size`, category by category; a short one starts from its front again."""
    categories: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        categories.setdefault(prompt.category, []).append(index)
    batches = []
    for category, own in categories.items():
        for indices in full_batches(own, size):
            length = min(len(encoded[i]) for i in indices)
            batches.append(Batch(category, [encoded[i][:length] for i in indices]))
    return batches


def num_calls(batches: Sequence[Batch], strategies: Sequence[str], workers: Sequence[Worker], repeats: int) -> int:
    """Return how many calls `measure_peers` makes while no engine fails (warm-up aside)."""
    return repeats * len(batches) * (len({PLAIN, *strategies}) + len(workers))


def measure_peers(
    lm: LanguageModel,
    workers: Sequence[Worker],
    batches: Sequence[Batch],
    *,
    strategies: Sequence[str],
    num_tokens: int,
    repeats: int,
    tick: Callable[[str], None] = lambda what: None,
) -> Iterator[PeerSample | Absent]:
    """Yield a sample per engine, variant, batch and repeat, in an order that is drawn anew for each batch.

    Greedy, past the end token, nothing cached from earlier calls. Our strategies appear as variants of "outpace". An
    engine that fails is reported and left out from then on.
    """
    names = list(dict.fromkeys((PLAIN, *strategies)))
    ours = {name: _Own(lm, name) for name in names}
    writers: list[_Own | Worker] = [*ours.values(), *workers]
    for writer in list(writers):
        answer = _write(writer, batches[0], min(_WARM_UP, num_tokens))
        if "error" in answer:
            writers.remove(writer)
            yield Absent(*_name(writer), answer["error"])
    rng = random.Random(0)
    texts: dict[int, list[list[int]]] = {}  # what plain decoding writes
    for repeat in range(repeats):
        for index, batch in enumerate(batches):
            if index not in texts:
                texts[index] = _write(ours[PLAIN], batch, num_tokens)["tokens"]
            for writer in rng.sample(writers, len(writers)):
                engine, variant = _name(writer)
                tick(f"{batch.category}, repeat {repeat + 1}: {engine}, {variant}")
                answer = _write(writer, batch, num_tokens)
                if "error" in answer:
                    writers.remove(writer)
                    yield Absent(engine, variant, answer["error"])
                    continue
                yield PeerSample(
                    engine, variant, batch.category, index, repeat, len(batch.prompts),
                    sum(map(len, batch.prompts)), sum(map(len, answer["tokens"])),
                    answer["seconds"], answer["first_seconds"],
                    sum(map(_agreed, answer["tokens"], texts[index])),
                )  # fmt: skip


class _Own:
    """Our own engine, asked as the others are."""

    def __init__(self, lm: LanguageModel, strategy: str) -> None:
        self.lm, self.strategy, self.calls = lm, strategy, 0

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        salt = f"peers {self.strategy} {self.calls}".encode()
        results, seconds = call(
            self.lm, order["prompts"], self.strategy, "greedy", max_new_tokens=order["max_new_tokens"], salt=salt
        )
        first = max(result.stats.prefill_seconds for result in results)
        return {"tokens": [result.tokens for result in results], "seconds": seconds, "first_seconds": first}


def _write(writer: _Own | Worker, batch: Batch, count: int) -> dict[str, Any]:
    return writer.ask({"prompts": batch.prompts, "max_new_tokens": count})


def _name(writer: _Own | Worker) -> tuple[str, str]:
    return (OURS, writer.strategy) if isinstance(writer, _Own) else (writer.peer.engine, writer.peer.variant)


def _agreed(tokens: Sequence[int], plain: Sequence[int]) -> int:
    pairs = zip(tokens, plain, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(plain)))
