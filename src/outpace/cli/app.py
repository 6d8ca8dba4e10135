"""The command line: generate, chat, explain, pull, models, version. Text goes to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outpace.cli.measuring import bench, certify
from outpace.cli.terminal import KV, Debug, Model, Ops, Threads
from outpace.cli.terminal import console as _console
from outpace.cli.terminal import fetching as _progress
from outpace.cli.terminal import open_model as _load
from outpace.errors import OutpaceError, UsageError

if TYPE_CHECKING:
    from outpace.api import LanguageModel, Result, Stream

app = typer.Typer(
    name="outpace",
    help="Language models generate text several times faster, without changing a token of it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(certify)
app.add_typer(bench, name="bench")

Context = Annotated[int | None, typer.Option(help="Most tokens of a text.  [default: the model's limit]")]
MaxNewTokens = Annotated[int | None, typer.Option("--max-new-tokens", "-n", help="Most tokens to write.")]
Temperature = Annotated[float, typer.Option("--temperature", "-t", help="0 takes the most likely token.")]
TopK = Annotated[int, typer.Option(help="Draw from the k most likely tokens; 0: from all.")]
TopP = Annotated[float, typer.Option(help="Draw from the most likely tokens that hold this mass.")]
MinP = Annotated[float, typer.Option(help="Draw from tokens with this share of the largest probability.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1: repeat less of prompt and output.")]
PresencePenalty = Annotated[float, typer.Option(help="Above 0: repeat less of the output.")]
FrequencyPenalty = Annotated[float, typer.Option(help="Above 0: repeat less, the more often it was used.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same text.  [default: drawn, and reported]")]
Stop = Annotated[list[str] | None, typer.Option(help="End the text before this string; may be given again.")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Write on after the model's end token.")]
Strategy = Annotated[
    str,
    typer.Option(
        "--strategy", "-s",
        help="auto (each step what pays), none, recompute, ngram, suffix, prediction, lookahead, draft_model, "
        "combined; or several: ngram+suffix.",
    ),
]  # fmt: skip
MaxDraft = Annotated[int | None, typer.Option(help="Most draft tokens in a step.  [default: 8; auto: 16]")]
Prediction = Annotated[Path | None, typer.Option(help="File with the text you expect, for -s auto or prediction.")]
DraftModel = Annotated[str | None, typer.Option(help="The cheaper model, for -s auto or draft_model.")]
Verification = Annotated[str, typer.Option(help="exact (the text of plain decoding) or rejection (its distribution).")]
ColorSources = Annotated[bool, typer.Option("--color-sources", help="Colour the text by who drafted it.")]


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    model: Model = "smollm2-135m",
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    system: Annotated[str | None, typer.Option(help="System message of the chat template.")] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    presence_penalty: PresencePenalty = 0.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    seed: Seed = None,
    stop: Stop = None,
    ignore_eos: IgnoreEos = False,
    strategy: Strategy = "auto",
    max_draft: MaxDraft = None,
    prediction: Prediction = None,
    draft_model: DraftModel = None,
    verification: Verification = "exact",
    threads: Threads = None,
    ops: Ops = None,
    kv: KV = "bf16",
    context: Context = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
    trace: Annotated[Path | None, typer.Option(help="Write every step to this file, as JSON.")] = None,
    page: Annotated[Path | None, typer.Option("--explain", help="Write a web page that shows how it was done.")] = None,
    color_sources: ColorSources = False,
    debug: Debug = False,
) -> None:
    """Write an answer to a prompt (or, with --raw, go on with the text)."""
    if as_json and color_sources:
        raise UsageError("--color-sources would be ignored with --json: leave one of them out")
    if raw and system is not None:
        raise UsageError("--system would be ignored with --raw: leave one of them out")
    _check_outputs(trace, page)
    text = sys.stdin.read() if prompt == "-" else prompt
    lm = _load(model, threads=threads, ops=ops, kv=kv, context=context)
    messages = [{"role": "system", "content": system}] if system else []
    stream = lm.stream(
        text if raw else [*messages, {"role": "user", "content": text}],
        **_options(
            max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty, seed=seed, stop=stop or (), ignore_eos=ignore_eos, strategy=strategy,
            max_draft=max_draft, prediction=_read(prediction), draft_model=draft_model, verification=verification,
            trace=trace is not None or page is not None, logprobs=None if page is None else 3,
        ),
    )  # fmt: skip
    result = _show(lm, stream, color_sources=color_sources, quiet=as_json)
    if as_json:
        print(json.dumps(_as_dict(result), ensure_ascii=False))
    else:
        _print_summary(result)
    if trace is not None:
        assert result.trace is not None
        result.trace.save(trace)
    if page is not None:
        from outpace.measure.explain import save_page

        assert result.trace is not None
        save_page(result.trace.as_dict(), page)
    if result.finish_reason == "cancelled":
        raise typer.Exit(130)


@app.command()
def chat(
    model: Model = "smollm2-135m",
    system: Annotated[str | None, typer.Option(help="System message of the chat template.")] = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = None,
    strategy: Strategy = "auto",
    max_draft: MaxDraft = None,
    draft_model: DraftModel = None,
    threads: Threads = None,
    ops: Ops = None,
    kv: KV = "bf16",
    context: Context = None,
    color_sources: ColorSources = False,
    debug: Debug = False,
) -> None:
    """Talk with a model; the cache keeps the conversation. Ctrl-C stops an answer, Ctrl-D ends the chat."""
    lm = _load(model, threads=threads, ops=ops, kv=kv, context=context)
    options = _options(
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=seed, strategy=strategy, max_draft=max_draft,
        draft_model=draft_model,
    )  # fmt: skip
    conversation = lm.chat(system, **options)
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if text.strip():
            _print_summary(_show(lm, conversation.stream(text), color_sources=color_sources))


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="A known name (see `outpace models`) or a hub id.")],
    debug: Debug = False,
) -> None:
    """Fetch a model into the user's cache folder and print where it lies."""
    from outpace.weights.catalog import resolve

    with _progress(model) as progress:
        path = resolve(model, progress)
    print(path)


