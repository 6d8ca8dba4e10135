"""The engine: one per loaded model, with a thread that steps while there is work.

    caller's thread                         engine's thread
    submit(groups)  ---- inbox ---------->  take in, step, step, ...      (started when there is work)
    wait(sequence)  <--- `changed` -------  a step wrote tokens, or the sequence is done
    cancel(sequence) --- cancellations -->  ends it before the next step  (gone when there is none)

Calls from many threads meet in one batch and share passes. Everything behind the inbox (scheduler, cache, drafters)
belongs to the engine's thread alone, so none of it needs a lock. It adds *when*, never *how*: no token depends on who
else is submitted, or when.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from outpace.engine.decode import Decoder
from outpace.engine.sequence import SequenceState
from outpace.errors import EngineError, UsageError

_EXIT_SECONDS = 10.0  # how long the interpreter's exit waits for a pass to end
_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """Run submitted sequences to their ends, in passes that they share.

    Thread-safe. Its own thread lives while there is work, so an idle engine holds nothing but its decoder.
    A process that forks gets a working engine if it was idle at that moment, and one that refuses work if not.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._lock = threading.Lock()  # guards the thread and the inbox
        self._thread: threading.Thread | None = None
        self._inbox: list[list[SequenceState]] = []
        self._cancelled: deque[SequenceState] = deque()
        self._closed = ""  # why no work is taken any more
        _engines.add(self)

    def submit(self, groups: Sequence[list[SequenceState]]) -> None:
        """Take in groups (samples of one prompt each), all or none.

        Raises ContextError or CacheError for a sequence that could not finish even alone, EngineError where the engine
        was closed, and UsageError from inside its own thread: a constraint, logits processor or drafter cannot wait
        for the engine that waits for it.
        """
        self._refuse_own_thread()
        for group in groups:
            for sequence in group:
                self._decoder.scheduler.check_request(sequence)
        with self._lock:
            self._refuse_closed()
            self._inbox += groups
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="outpace-engine", daemon=True)
                self._thread.start()

    def wait(self, sequences: Iterable[SequenceState], ready: Callable[[], bool] | None = None) -> None:
        """Block until every sequence is done, or `ready` (called under `changed`) says yes.

        Sequences that are waited for together share one `changed`.
        """
        self._refuse_own_thread()
        sequences = list(sequences)
        if not all(sequence.done for sequence in sequences):
            self._refuse_closed()  # before `changed`: in a forked child nobody might ever release it
        with sequences[0].changed:
            sequences[0].changed.wait_for(
                lambda: all(sequence.done for sequence in sequences) or (ready is not None and ready())
            )

    def cancel(self, sequences: Iterable[SequenceState]) -> None:
        """End sequences before the next step, with what they have; their blocks are free then.

        Does not wait, and takes no lock: garbage collection may call it anywhere.
        """
        self._cancelled.extend(sequences)

    def close(self) -> None:
        """Cancel everything after the step under way, and take no more work. Waits for the thread to end."""
        with self._lock:
            self._closed = self._closed or "it was closed"
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_EXIT_SECONDS)

    def _run(self) -> None:
        try:
            while self._take_in():
                self._decoder.step()
        except BaseException as error:  # whatever it was: nobody may wait for ever
            self._fail(error)

    def _take_in(self) -> bool:
        """Move what came in to the decoder; return whether there is work. If not, the thread ends."""
        while True:
            with self._lock:
                inbox, self._inbox = self._inbox, []
            for group in inbox:
                self._decoder.add(group)
            while self._cancelled:
                self._decoder.cancel(self._cancelled.popleft())
            if self._closed:
                self._decoder.close()
            if not self._decoder.scheduler.is_idle:
                return True
            with self._lock:
                if not self._inbox:
                    self._thread = None
                    return False

    def _fail(self, error: BaseException) -> None:
        """End every sequence with the cause; the engine takes new work afterwards."""
        with self._lock:
            for group in self._inbox:
                self._decoder.add(group)
            self._inbox = []
            self._decoder.fail(error)
            self._thread = None

    def _refuse_own_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise UsageError(
                "a constraint, logits processor or drafter cannot call the model that calls it: load it a second time"
            )

    def _refuse_closed(self) -> None:
        if self._closed:
            raise EngineError(f"this model takes no more work: {self._closed}; load it again")

    def _after_fork(self) -> None:
        """In a child process: the thread is gone, and what it was changing may be half changed."""
        if self._thread is not None:
            self._closed = "this process was forked while it was generating"
        self._lock = threading.Lock()
        self._thread, self._inbox = None, []


def _close_all() -> None:
    for engine in list(_engines):
        engine.close()


def _after_fork_all() -> None:
    for engine in list(_engines):
        engine._after_fork()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork_all)
