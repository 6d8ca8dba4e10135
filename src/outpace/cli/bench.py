"""The commands `bench` and `bench growth`: what strategies and the KV cache gain on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from outpace.cli.fields import option_name, spelled_out
from outpace.cli.loading import loading_fields, open_model
from outpace.cli.measuring import DraftModel, Prompts, at_least, known, numbers, output_folder, prompts_from, words
from outpace.cli.progress import progress_on_stderr
from outpace.cli.streams import put
from outpace.errors import UsageError

Folder = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for the results, as JSON, Markdown and (with matplotlib) PNG.")
]
Repeats = Annotated[int, typer.Option(help="Number of times that every measurement is made.")]

bench = typer.Typer(no_args_is_help=False)


@bench.callback(invoke_without_command=True)
@spelled_out
def bench_strategies(
    context: typer.Context,
    loading: Annotated[Mapping[str, Any], loading_fields("context", "cache_tokens")],
    strategies: Annotated[
        str | None,
        typer.Option(
            "--strategies",
            "-s",
            help="Strategies, comma-separated; plain decoding is always included. (default: auto, that of the model's "
            "trained drafter, suffix, ngram, lookahead)",
        ),
    ] = None,
    prompts: Prompts = None,
    per_category: Annotated[
        int | None, typer.Option(help="Maximum number of prompts per category. (default: all)")
    ] = None,
    sampling: Annotated[str, typer.Option(help="greedy, sampled or both, comma-separated.")] = "greedy,sampled",
    batch: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1",
    lengths: Annotated[
        str,
        typer.Option(
            "--context", help="Minimum prompt lengths in tokens, comma-separated; 0 leaves the prompts unchanged."
        ),
    ] = "0",
    num_adversarial: Annotated[
        int, typer.Option("--adversarial", help="Number of prompts to add whose texts are hard to draft.")
    ] = 0,
    num_tokens: Annotated[int, typer.Option("--num-tokens", "-n", help="Number of new tokens per text.")] = 128,
    repeats: Repeats = 3,
    draft_model: DraftModel = None,
    output: Folder = Path("outpace-bench"),
) -> None:
    """Compare strategies with plain decoding on the same prompts; a row counts only if its texts are equal.

    Ctrl-C keeps what there is. `outpace bench growth --help`: what the KV cache gains.
    """
    if context.invoked_subcommand is not None:
        _refuse_ignored(context)
        return
    from outpace.measure.bench import alternate, files, tables
    from outpace.measure.bench.adversarial import adversarial
    from outpace.measure.bench.sample import SAMPLINGS, Sample
    from outpace.measure.prompts import spread
    from outpace.measure.provenance import provenance

    at_least(0, adversarial=num_adversarial)
    at_least(1, repeats=repeats, per_category=1 if per_category is None else per_category)
    at_least(2, num_tokens=num_tokens)
    named = () if strategies is None else tuple(words(strategies, "--strategies", "auto,ngram"))
    design = alternate.Design(
        strategies=named,
        samplings=tuple(known(sampling, SAMPLINGS, "--sampling")),
        batches=tuple(numbers(batch, "--batch", 1)),
        contexts=tuple(numbers(lengths, "--context", 0)),
        num_tokens=num_tokens,
        repeats=repeats,
    )
    chosen = prompts_from(prompts)
    if per_category is not None:
        chosen = spread(chosen, per_category)
    output_folder(output, "bench.json", "bench.md")
    cache_tokens = max(2 * alternate.longest(chosen, design) * max(design.batches), 4096)
    lm = open_model(**loading, cache_tokens=cache_tokens)
    draft = lm.companion(draft_model) if draft_model is not None else None
    if strategies is None:
        design = replace(design, strategies=alternate.default_strategies(lm))
    alternate.check(lm, design, draft)
    chosen += adversarial(lm.tokenizer, num_adversarial)
    origin = provenance(lm)
    samples: list[Sample] = []
    try:
        with progress_on_stderr() as progress:
            samples.extend(alternate.measure(lm, chosen, design, draft_model=draft, progress=progress))
    finally:
        complete = len(samples) == alternate.num_calls(chosen, design)
        rows = files.save_bench(output, samples, design, origin, complete)
        _put_lines(tables.headlines(rows), output)
    if any(row.unequal for row in rows):
        raise typer.Exit(1)


@bench.command()
@spelled_out
def growth(
    loading: Annotated[Mapping[str, Any], loading_fields("context", "cache_tokens")],
    sizes: Annotated[str, typer.Option(help="Numbers of tokens before the measured one, comma-separated.")] = (
        "16,32,64,128,256,512,1024,1536,2048"
    ),
    repeats: Repeats = 3,
    output: Folder = Path("outpace-bench"),
) -> None:
    """Measure what the n-th token costs, with the KV cache and without it. Ctrl-C keeps what there is."""
    from outpace.measure.bench import files
    from outpace.measure.bench.growth import Point, measure_growth
    from outpace.measure.provenance import provenance

    at_least(1, repeats=repeats)
    counts = sorted(set(numbers(sizes, "--sizes", 1)))
    output_folder(output, "growth.json", "growth.md")
    lm = open_model(**loading, cache_tokens=2 * (max(counts) + 1024))
    origin = provenance(lm)
    points: list[Point] = []
    complete = False
    try:
        with progress_on_stderr() as progress:
            points.extend(measure_growth(lm, counts, repeats, progress))
        complete = True
    finally:
        if points:
            _put_lines(files.save_growth(output, points, origin, complete), output)


def _refuse_ignored(context: typer.Context) -> None:
    """Refuse options in front of a command that would ignore them."""
    for parameter in context.command.params:
        assert parameter.name is not None
        source = context.get_parameter_source(parameter.name)
        if source is not None and source.name != "DEFAULT":
            option = next(iter(parameter.opts), option_name(parameter.name))
            raise UsageError(
                f"{option} stands before {context.invoked_subcommand!r} and would be ignored: write it after that word"
            )


def _put_lines(lines: Iterable[str], folder: Path) -> None:
    for line in (*lines, f"all numbers, tables and plots: {folder}"):
        put(line)
