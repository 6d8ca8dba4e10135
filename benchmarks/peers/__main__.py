"""Measure other engines on the same prompts, in turn with ours. Ctrl-C keeps what there is.

python -m benchmarks.peers --venv ~/peers [--context 128 -n 48 --repeats 5] [-o FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import outpace
from benchmarks.peers.engines import Absent, find_peers
from benchmarks.peers.neighbours import Neighbour, check_neighbours
from benchmarks.peers.process import Worker, start_peers
from benchmarks.peers.tables import Report, save_peers, summarise_peers, waiting_share
from benchmarks.peers.turns import Batch, PeerSample, batches_of, measure_peers
from outpace.errors import OutpaceError
from outpace.measure.bench.alternate import lengthened
from outpace.measure.prompts import load_prompts, spread
from outpace.measure.provenance import provenance

_SECONDS_BETWEEN_LINES = 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        run(options)
    except (OutpaceError, OSError) as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--venv", type=Path, action="append", required=True, dest="venvs", metavar="FOLDER",
        help="a virtual environment with engines; may be given again")  # fmt: skip
    add("-m", "--model", default="smollm2-135m", help="a known name, a GGUF file or a Hugging Face folder")
    add("-s", "--strategies", default="auto", type=_names, help="ours, comma-separated; none is always measured")
    add("--prompts", type=Path, help="a file in Spec-Bench's format [default: the built-in prompts]")
    add("--per-category", type=_at_least(1), help="maximum number of prompts of a category [default: all]")
    add("--batch", type=_at_least(1), default=1, help="sequences at a time; their prompts are cut to the shortest")
    add(
        "--context",
        type=_at_least(0),
        default=0,
        help="tokens of every prompt, padded or cut; 0 leaves them",
    )
    add("-n", "--num-tokens", type=_at_least(2), default=128, help="tokens that each sequence gets")
    add("--repeats", type=_at_least(1), default=3)
    add("--neighbour-pairs", type=_at_least(0), default=6,
        help="pairs of the A/A run with each engine as a neighbour; 0: none")  # fmt: skip
    add("--onnx", type=Path, help="the model as onnxruntime-genai's builder makes it")
    add("--openvino", type=Path, help="the model as OpenVINO has it [default: the GGUF file]")
    add("--draft-model", type=Path, help="a smaller model's file, for transformers' assisted generation")
    add("-o", "--output", type=Path, default=Path("outpace-peers"), help="folder for the JSON and Markdown files")
    add("--threads", type=_at_least(1), help="[default: all cores]")
    add("--ops", choices=("native", "reference"), help="our arithmetic [default: the best there is]")
    add("--kv", choices=("f32", "bf16", "int8"), default="bf16", help="how our keys and values are stored")
    return parser


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"needs at least one name, comma-separated (auto,ngram); got {text!r}")
    return names


def _at_least(minimum: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {minimum}, got {text!r}")
        return value

    return number


def run(options: argparse.Namespace) -> None:
    """Measure what the options ask for and write the report."""
    prompts = load_prompts(options.prompts)
    if options.per_category is not None:
        prompts = spread(prompts, options.per_category)
    options.output.mkdir(parents=True, exist_ok=True)
    longest = max(prompt.max_tokens + options.context for prompt in prompts) + options.num_tokens
    lm = outpace.load(
        options.model, kv=options.kv, threads=options.threads, ops=options.ops,
        cache_tokens=max(2 * longest * options.batch, 4096),
    )  # fmt: skip
    encoded = lengthened(lm, prompts, options.context)
    batches = batches_of(prompts, [tokens[-options.context :] for tokens in encoded], options.batch)
    longest = max(len(own.prompts[0]) for own in batches) + options.num_tokens
    converted = {"onnxruntime_genai": options.onnx, "openvino_genai": options.openvino}
    folders = {engine: folder for engine, folder in converted.items() if folder is not None}
    found, absent = find_peers(options.venvs, lm.path, folders, options.draft_model)
    origin = provenance(lm)
    show = _Lines()
    workers: list[Worker] = []
    samples: list[PeerSample] = []
    neighbours: list[Neighbour] | None = None
    complete = False
    try:
        for worker in start_peers(found, lm.runner.ops.threads, longest, absent, show.say, options.batch):
            workers.append(worker)
        if options.neighbour_pairs:
            neighbours = check_neighbours(
                lm, workers, batches[0],
                num_tokens=options.num_tokens, repeats=options.neighbour_pairs, progress=show.progress,
            )  # fmt: skip
        for seen in measure_peers(
            lm, workers, batches,
            strategies=options.strategies, num_tokens=options.num_tokens, repeats=options.repeats,
            progress=show.progress,
        ):  # fmt: skip
            if isinstance(seen, Absent):
                absent.append(seen)
            else:
                samples.append(seen)
        complete = True
    finally:
        for worker in workers:
            worker.close()
        if samples:
            about = {(w.peer.engine, w.peer.variant): w.about for w in workers}
            rows = summarise_peers(samples, about)
            report = Report(
                rows, absent, neighbours, waiting_share(samples), origin, _design(batches, options), complete
            )
            save_peers(options.output, report, samples, _name(options))
            _print(report, options.output)


def _print(report: Report, folder: Path) -> None:
    for row in report.rows:
        print(f"{row.engine}, {row.variant}: {row.rate.median:.0f} tokens/s")
    for neighbour in report.neighbours or ():
        if neighbour.disturbed:
            print(f"DISTURBED by a waiting neighbour: {neighbour.engine}, {neighbour.variant}: see the report")
    print(f"all numbers and tables: {folder}")


def _design(batches: Sequence[Batch], options: argparse.Namespace) -> str:
    """Say in a sentence what was written."""
    lengths = sorted(len(own.prompts[0]) for own in batches)
    length = f"{lengths[0]} to {lengths[-1]}" if lengths[0] < lengths[-1] else f"{lengths[0]}"
    count = f"prompts: {len(batches)}" + (f" batches of {options.batch}" if options.batch > 1 else "")
    return f"{count.capitalize()}, {length} tokens each; {options.num_tokens} written; repeats: {options.repeats}."


def _name(options: argparse.Namespace) -> str:
    batch = f"-batch-{options.batch}" if options.batch > 1 else ""
    return f"peers{batch}" + (f"-context-{options.context}" if options.context else "")


class _Lines:
    """Progress as lines on stderr, at most one every ten seconds, with the time that is left."""

    def __init__(self) -> None:
        self._started = self._last = 0.0

    def say(self, what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    def progress(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if done == 0:
            self._started = now
        if now - self._last >= _SECONDS_BETWEEN_LINES and what:
            self._last = now
            left = f", about {(now - self._started) / done * (total - done):.0f} s left" if done else ""
            self.say(f"{done} of {total}{left}: {what}")


if __name__ == "__main__":
    main()
