"""The commands `bench` and `bench growth`: what strategies and the KV cache gain on this machine."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from inspect import unwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from outpace.cli.fields import option_name, spelled_out
from outpace.cli.loading import loading_fields, open_model
from outpace.cli.measuring import (
    DraftModel,
    Prompts,
    at_least,
    fractions,
    known,
    numbers,
    output_folder,
    prompts_from,
    words,
)
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
    with_quality: Annotated[
        bool,
        typer.Option("--quality", help="Measure quality beside speed: `outpace bench quality`, with its defaults."),
    ] = False,
    output: Folder = Path("outpace-bench"),
) -> None:
    """Compare strategies with plain decoding on the same prompts; a row counts only if its texts are equal.

    Ctrl-C keeps what there is. `outpace bench growth --help`: what the KV cache gains; `outpace bench quality --help`:
    what lossy ways to decode gain and lose.
    """
    if context.invoked_subcommand is not None:
        _refuse_ignored(context, context.invoked_subcommand)
        return
    if with_quality:
        _refuse_ignored(context, "--quality", ("with_quality", "prompts", "output", *loading))
        unwrap(quality)(loading, prompts=prompts, output=output)  # the function behind the command, with its defaults
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


@bench.command()
@spelled_out
def quality(
    loading: Annotated[Mapping[str, Any], loading_fields("context", "cache_tokens")],
    strategies: Annotated[
        str | None,
        typer.Option(
            "--strategies",
            "-s",
            help="Strategies, comma-separated; plain decoding is always included. (default: auto, that of the model's "
            "trained drafter, and block_diffusion and mask_predict where the model was trained to fill masks)",
        ),
    ] = None,
    students: Annotated[
        list[str] | None,
        typer.Option("--student", help="A smaller model: by itself, and as a draft model. May be repeated."),
    ] = None,
    thresholds: Annotated[
        str, typer.Option(help="Thresholds of block_diffusion, comma-separated: the dial of its curve.")
    ] = "0.5,0.7,0.8,0.9,0.95,0.99",
    passes: Annotated[str, typer.Option(help="Numbers of passes of mask_predict, comma-separated.")] = "4,8,16",
    prompts: Prompts = None,
    per_category: Annotated[int, typer.Option(help="Maximum number of prompts per category.")] = 2,
    num_tasks: Annotated[int, typer.Option("--tasks", help="Number of small tasks of each kind.")] = 8,
    num_tokens: Annotated[int, typer.Option("--num-tokens", "-n", help="Maximum number of new tokens per text.")] = 96,
    repeats: Repeats = 1,
    output: Folder = Path("outpace-bench"),
) -> None:
    """Measure quality beside speed: plain, speculative, distilled and non-autoregressive decoding in one table.

    Perplexity under the model, small tasks answered right, repetition. Exit 1 where a lossless way wrote another text.
    """
    from outpace.measure.bench.quality import Design, Sample, measure_quality, ways_of
    from outpace.measure.bench.quality_report import quality_lines, save_quality
    from outpace.measure.prompts import spread
    from outpace.measure.provenance import provenance
    from outpace.measure.quality.tasks import tasks

    at_least(1, per_category=per_category, tasks=num_tasks, repeats=repeats)
    at_least(2, num_tokens=num_tokens)
    dials = fractions(thresholds, "--thresholds"), numbers(passes, "--passes", 1)
    named = None if strategies is None else words(strategies, "--strategies", "auto,block_diffusion")
    chosen = spread(prompts_from(prompts), per_category)
    output_folder(output, "quality.json", "quality.md")
    lm = open_model(**loading)
    ways = ways_of(lm, named, {name: lm.companion(name) for name in students or ()}, *dials)
    design, origin = Design(num_tokens, num_tasks, repeats), provenance(lm)
    samples: list[Sample] = []
    complete = False
    rows = []
    try:
        with progress_on_stderr() as progress:
            samples.extend(measure_quality(lm, ways, chosen, tasks(num_tasks), design, progress))
        complete = True
    finally:
        if samples:
            rows = save_quality(output, samples, ways, design, origin, complete)
            _put_lines(quality_lines(rows), output)
    if any(row.unequal for row in rows):
        raise typer.Exit(1)


def _refuse_ignored(context: typer.Context, word: str, read: Collection[str] = ()) -> None:
    """Refuse options in front of a command, or beside an option, that would ignore them; it reads those in `read`."""
    for parameter in context.command.params:
        assert parameter.name is not None
        source = context.get_parameter_source(parameter.name)
        if parameter.name not in read and source is not None and source.name != "DEFAULT":
            option = next(iter(parameter.opts), option_name(parameter.name))
            if word.startswith("-"):
                raise UsageError(
                    f"{option} would be ignored with {word}: `outpace bench quality --help` has its options"
                )
            raise UsageError(f"{option} stands before {word!r} and would be ignored: write it after that word")


def _put_lines(lines: Iterable[str], folder: Path) -> None:
    for line in (*lines, f"all numbers, tables and plots: {folder}"):
        put(line)
