"""The commands that measure: `certify` and `bench` (with `bench growth`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outpace.cli.terminal import KV, Debug, Model, Ops, Threads, console, open_model, ticking
from outpace.errors import UsageError, unknown

if TYPE_CHECKING:
    from outpace.api import LanguageModel
    from outpace.types import KVFormat

Prompts = Annotated[
    Path | None,
    typer.Option(help="Prompts in Spec-Bench's format, one JSON object a line.  [default: the built-in ones]"),
]
DraftModel = Annotated[str | None, typer.Option(help="The cheaper model, for strategy draft_model.")]
Folder = Annotated[Path, typer.Option("--output", "-o", help="Folder for the JSON, Markdown and PNG files.")]
Strategies = Annotated[str, typer.Option("--strategies", "-s", help="Strategies, with commas; none is always there.")]
Repeats = Annotated[int, typer.Option(help="How often everything is measured.")]
PerCategory = Annotated[int | None, typer.Option(help="Most prompts of a category.  [default: all]")]
NumTokens = Annotated[int, typer.Option("--num-tokens", "-n", help="Tokens of each text.")]


def certify(
    model: Model = "smollm2-135m",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter texts, fewer draws.")] = False,
    prompts: Prompts = None,
    draft_model: DraftModel = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The JSON file; the report (.md) lies beside it.")
    ] = Path("certificate.json"),
    threads: Threads = None,
    ops: Ops = None,
    debug: Debug = False,
) -> None:
    """Prove on this machine that no strategy changes what the model writes. Exit code 1 if it is not proven."""
    import json

    from outpace.measure.certify import FULL, QUICK, markdown, verdict_lines
    from outpace.measure.certify import certify as examine
    from outpace.measure.prompts import load_prompts

    if output.suffix != ".json" or not output.absolute().parent.is_dir():
        raise UsageError(f"--output must be a .json file in a folder that exists, got {str(output)!r}")
    chosen = load_prompts(prompts)

    def opened(kv: KVFormat, cache_tokens: int) -> LanguageModel:
        return open_model(model, kv=kv, cache_tokens=cache_tokens, threads=threads, ops=ops)

    with ticking() as progress:
        certificate = examine(
            opened,
            chosen,
            QUICK if quick else FULL,
            draft=lambda target: target.companion(draft_model) if draft_model else target,
            progress=progress,
        )
    output.write_text(json.dumps(certificate.as_dict(), ensure_ascii=False, indent=1), encoding="utf-8")
    output.with_suffix(".md").write_text(markdown(certificate), encoding="utf-8")
    screen = console(stderr=False)
    verdict, *rest = verdict_lines(certificate)
    style = "bold green" if certificate.verdict == "pass" else "bold red"
    screen.print(verdict, style=style, markup=False, soft_wrap=True)
    for line in (*rest, f"report: {output.with_suffix('.md')} (all numbers: {output})"):
        screen.print(line, markup=False, soft_wrap=True)
    if certificate.verdict != "pass":
        raise typer.Exit(1)


bench = typer.Typer(
    help="Measure strategies beside plain decoding on the same prompts, text checked first.", no_args_is_help=False
)


@bench.callback(invoke_without_command=True)
def bench_strategies(
    context: typer.Context,
    model: Model = "smollm2-135m",
    strategies: Strategies = "auto,ngram,suffix,lookahead",
    prompts: Prompts = None,
    per_category: PerCategory = None,
    samplings: Annotated[
        str, typer.Option("--sampling", help="greedy, sampled or both, with a comma.")
    ] = "greedy,sampled",
    batches: Annotated[str, typer.Option("--batch", help="Batch sizes, with commas.")] = "1",
    contexts: Annotated[
        str, typer.Option("--context", help="Least tokens of a prompt, with commas; 0: prompts as they are.")
    ] = "0",
    num_adversarial: Annotated[
        int, typer.Option("--adversarial", help="Add so many prompts of random tokens, and of text without repetition.")
    ] = 0,
    num_tokens: NumTokens = 128,
    repeats: Repeats = 3,
    draft_model: DraftModel = None,
    output: Folder = Path("outpace-bench"),
    threads: Threads = None,
    ops: Ops = None,
    kv: KV = "bf16",
    debug: Debug = False,
) -> None:
    """Measure strategies beside plain decoding on the same prompts. Ctrl-C keeps what there is."""
    if context.invoked_subcommand is not None:
        _refuse_ignored(context)
        return
    from outpace.measure.bench import alternate, files, tables
    from outpace.measure.bench.adversarial import adversarial
    from outpace.measure.bench.sample import SAMPLINGS, Sample
    from outpace.measure.prompts import load_prompts, spread
    from outpace.measure.provenance import provenance

    if num_adversarial < 0:
        raise UsageError(f"--adversarial must be at least 0, got {num_adversarial}")
    chosen = load_prompts(prompts)
    if per_category is not None:
        chosen = spread(chosen, per_category)
    design = alternate.Design(
        strategies=tuple(_words(strategies)),
        samplings=tuple(_known(samplings, SAMPLINGS, "sampling")),
        batches=tuple(_numbers(batches, "--batch")),
        contexts=tuple(_numbers(contexts, "--context")),
        num_tokens=num_tokens,
        repeats=repeats,
    )
    output.mkdir(parents=True, exist_ok=True)
    cache_tokens = max(2 * alternate.longest(chosen, design) * max(design.batches), 4096)
    lm = open_model(model, kv=kv, threads=threads, ops=ops, cache_tokens=cache_tokens)
    draft = lm.companion(draft_model) if draft_model is not None else None
    alternate.check(lm, design, draft)
    chosen += adversarial(lm.tokenizer, num_adversarial)
    origin = provenance(lm)
    samples: list[Sample] = []
    try:
        with ticking() as progress:
            samples.extend(alternate.measure(lm, chosen, design, draft_model=draft, progress=progress))
    finally:
        complete = len(samples) == alternate.num_calls(chosen, design)
        rows = files.save_bench(output, samples, design, origin, complete)
        _print_lines(tables.headlines(rows), output)
    if any(row.unequal for row in rows):
        raise typer.Exit(1)


@bench.command()
def growth(
    model: Model = "smollm2-135m",
    sizes: Annotated[str, typer.Option(help="Tokens before the measured one, with commas.")] = (
        "16,32,64,128,256,512,1024,1536,2048"
    ),
    repeats: Repeats = 3,
    output: Folder = Path("outpace-bench"),
    threads: Threads = None,
    ops: Ops = None,
    kv: KV = "bf16",
    debug: Debug = False,
) -> None:
    """Measure what the n-th token costs, with the KV cache and without it. Ctrl-C keeps what there is."""
    from outpace.measure.bench import files
    from outpace.measure.bench.growth import Point, measure_growth
    from outpace.measure.provenance import provenance

    counts = sorted(set(_numbers(sizes, "--sizes")))
    output.mkdir(parents=True, exist_ok=True)
    lm = open_model(model, kv=kv, threads=threads, ops=ops, cache_tokens=2 * (max(counts) + 1024))
    origin = provenance(lm)
    points: list[Point] = []
    complete = False
    try:
        with ticking() as progress:
            points.extend(measure_growth(lm, counts, repeats, progress))
        complete = True
    finally:
        if points:
            _print_lines(files.save_growth(output, points, origin, complete), output)


def _refuse_ignored(context: typer.Context) -> None:
    """Refuse options in front of a command that would ignore them."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise UsageError(
                f"{name} stands before {context.invoked_subcommand!r} and would be ignored: write it behind that word"
            )


def _words(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError(f"names at least one thing, with commas between several; got {text!r}")
    return words


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise UsageError(f"{option} takes whole numbers with commas between them, got {text!r}") from None


def _known(text: str, allowed: Iterable[str], kind: str) -> list[str]:
    for word in (words := _words(text)):
        if word not in allowed:
            raise unknown(kind, word, allowed)
    return words


def _print_lines(lines: Iterable[str], folder: Path) -> None:
    screen = console(stderr=False)
    for line in (*lines, f"all numbers, tables and plots: {folder}"):
        screen.print(line, markup=False, soft_wrap=True)
