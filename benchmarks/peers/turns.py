"""Our strategies and other engines on the same prompts, taking turns."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.engines import Absent
from benchmarks.peers.process import Worker
from outpace.api import LanguageModel
from outpace.measure.bench.alternate import full_batches
from outpace.measure.bench.sample import PLAIN, call
from outpace.measure.progress import Progress, Work
from outpace.measure.prompts import TaskPrompt

OURS = "outpace"
_WARM_UP = 8  # tokens


@dataclass(frozen=True, slots=True)
class PeerSample:
    """A batch of sequences by one engine.

    agreed: leading tokens equal to those of our plain decoding. waiting: processor seconds that all engines used which
    were not asked, while this one wrote.
    """

    engine: str
    variant: str
    category: str
    group: int
    repeat: int
    batch: int
    prompt_tokens: int  # of all sequences, and so on
    tokens: int
    seconds: float
    first_seconds: float
    agreed: int
    waiting: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens per second after the first token; of a batch, over the whole call.

        Ours begins to write the first sequences of a batch while it still reads the last prompts, others do not:
        where reading ends and writing begins is no moment that all have.
        """
        if self.batch > 1:
            return self.tokens / self.seconds
        return (self.tokens - 1) / (self.seconds - self.first_seconds)

    @property
    def prefill_rate(self) -> float | None:
        """Prompt tokens per second until the first token; None for a batch."""
        return self.prompt_tokens / self.first_seconds if self.batch == 1 else None


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


class Ourselves:
    """Our own engine with one strategy, asked as the others are."""

    def __init__(self, lm: LanguageModel, strategy: str) -> None:
        self.lm, self.strategy, self.calls = lm, strategy, 0

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Return the new tokens with the seconds of the call, and until every sequence had its first."""
        self.calls += 1
        salt = f"peers {self.strategy} {self.calls}".encode()
        results, seconds = call(
            self.lm, order["prompts"], self.strategy, "greedy", max_new_tokens=order["max_new_tokens"], salt=salt
        )
        first = max(result.stats.prefill_seconds for result in results)
        return {"tokens": [result.tokens for result in results], "seconds": seconds, "first_seconds": first}

    def cpu_seconds(self) -> float:
        """Return the processor time of this process."""
        return time.process_time()


Writer = Ourselves | Worker


def measure_peers(
    lm: LanguageModel,
    workers: Sequence[Worker],
    batches: Sequence[Batch],
    *,
    strategies: Sequence[str],
    num_tokens: int,
    repeats: int,
    progress: Progress | None = None,
) -> Iterator[PeerSample | Absent]:
    """Yield a sample per engine, variant, batch and repeat, in an order that is drawn anew for each batch.

    Greedy, past the end token, nothing cached from earlier calls. Our strategies appear as variants of "outpace". An
    engine that fails is reported and left out from then on. progress counts calls.
    """
    ours = {name: Ourselves(lm, name) for name in dict.fromkeys((PLAIN, *strategies))}
    writers: list[Writer] = [*ours.values(), *workers]
    work = Work(repeats * len(batches) * len(writers), progress)
    for writer in list(writers):
        answer = write(writer, batches[0], min(_WARM_UP, num_tokens))
        if "error" in answer:
            writers.remove(writer)
            yield Absent(*name_of(writer), answer["error"])
    rng = random.Random(0)
    reference: dict[int, list[list[int]]] = {}  # what plain decoding writes
    for repeat in range(repeats):
        for index, batch in enumerate(batches):
            if index not in reference:
                reference[index] = write(ours[PLAIN], batch, num_tokens)["tokens"]
            for writer in rng.sample(writers, len(writers)):
                engine, variant = name_of(writer)
                work.begin(1, f"{batch.category}, repeat {repeat + 1}: {engine}, {variant}")
                waiting = _waiting(writer, writers)
                answer = write(writer, batch, num_tokens)
                if "error" in answer:
                    writers.remove(writer)
                    yield Absent(engine, variant, answer["error"])
                    continue
                yield PeerSample(
                    engine, variant, batch.category, index, repeat, len(batch.prompts),
                    sum(map(len, batch.prompts)), sum(map(len, answer["tokens"])),
                    answer["seconds"], answer["first_seconds"],
                    sum(map(_agreed, answer["tokens"], reference[index])),
                    _waiting(writer, writers) - waiting,
                )  # fmt: skip
    work.finish()


def write(writer: Writer, batch: Batch, count: int) -> dict[str, Any]:
    """Let an engine write `count` tokens after each prompt and return its answer."""
    return writer.ask({"prompts": batch.prompts, "max_new_tokens": count})


def name_of(writer: Writer) -> tuple[str, str]:
    """Return a writer's engine and variant."""
    return (OURS, writer.strategy) if isinstance(writer, Ourselves) else (writer.peer.engine, writer.peer.variant)


def _waiting(writer: Writer, writers: Sequence[Writer]) -> float:
    """Return the processor seconds of everybody but the writer; all of ours are one process."""
    total = sum(other.cpu_seconds() for other in writers if isinstance(other, Worker) and other is not writer)
    if isinstance(writer, Worker):
        total += time.process_time()
    return total


def _agreed(tokens: Sequence[int], plain: Sequence[int]) -> int:
    pairs = zip(tokens, plain, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(plain)))
