from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from outpace import cli
from tests.folder import make_folder

SMALL = ["--ops", "reference", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_folder(tmp_path_factory.mktemp("model") / "tiny"))


def run(*arguments: str) -> int:
    """Return the exit code of the command line, run in this process."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    return int(end.value.code or 0)


def test_generate_prints_the_text_alone_on_stdout(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "hi", "-m", folder, "--raw", "-n", "12", *SMALL, "--json") == 0
    expected = json.loads(capsys.readouterr().out)["text"]
    assert run("generate", "hi", "-m", folder, "--raw", "-n", "12", *SMALL) == 0
    printed = capsys.readouterr()
    assert printed.out == expected + "\n"
    assert "12 tokens in 12 steps" in " ".join(printed.err.split())


def test_json_is_one_object_with_everything_a_script_needs(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("generate", "the cat", "-m", folder, "-n", "20", "-s", "ngram", "--seed", "5", "-t", "0.5", "--json", *SMALL)
    answer = json.loads(capsys.readouterr().out)
    assert {"text", "tokens", "finish_reason", "lossless", "seed", "stats"} == set(answer)
    assert (answer["lossless"], answer["seed"], answer["stats"]["tokens"]) == (True, 5, len(answer["tokens"]))


def test_the_chat_template_is_applied_unless_raw(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for raw in ([], ["--raw"]):
        run("generate", "the cat", "-m", folder, "-n", "8", "--json", *raw, *SMALL)
        texts.append(json.loads(capsys.readouterr().out)["stats"]["prompt_tokens"])
    assert texts[0] > texts[1]


def test_a_dash_reads_the_prompt_from_stdin(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "prompt").write_text("the cat")
    with (tmp_path / "prompt").open() as prompt:
        monkeypatch.setattr("sys.stdin", prompt)
        run("generate", "-", "-m", folder, "-n", "8", "--raw", "--json", *SMALL)
    from_stdin = json.loads(capsys.readouterr().out)["tokens"]
    run("generate", "the cat", "-m", folder, "-n", "8", "--raw", "--json", *SMALL)
    assert json.loads(capsys.readouterr().out)["tokens"] == from_stdin


def test_sources_are_coloured_and_the_text_stays_whole(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "the cat sat on the cat sat on", "-m", folder, "-n", "40", "-s", "ngram", *SMALL]
    run(*arguments)
    plain = capsys.readouterr().out
    run(*arguments, "--color-sources")
    coloured = capsys.readouterr()
    assert coloured.out == plain  # a pipe gets no colours
    assert "drafted by:" in coloured.err


def test_a_trace_is_written(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "hi", "-m", folder, "-n", "6", "--trace", str(tmp_path / "t.json"), *SMALL) == 0
    assert json.loads((tmp_path / "t.json").read_text())["schema"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-s", "ngrm"], "unknown strategy 'ngrm': did you mean 'ngram'"),
        (["--top-p", "0.5"], "no effect at temperature 0"),
        (["-m", "/no/such.gguf"], "no such file"),
        (["-m", "smollm2-135"], "did you mean 'smollm2-135m'"),
        (["--json", "--color-sources"], "leave one of them out"),
        (["--prediction", "/no/such/file", "-s", "prediction"], "No such file"),
        (["--kv", "f8"], "unknown kv format 'f8'"),
    ],
)
def test_an_error_is_one_line_with_exit_code_2(
    folder: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "hi", *(["-m", folder] if "-m" not in arguments else []), *arguments, *SMALL) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_debug_shows_the_traceback(folder: str) -> None:
    with pytest.raises(ValueError, match="unknown strategy"):
        cli.main(["generate", "hi", "-m", folder, "-s", "ngrm", "--debug", *SMALL])


def test_an_unknown_command_and_option_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("genrate") == 2
    assert run("generate", "hi", "--nope") == 2


def test_models_and_version_tell_what_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path))
    assert run("models") == 0
    assert "not here yet: outpace pull smollm2-135m" in capsys.readouterr().out
    assert run("models", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0] == {
        "name": "smollm2-135m",
        "licence": "Apache-2.0",
        "bytes": 98362432,
        "path": None,
    }
    assert run("version") == 0
    assert capsys.readouterr().out.startswith("outpace 0.1.0 (")


def test_chat_answers_line_by_line(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines").write_text("hello\n\nand again\n")
    with (tmp_path / "lines").open() as lines:
        monkeypatch.setattr("sys.stdin", lines)
        assert run("chat", "-m", folder, "-n", "10", *SMALL) == 0
    printed = capsys.readouterr()
    assert printed.err.count("tokens in") == 2


def test_ctrl_c_ends_the_text_with_what_there_is(folder: str) -> None:
    command = [sys.executable, "-u", "-c", "from outpace.cli import main; main()"]
    command += ["generate", "hi", "-m", folder, "-n", "1900", "--raw", "--ignore-eos", *SMALL]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        begun = process.stdout.read(40)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert len(begun) == 40
    assert process.returncode == 130, err
    assert b"cancelled" in err
    assert b"Traceback" not in err
