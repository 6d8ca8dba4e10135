"""Run the loop on tiny models: what the tests of decoding share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from outpace.cache import Cache
from outpace.drafters.protocol import Drafter
from outpace.engine.decode import Decoder, Generation
from outpace.engine.stop import Output
from outpace.engine.verify import Rule
from outpace.ops.protocol import Ops
from outpace.ops.reference import ReferenceOps
from outpace.runner import Runner
from outpace.types import KVFormat, Request, SamplingParams
from tests.tiny import tiny_model

SAMPLING = frozenset(field.name for field in fields(SamplingParams))


def tiny_runner(
    model_type: str = "llama",
    *,
    ops: Ops | None = None,
    kv: KVFormat = "f32",
    capacity: int = 1024,
    share: bool = True,
    seed: int = 0,
    context: int | None = None,
    **overrides: Any,
) -> Runner:
    """Return a runner of a tiny random model."""
    ops = ops or ReferenceOps()
    model = tiny_model(ops, model_type, seed=seed, **overrides)
    cache = Cache(ops, model.spec(kv), capacity=capacity, lookback=model.lookback, share=share)
    return Runner(model, ops, cache, context)


def request(prompt: Sequence[int], **options: Any) -> Request:
    """Return a request with sampling parameters and request fields mixed, as a user gives them."""
    sampling = SamplingParams(**{name: options.pop(name) for name in SAMPLING & options.keys()})
    return Request(tuple(prompt), options.pop("max_new_tokens", 64), sampling, **options)


def output_of(request: Request, runner: Runner, detokenizer: Any = None) -> Output:
    """Return the output that a request asks for."""
    return Output(
        max_new_tokens=request.max_new_tokens,
        room=runner.context - len(request.prompt),
        stop_tokens=request.stop_tokens,
        stop_strings=request.stop_strings,
        detokenizer=detokenizer,
    )


def decode(
    runner: Runner,
    prompts: Sequence[Sequence[int]],
    *,
    drafter: Drafter | None = None,
    rule: Rule | None = None,
    decoder: dict[str, Any] | None = None,
    check: bool = False,
    **options: Any,
) -> list[Generation]:
    """Decode prompts in one batch and return their generations; `check`: the cache's invariants after every step."""
    loop = Decoder(runner, drafter, rule, **(decoder or {}))
    generations = []
    for prompt in prompts:
        asked = request(prompt, **options)
        generations += loop.add([asked], [output_of(asked, runner)])
    for _ in loop.run():
        if check:
            runner.cache.check()
    runner.cache.check()
    return generations


def tiny_ops() -> Ops:
    """Return the fastest ops implementation that is built here: long tests of the loop need not be slow."""
    try:
        from outpace.ops.native import NativeOps
    except ImportError:
        return ReferenceOps()
    return NativeOps(threads=1)