@app.command()
def explain(
    trace: Annotated[Path, typer.Argument(help="A trace: what generate --trace wrote.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page.  [default: TRACE.html]")] = None,
    debug: Debug = False,
) -> None:
    """Turn a trace into a web page that shows how the text came about; it works offline. Prints where it lies."""
    from outpace.measure.explain import read_trace, save_page

    page = output or trace.with_suffix(".html")
    _check_outputs(trace, page)
    save_page(read_trace(trace), page)
    print(page)


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False, debug: Debug = False
) -> None:
    """List the models that are known by name, and which of them are here."""
    from outpace.weights.catalog import known_models

    known = known_models()
    if as_json:
        rows = [
            {
                "name": m.name,
                "licence": m.licence,
                "bytes": m.source.num_bytes,
                "path": str(m.path) if m.present else None,
            }
            for m in known
        ]
        print(json.dumps(rows))
        return
    for m in known:
        print(f"{m.name}  {m.source.num_bytes / 1e6:.0f} MB, {m.licence}: {m.description}")
        print(f"  here: {m.path}" if m.present else f"  not here yet: outpace pull {m.name}")
    print("also: a path to a GGUF file or a Hugging Face folder, or a hub id (owner/name)")


@app.command()
def version(debug: Debug = False) -> None:
    """Print the version, and which arithmetic runs here."""
    from outpace import __version__
    from outpace.api import default_ops

    ops = default_ops()
    print(f"outpace {__version__} ({ops.name} ops, {ops.threads} threads)")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. An error is one line with cause and cure, and exit code 2; --debug shows its traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    warnings.showwarning = lambda message, *rest: print(f"warning: {message}", file=sys.stderr)
    try:
        app(arguments, prog_name="outpace")
    except KeyboardInterrupt:
        sys.exit(130)
    except (OutpaceError, OSError) as error:
        if "--debug" in arguments:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


# -- pieces ------------------------------------------------------------------------------------------


def _options(**options: Any) -> Any:
    return options


def _read(path: Path | None) -> str | None:
    return path.read_text(encoding="utf-8") if path else None


def _check_outputs(trace: Path | None, page: Path | None) -> None:
    """Refuse files that could not be written, before the work is done."""
    for path in (trace, page):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise UsageError(f"{str(path)!r} is no place for a file: name a file in a folder that exists")
    if trace is not None and page is not None and trace.resolve() == page.resolve():
        raise UsageError(f"the trace and the page cannot both be {str(trace)!r}: give them different names")


def _show(lm: LanguageModel, stream: Stream, *, color_sources: bool = False, quiet: bool = False) -> Result:
    """Print a stream as it comes; Ctrl-C ends it with what there is."""
    painter = _Painter(lm) if color_sources else None
    try:
        for chunk in stream:
            if painter is not None:
                painter.show(chunk.text, chunk.tokens, chunk.sources)
            elif not quiet:
                print(chunk.text, end="", flush=True)
    except KeyboardInterrupt:
        stream.close()
    if not quiet:
        print()
    if painter is not None:
        painter.legend()
    assert stream.result is not None
    return stream.result


class _Painter:
    """Print text coloured by who drafted it."""

    COLORS = ("green", "cyan", "magenta", "yellow", "blue", "red")

    def __init__(self, lm: LanguageModel) -> None:
        self.console = _console(stderr=False)
        self.detokenizer = lm.tokenizer.detokenizer()
        self.colors: dict[str, str] = {}
        self.styles: list[str] = []  # one per character of the tokens so far
        self.shown = 0

    def show(self, text: str, tokens: list[int], sources: list[tuple[str, ...]]) -> None:
        for token, names in zip(tokens, sources, strict=True):
            style = self.colors.setdefault(names[0], self.COLORS[len(self.colors) % 6]) if names else ""
            self.styles += [style] * len(self.detokenizer.push(token))
        for character in text:
            style = self.styles[self.shown] if self.shown < len(self.styles) else ""
            self.console.out(character, style=style or None, end="")
            self.shown += 1

    def legend(self) -> None:
        names = [f"[{color}]{name}[/]" for name, color in self.colors.items()]
        _console().print("drafted by:", *(names or ["nobody"]), "| uncoloured: the target")


def _as_dict(result: Result) -> dict[str, Any]:
    return {
        "text": result.text,
        "tokens": result.tokens,
        "finish_reason": result.finish_reason,
        "lossless": result.lossless,
        "seed": result.seed,
        "stats": result.stats.as_dict(),
    }


def _print_summary(result: Result) -> None:
    stats = result.stats
    speed = f", {rate:.1f} tokens/s" if (rate := stats.decode_tokens_per_second) else ""
    per_step = f", {stats.tokens_per_step:.2f} tokens per step" if stats.steps else ""
    line = f"[{stats.tokens} tokens in {stats.steps} steps{per_step}{speed}; {result.finish_reason}]"
    _console().print(line, style="dim", markup=False)
