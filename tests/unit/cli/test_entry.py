from __future__ import annotations

import sys

import pytest

from outpace import cli
from tests.unit.cli.running import SMALL, outcome, run

# A finder that presses Ctrl-C when a module is about to be imported.
CTRL_C = """
import signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            sys.meta_path.remove(finder)
            signal.raise_signal(signal.SIGINT)
finder = Finder()
sys.meta_path.insert(0, finder)
"""


@pytest.mark.parametrize(
    "module",
    ["typer", "numpy", "tokenizers", "outpace.cli.app", "outpace.errors", "outpace.api", "outpace.ops.reference"],
)
def test_ctrl_c_during_the_imports_ends_quietly(folder: str, module: str) -> None:
    done = outcome("generate", "hi", "-m", folder, "-n", "4", *SMALL, before=CTRL_C.format(name=module))
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_the_entry_point_imports_nothing_heavy() -> None:
    """What is imported before `main` runs is imported where Ctrl-C ends in Python's traceback."""
    code = (
        "import sys; before = set(sys.modules); import outpace.cli; print(*set(sys.modules) - before, file=sys.stderr)"
    )
    done = outcome(before=f"{code}; sys.exit()")
    ours = {name for name in done.stderr.decode().split() if name.startswith("outpace")}
    assert ours == {"outpace", "outpace.version", "outpace.cli", "outpace.cli.entry", "outpace.cli.exit_codes"}
    assert not {"numpy", "typer", "rich", "tokenizers"} & set(done.stderr.decode().split())


def test_generate_imports_what_it_uses_and_no_other_command(folder: str) -> None:
    """Cold start is mostly imports. Told by name: a time would depend on the machine."""
    before = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.__stderr__))"
    done = outcome("generate", "hi", "--raw", "-m", folder, "-n", "1", *SMALL, before=before)
    assert done.returncode == 0
    found = set(done.stderr.decode().split())
    assert {"outpace.cli.generate", "outpace.api"} <= found
    commands = {"bench", "certify", "chat", "distill", "drafter", "explain", "models", "quantize", "train", "measuring"}
    unused = {f"outpace.cli.{name}" for name in commands} | {"outpace.train", "outpace.measure.bench"}
    unused |= {"outpace.measure.certify", "outpace.measure.explain", "outpace.server", "outpace.drafters.layouts"}
    unused |= {"rich.console", "torch", "transformers", "huggingface_hub", "matplotlib", "safetensors", "asyncio"}
    assert found & unused == set()


ASKS = "import atexit, gc, os, sys; atexit.register(lambda: print({what}, file=sys.__stderr__))"


@pytest.mark.parametrize(("given", "kept"), [({}, "1"), ({"OPENBLAS_NUM_THREADS": "3"}, "3")])
def test_numpy_starts_no_threads_of_its_own_unless_somebody_asks_for_them(given: dict[str, str], kept: str) -> None:
    """They take a sixth of a cold start, and the ops have threads of their own."""
    before = f"import os; os.environ.pop('OPENBLAS_NUM_THREADS', None); os.environ.update({given!r}); "
    done = outcome("models", before=before + ASKS.format(what="os.environ['OPENBLAS_NUM_THREADS']"))
    assert done.stderr.decode().split() == [kept]


def test_commands_that_train_leave_the_threads_of_numpy_alone() -> None:
    before = "import os; os.environ.pop('OPENBLAS_NUM_THREADS', None); "
    done = outcome("train", "--help", before=before + ASKS.format(what="'OPENBLAS_NUM_THREADS' in os.environ"))
    assert done.stderr.decode().split() == ["False"]


def test_nothing_is_looked_through_for_garbage_on_the_way_out() -> None:
    done = outcome("models", before=ASKS.format(what="gc.get_freeze_count() > 1000"))
    assert done.stderr.decode().split() == ["True"]


def test_debug_shows_the_traceback_wherever_it_stands(folder: str) -> None:
    arguments = ["generate", "hi", "-m", folder, "-s", "ngrm", *SMALL]
    for debugged in ([*arguments, "--debug"], ["--debug", *arguments]):
        with pytest.raises(ValueError, match="unknown strategy"):
            cli.main(debugged)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["genrate"], "Did you mean 'generate'? (`outpace --help` lists"),
        (["generate", "hi", "--nope"], "No such option: --nope"),
        (["generate"], "(`outpace generate --help` lists"),
        (["generate", "name", "three", "rivers"], "put the prompt in quotes"),
        (["generate", "hi", "-n", "many"], "'--max-new-tokens'"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_no_command_shows_the_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert "generate" in capsys.readouterr().out
    assert run("-h") == 0
    assert "generate" in capsys.readouterr().out
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("outpace 0.")


def test_the_streams_of_a_caller_stay_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    run("models")
    assert sys.stdout is before
