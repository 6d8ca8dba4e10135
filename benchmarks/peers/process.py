"""A peer's process: it loads once, answers prompts, and is suspended while others are measured.

Engines wait for their next call in different ways: some keep threads spinning for a while, ONNX Runtime for more than
a second on some machines. Forbidding that would slow the engine itself down, since its threads wait in the same way
between two operations of a pass. So nobody is told how to wait; whoever is not asked is stopped (SIGSTOP).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.engines import Absent, Peer

WORKER = Path(__file__).with_name("worker.py")
_DRAFT_ROOM = 16  # tokens past a sequence's end that an engine may draft
# Settings of this shell that would change how an engine's threads work: every engine starts with its own defaults.
_THREAD_SETTINGS = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ORT_", "GGML_")


def environment() -> dict[str, str]:
    """Return the environment of an engine's process: this one's, without settings for threads."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(_THREAD_SETTINGS)}
    own.pop("PYTHONPATH", None)
    return own | {"HF_HUB_OFFLINE": "1"}


class Worker:
    """The process of one peer. It runs only while it answers; closing it ends the process."""

    def __init__(self, peer: Peer, threads: int, context: int, batch: int = 1) -> None:
        self.peer = peer
        self._process = subprocess.Popen(
            [str(peer.python), "-I", "-W", "ignore", str(WORKER)],
            env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.about = self.ask(
            {
                "engine": peer.engine, "variant": peer.variant, "model": str(peer.model),
                "draft": str(peer.draft) if peer.draft else None, "threads": threads,
                "context": context + _DRAFT_ROOM, "batch": batch,
            }
        )  # fmt: skip

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Return the worker's answer; an "error" where it failed or died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)  # nothing happens where it has ended
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"error": f"its process ended (exit code {self._process.wait()})"}
        self._suspend()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def cpu_seconds(self) -> float:
        """Return the processor time that the process has used so far, all threads together; 0 after its end."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the process, suspended or not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            try:
                stream.close()
            except BrokenPipeError:
                continue

    def _suspend(self) -> None:
        """Stop the process and return when it stands still, or has ended."""
        self._process.send_signal(signal.SIGSTOP)
        if self._process.poll() is None:
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


def start_peers(
    peers: Sequence[Peer],
    threads: int,
    context: int,
    absent: list[Absent],
    begin: Callable[[str], None],
    batch: int = 1,
) -> Iterator[Worker]:
    """Start a worker per peer, one after another, and yield those that come up; the others are added to `absent`.

    context: maximum length of a sequence, prompt included. batch: how many it will write at a time. begin(what): called
    before each start.
    """
    for peer in peers:
        begin(f"starting {peer.engine}, {peer.variant}")
        worker = Worker(peer, threads, context, batch)
        if "error" in worker.about:
            absent.append(Absent(peer.engine, peer.variant, worker.about["error"]))
            worker.close()
        else:
            yield worker
