"""Run the loop on tiny models: what the tests of decoding share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outpace.cache import Cache
from outpace.drafters.protocol import Drafter
from outpace.engine.decode import Decoder
from outpace.engine.sequence import SequenceState
from outpace.engine.stop import Output
from outpace.engine.verify import EXACT_MATCH, Verifier
from outpace.ops.protocol import Ops
from outpace.ops.reference import ReferenceOps
from outpace.runner import Runner
from outpace.types import KVFormat, Options, Request
from tests.tiny import tiny_model


def tiny_runner(
    model_type: str = "llama",
    *,
    ops: Ops | None = None,
    kv: KVFormat = "f32",
    capacity: int = 1024,
    share_prefixes: bool = True,
    seed: int = 0,
    context: int | None = None,
    **overrides: Any,
) -> Runner:
    """Return a runner of a tiny random model."""
    ops = ops or ReferenceOps()
    model = tiny_model(ops, model_type, seed=seed, **overrides)
    cache = Cache(ops, model.spec(kv), capacity=capacity, max_window=model.max_window, share_prefixes=share_prefixes)
    return Runner(model, ops, cache, context)


def request(prompt: Sequence[int], **options: Any) -> Request:
    """Return a request with options as a user gives them; `sample_index`, `end_tokens` and `context` are its own."""
    own = {name: options.pop(name) for name in ("sample_index", "end_tokens", "context") if name in options}
    return Request.of(prompt, Options.of({"max_new_tokens": 64, "strategy": "none", **options}), **own)


def output_of(request: Request, runner: Runner, detokenizer: Any = None) -> Output:
    """Return the output that a request asks for."""
    return Output(request, runner.context, detokenizer)


def sequence_of(asked: Request, runner: Runner, detokenizer: Any = None, **options: Any) -> SequenceState:
    """Return the sequence of a request, ready to be added to a decoder."""
    return SequenceState(asked, output_of(asked, runner, detokenizer), **options)


def decode(
    runner: Runner,
    prompts: Sequence[Sequence[int]],
    *,
    drafter: Drafter | None = None,
    verifier: Verifier = EXACT_MATCH,
    reuses_cache: bool = True,
    decoder: dict[str, Any] | None = None,
    check: bool = False,
    may_warn: bool = False,
    **options: Any,
) -> list[SequenceState]:
    """Decode prompts in one batch and return their sequences; `check`: the scheduler's invariants after every step.

    What fails a sequence is raised, and a drafter that was switched off unless `may_warn`.
    """
    loop = Decoder(runner, **(decoder or {}))
    sequences = [
        sequence_of(request(prompt, **options), runner, drafter=drafter, verifier=verifier, reuses_cache=reuses_cache)
        for prompt in prompts
    ]
    for sequence in sequences:
        loop.add([sequence])
    for _ in loop.run():
        if check:
            loop.scheduler.check()
    runner.cache.check()
    for sequence in sequences:
        if sequence.error is not None:
            raise sequence.error
        assert may_warn or not sequence.stats.warnings, sequence.stats.warnings
    return sequences


def assert_all_free(runner: Runner) -> None:
    """Assert that no sequence holds a block any more."""
    runner.cache.check()
    assert runner.cache.num_available == runner.cache.capacity


def tiny_ops() -> Ops:
    """Return the fastest ops implementation that is built here: long tests of the loop need not be slow."""
    try:
        from outpace.ops.native import NativeOps
    except ImportError:
        return ReferenceOps()
    return NativeOps(threads=1)
