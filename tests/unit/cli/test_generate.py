from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.folder import make_folder
from tests.unit.cli.running import SMALL, command, environment, outcome, run


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
    assert {"text", "tokens", "finish_reason", "lossless", "verification", "seed", "stats"} == set(answer)
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
    assert "drafted by:" not in coloured.err


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


def test_ctrl_c_ends_the_text_with_what_there_is_and_still_writes_the_trace(folder: str, tmp_path: Path) -> None:
    arguments = ["generate", "hi", "-m", folder, "-n", "1900", "--raw", "--ignore-eos", *SMALL]
    arguments += ["--trace", str(tmp_path / "t.json")]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command(*arguments), env=environment(), **streams) as process:
        assert process.stdout is not None
        begun = process.stdout.read(40)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert len(begun) == 40
    assert process.returncode == 130, err
    assert b"cancelled" in err
    assert b"Traceback" not in err
    assert json.loads((tmp_path / "t.json").read_text())["finish_reason"] == "cancelled"


def test_a_reader_that_leaves_ends_the_text_quietly_and_the_trace_is_still_written(folder: str, tmp_path: Path) -> None:
    arguments = ["generate", "hi", "-m", folder, "-n", "1900", "--raw", "--ignore-eos", *SMALL]
    arguments += ["--trace", str(tmp_path / "t.json")]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command(*arguments), env=environment(), **streams) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (141, b"")
    assert json.loads((tmp_path / "t.json").read_text())["finish_reason"] == "cancelled"


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_full_disk_is_told_in_one_line_and_costs_no_other_output(
    folder: str, form: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "hi", "-m", folder, "-n", "6", "--raw", *form, *SMALL]
    assert run(*arguments, "--seed", "3") == 0
    whole = capsys.readouterr().out
    lost = outcome(*arguments, "--seed", "3", "--trace", "/dev/full", "--explain", "/dev/null")
    assert (lost.returncode, lost.stderr) == (2, b"error: /dev/full: No space left on device\n")
    if form:
        assert json.loads(lost.stdout)["tokens"] == json.loads(whole)["tokens"]
    else:
        assert lost.stdout.decode() == whole != "\n"
    with open("/dev/full", "wb") as full:
        full_disk = outcome(*arguments, stdout=full)
    assert (full_disk.returncode, full_disk.stderr) == (2, b"error: standard output: No space left on device\n")


def test_a_pipe_gets_the_trace_and_stays_a_pipe(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    assert run("generate", "hi", "-m", folder, "-n", "6", "--trace", str(pipe), *SMALL) == 0
    reader.join()
    assert json.loads(read[0])["stats"]["tokens"] == 6
    assert pipe.is_fifo()


def test_a_trace_can_follow_the_text_on_standard_output(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "hi", "-m", folder, "-n", "6", *SMALL]
    assert run(*arguments) == 0
    whole = capsys.readouterr().out.encode()
    with (tmp_path / "out").open("wb") as file:
        assert outcome(*arguments, "--trace", "/dev/stdout", stdout=file).returncode == 0
    written = (tmp_path / "out").read_bytes()
    assert written.startswith(whole)
    assert json.loads(written[len(whole) :])["stats"]["tokens"] == 6


@pytest.mark.parametrize("option", ["--trace", "--explain"])
@pytest.mark.parametrize("path", ["/no/such/folder/x", "/proc/x", "/tmp", "/dev/stdin", "x" * 256])
def test_a_path_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    option: str, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "hi", "-m", "/no/such/model", option, path) == 2
    assert f"{path!r} cannot be written" in capsys.readouterr().err


