"""The command `certify`: proof that drafts change nothing on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outpace.cli.colors import BOLD_GREEN, BOLD_RED, painted
from outpace.cli.fields import spelled_out
from outpace.cli.loading import loading_fields, open_model
from outpace.cli.measuring import DraftModel, Prompts, prompts_from
from outpace.cli.progress import progress_on_stderr
from outpace.cli.streams import Failures, put
from outpace.errors import UsageError
from outpace.measure.output_file import OutputFile

if TYPE_CHECKING:
    from outpace.api import LanguageModel
    from outpace.types import KVFormat


@spelled_out
def certify(
    loading: Annotated[Mapping[str, Any], loading_fields("kv", "context", "cache_tokens")],
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter texts, fewer samples.")] = False,
    prompts: Prompts = None,
    draft_model: DraftModel = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The JSON file; the report is written beside it, as .md.")
    ] = Path("certificate.json"),
) -> None:
    """Prove on this machine that no strategy changes what the model writes.

    Exit code 1 if it is not proven. --quick takes minutes for a small model, without it up to an hour or more.
    """
    from outpace.measure.certify import FULL, QUICK, markdown, verdict_lines
    from outpace.measure.certify import certify as examine

    with ExitStack() as stack:
        numbers = stack.enter_context(OutputFile(output))
        report = None
        if numbers.is_regular:
            if output.suffix != ".json":
                raise UsageError(f"--output must end in .json, since the report stands beside it; got {str(output)!r}")
            report = stack.enter_context(OutputFile(output.with_suffix(".md")))
        chosen = prompts_from(prompts)

        def opened(kv: KVFormat, cache_tokens: int) -> LanguageModel:
            return open_model(**loading, kv=kv, cache_tokens=cache_tokens)

        with progress_on_stderr() as progress:
            certificate = examine(
                opened,
                chosen,
                QUICK if quick else FULL,
                draft=lambda target: target.companion(draft_model) if draft_model else target,
                progress=progress,
            )
        verdict, *rest = verdict_lines(certificate)
        passed = certificate.verdict == "pass"
        failures = Failures()
        with failures.kept():
            numbers.write(json.dumps(certificate.as_dict(), ensure_ascii=False, indent=1))
            if report is not None:
                report.write(markdown(certificate))
                rest.append(f"report: {output.with_suffix('.md')} (all numbers: {output})")
        put(painted(verdict, BOLD_GREEN if passed else BOLD_RED, sys.stdout))
        for line in rest:
            put(line)
        failures.tell()
    if not passed:
        raise typer.Exit(1)
