"""Kill a run of `outpace train` at one of its writes, let it go on, and compare what it leaves.

    python killing.py ENDS FOLDER [ARGUMENT ...]

runs its stages in child processes of this one, which has imported everything once: undisturbed into FOLDER/whole, and
for each of ENDS into a folder of its own, killed with SIGKILL, then again from there to the end. An end is NAME:N:
right before the N-th file appears whose path has NAME in it. Prints one line for each: how it ended both times, the
stage in which it was killed, and the names of files that differ from those of whole. ARGUMENTs: a model, then options
of `TrainOptions` as NAME=VALUE; training and the check are run too where there is steps=N.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import outpace
from outpace.train import stages
from outpace.train.options import TrainOptions
from outpace.train.report.outcome import finish
from outpace.train.run import Run
from outpace.train.text import sources, synthesis

STAGES = ("check.jsonl", "training", "responses", "held-out", "texts")  # the last one that there is first
OWN_SECONDS = ("run.json", "card.md", "plot.png", "log.jsonl", "state.pt")  # files that hold times


def run(model: str, folder: Path, options: dict[str, int | str | Path]) -> None:
    lm = outpace.load(model, threads=1)
    own = Run(TrainOptions(kind="eagle", **options), folder, lm)  # type: ignore[arg-type]
    if "steps" in options:
        finish(own, lambda drafter: outpace.load(model, threads=1, drafter=drafter), "outpace train")
    else:
        own.conversations()


def child(model: str, folder: Path, options: dict[str, int | str | Path], end: str = "") -> int:
    """Return how a process that runs all of it ends: 0, or minus its signal."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    try:
        if end:
            name, _, number = end.partition(":")
            count, replace = 0, os.replace

            def counted(source: str, target: str) -> None:
                nonlocal count
                count += name in os.path.relpath(target, folder)
                if count == int(number):
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(source, target)

            os.replace = counted  # type: ignore[assignment]
        run(model, folder, options)
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files but those that hold times, and but what a kill leaves of a file that never appeared."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {
        name: data for name, data in found.items() if Path(name).name not in OWN_SECONDS and ".outpace-" not in name
    }


def main(ends: str, folder: str, model: str, *given: str) -> None:
    sources._PER_SHARD, sources._MAX_USER_TOKENS, stages._PER_SHARD = 4, 16, 4
    synthesis._SENTENCE_END = re.compile("$")  # a random model hardly ever ends a sentence
    options: dict[str, int | str | Path] = {"max_tokens": 12, "num_checked": 5, "held_out": 0.3}
    for pair in given:
        name, value = pair.split("=")
        options[name] = int(value) if value.isdigit() else Path(value)
    root = Path(folder)
    print("whole", child(model, root / "whole", options), flush=True)
    whole = contents(root / "whole")
    for number, end in enumerate(ends.split(",")):
        own_folder = root / str(number)
        killed = child(model, own_folder, options, end)
        stage = next((name for name in STAGES if (own_folder / name).exists()), "prompts")
        resumed = child(model, own_folder, options)
        own = contents(own_folder)
        different = sorted(name for name in {*own, *whole} if own.get(name) != whole.get(name))
        print(killed, resumed, stage, *different, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