def test_the_trace_and_the_page_need_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "x")
    arguments = ["generate", "hi", "--trace", str(tmp_path / "x"), "--explain", str(tmp_path / "link")]
    assert run(*arguments) == 2
    assert "different names" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_text_is_never_lost_to_an_encoding(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The tiny model writes bytes at random: characters that ASCII lacks are among them."""
    arguments = [
        "generate",
        "日本",
        "-m",
        folder,
        "--raw",
        "-n",
        "60",
        "--ignore-eos",
        "-t",
        "1",
        "--seed",
        "2",
        *SMALL,
    ]
    assert run(*arguments, "--json") == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert not text.isascii()
    for encoding in ("ascii", "cp1252", "utf-8"):
        plain = outcome(*arguments, env={"PYTHONIOENCODING": encoding})
        assert plain.returncode == 0, plain.stderr
        assert plain.stdout == (text + "\n").encode(encoding, "backslashreplace")
    as_json = outcome(*arguments, "--json", env={"PYTHONIOENCODING": "cp1252"})
    assert as_json.stdout.isascii()
    assert json.loads(as_json.stdout)["text"] == text


def test_text_that_is_not_utf8_is_refused_with_its_place(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, message = b"a\nb\n\xff", b"byte 0xff at offset 4 (line 3)"
    piped = outcome("generate", "-", "-m", folder, *SMALL, input=data)
    assert (piped.returncode, piped.stdout) == (2, b"")
    assert b"the prompt on standard input" in piped.stderr
    assert message in piped.stderr
    argument = outcome("generate", data, "-m", folder, *SMALL)
    assert argument.returncode == 2
    assert message in argument.stderr
    (tmp_path / "x").write_bytes(data)
    assert run("generate", "hi", "--prediction", str(tmp_path / "x"), "-m", folder, *SMALL) == 2
    told = capsys.readouterr().err
    assert f"--prediction: {tmp_path / 'x'} " in told
    assert message.decode() in told


def test_a_prompt_is_utf8_whatever_the_locale(folder: str, tmp_path: Path) -> None:
    trace = tmp_path / "t.json"
    arguments = ["-m", folder, "--raw", "-n", "4", "--trace", str(trace), *SMALL]
    assert run("generate", "日本", *arguments) == 0
    expected = json.loads(trace.read_text())["prompt"]
    c_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for prompt, more in (("日本", {}), ("-", {"input": "日本".encode()})):
        done = outcome("generate", prompt, *arguments, env=c_locale, **more)
        assert done.returncode == 0, done.stderr
        assert json.loads(trace.read_text())["prompt"] == expected


def test_a_model_without_a_chat_template_is_answered_with_raw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text("{}")
    assert run("generate", "hi", "-m", str(folder), *SMALL) == 2
    assert "has no chat template, so it does not answer messages: add --raw" in capsys.readouterr().err
    assert run("generate", "hi", "-m", str(folder), "--raw", "-n", "4", *SMALL) == 0
    capsys.readouterr()
    assert run("chat", "-m", str(folder), *SMALL) == 2
    assert "`outpace generate --raw`" in capsys.readouterr().err


def test_what_a_library_prints_does_not_reach_standard_output(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As the tokenizers library does, in Rust, straight to descriptor 1."""
    noise = "import os, outpace.api.language_model as m\nload = m.open_checkpoint\n"
    noise += "m.open_checkpoint = lambda path: (os.write(1, b'noise'), load(path))[1]"
    assert run("generate", "hi", "-m", folder, "-n", "4", *SMALL) == 0
    noisy = outcome("generate", "hi", "-m", folder, "-n", "4", *SMALL, before=noise)
    assert noisy.stdout.decode() == capsys.readouterr().out
    assert b"noise" in noisy.stderr


def test_tools_and_template_variables_reach_the_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path / "m")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    head = "{% if tools %}{{ tools[0].name }}{% endif %}{% if enable_thinking is false %}off{% endif %}{{ tone }}"
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"chat_template": head + config["chat_template"]})
    )
    (tmp_path / "tools.json").write_text('[{"name": "weather"}]')
    arguments = ["generate", "hi", "-m", str(folder), "-n", "2", "--trace", str(tmp_path / "t.json"), *SMALL]
    arguments += ["--tools", str(tmp_path / "tools.json")]
    arguments += ["--template-var", "enable_thinking=false", "--template-var", "tone=a=b"]
    assert run(*arguments) == 0
    prompt = "".join(json.loads((tmp_path / "t.json").read_text())["prompt_pieces"])
    assert prompt.startswith("weatheroffa=b<|im_start|>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--template-var", "thinking"],
            "--template-var must be KEY=VALUE, such as enable_thinking=false, got 'thinking'",
        ),
        (["--template-var", "=x"], "--template-var must be KEY=VALUE"),
        (["--tools", "/no/such"], "--tools: '/no/such' cannot be read"),
        (["--tools", __file__], "is not JSON"),
        (["--max-draft", "-1"], "--max-draft must be in [0, 1024]"),
        (["-n", "0"], "--max-new-tokens must be at least 1"),
        (["--threads", "0"], "--threads must be in [1, "),
        (["--cache-tokens", "1"], "--cache-tokens must be at least"),
    ],
)
def test_an_error_names_the_option(
    folder: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "hi", "-m", folder, "--ops", "reference", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_refined_text_is_lossy_in_json_and_verified_it_is_plain_decodings(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(*options: str) -> dict[str, Any]:
        assert run("generate", "the cat", "--raw", "-m", folder, "-n", "8", "--json", *options, *SMALL) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    plain = answer("-s", "none")
    refined = answer("-s", "block_diffusion", "--threshold", "0.5", "--block", "4", "--unmask", "confidence")
    verified = answer("-s", "block_diffusion", "--verified")
    assert (refined["lossless"], refined["verification"]) == (False, "none")
    assert refined["stats"]["passes_per_token"] <= 1
    assert (verified["tokens"], verified["lossless"]) == (plain["tokens"], True)
