from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from tests.folder import make_folder
from tests.unit.cli.running import SMALL, command, environment, outcome, run

# In the tiny model, a message of 40 of these letters takes about 47 tokens and an answer about 17: three do not fit.
SMALL_CONTEXT = ["--context", "192", "-n", "1"]
ONE, TWO, THREE = "q" * 40, "v" * 40, "w" * 40


def converse(folder: str, lines: str | bytes, monkeypatch: pytest.MonkeyPatch, *options: str, code: int = 0) -> None:
    """Run a chat over lines of standard input."""
    data = lines.encode() if isinstance(lines, str) else lines
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert run("chat", "-m", folder, *options, *SMALL) == code


def prompts(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, str]]]:
    """Return the list that every chat's messages join when they are encoded for an answer."""
    from outpace.tokenizer import Tokenizer

    seen: list[list[dict[str, str]]] = []
    encode = Tokenizer.encode_chat

    def encode_chat(self, messages, *rest, **more):  # type: ignore[no-untyped-def]
        seen.append([dict(message) for message in messages])
        return encode(self, messages, *rest, **more)

    monkeypatch.setattr(Tokenizer, "encode_chat", encode_chat)
    return seen


def test_chat_answers_line_by_line(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    converse(folder, "hello\n\nand again\n", monkeypatch, "-n", "10")
    printed = capsys.readouterr()
    assert printed.err.count("tokens in") == 2


def test_a_full_context_keeps_the_conversation_and_reads_on(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = prompts(monkeypatch)
    lines = f"{ONE}\n{TWO}\n{THREE}\n/drop\nfour\n"
    converse(folder, lines, monkeypatch, "--system", "be", *SMALL_CONTEXT)
    err = capsys.readouterr().err
    assert err.count("does not fit behind the conversation, which stays as it was") == 1
    assert "/new sends it in a new conversation" in err
    assert "forgot the oldest turn; 1 left" in err
    assert err.count("tokens in") == 4
    said = [[message["content"] for message in messages if message["role"] != "assistant"] for messages in seen]
    assert ["be", ONE, TWO, THREE] in said  # refused
    assert said[-2:] == [["be", TWO, THREE], ["be", TWO, THREE, "four"]]


def test_an_answer_that_fills_the_context_is_told(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    converse(folder, f"{ONE}\n/quit\n", monkeypatch, "--context", "80", "--ignore-eos")
    assert "so this answer may be cut short: /drop makes room" in capsys.readouterr().err


def test_drop_takes_a_number_of_turns(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = prompts(monkeypatch)
    converse(folder, "/drop\na\nb\nc\n/drop 2\nd\n/drop x\n/drop 0\n/drop 9\ne\n", monkeypatch, "-n", "4")
    err = capsys.readouterr().err
    assert "there is no turn to forget yet" in err
    assert "forgot the 2 oldest turns; 1 left" in err
    assert err.count("/drop takes a number of turns of at least 1") == 2
    assert "forgot the 2 oldest turns; 0 left" in err
    said = [[message["content"] for message in messages if message["role"] == "user"] for messages in seen]
    assert said == [["a"], ["a", "b"], ["a", "b", "c"], ["c", "d"], ["e"]]


def test_new_keeps_the_system_message_and_sends_what_found_no_room(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = prompts(monkeypatch)
    converse(folder, f"{ONE}\n{TWO}\n{THREE}\n/new\n", monkeypatch, "--system", "be", *SMALL_CONTEXT)
    assert [message["content"] for message in seen[-1]] == ["be", THREE]
    assert "a new conversation" in capsys.readouterr().err


def test_a_message_longer_than_the_context_is_told_and_the_chat_goes_on(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    converse(folder, "日本" * 100 + "\nhi\n", monkeypatch, *SMALL_CONTEXT)
    err = capsys.readouterr().err
    assert "the prompt has" in err
    assert err.count("tokens in") == 1


def test_commands_are_listed_refused_and_escaped(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = prompts(monkeypatch)
    converse(folder, "/help\n/nwe\n /nwe\n/quit\nnever\n", monkeypatch, "-n", "4")
    err = capsys.readouterr().err
    assert err.count("/drop [N]") == 2
    assert "unknown command '/nwe'; to send it as a message, put a space before it" in err
    assert [messages[-1]["content"] for messages in seen] == ["/nwe"]


def test_a_line_that_is_not_utf8_is_not_sent_and_the_chat_goes_on(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = prompts(monkeypatch)
    converse(folder, b"a\ncaf\xe9\nb\n", monkeypatch, "-n", "4")
    assert "byte 0xe9 at offset 3" in capsys.readouterr().err
    assert [messages[-1]["content"] for messages in seen] == ["a", "b"]


def test_a_wrong_option_ends_the_chat(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    converse(folder, "a\nb\n", monkeypatch, "-s", "ngrm", code=2)
    assert capsys.readouterr().err.count("did you mean 'ngram'") == 1


def test_a_message_that_the_template_refuses_leaves_the_conversation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path / "m")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    refusal = "{% if messages[-1]['content'] == 'no' %}{{ raise_exception('not that') }}{% endif %}"
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"chat_template": refusal + config["chat_template"]})
    )
    seen = prompts(monkeypatch)
    converse(str(folder), "a\nno\nb\n", monkeypatch, "-n", "4")
    assert "not that" in capsys.readouterr().err
    assert [message["content"] for message in seen[-1] if message["role"] == "user"] == ["a", "b"]


def test_a_terminal_is_prompted_on_standard_error_and_greeted_with_the_commands(folder: str) -> None:
    """Standard output gets the answers alone, also where a person types."""
    controller, terminal = pty.openpty()
    try:
        how = {"stdin": terminal, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command("chat", "-m", folder, "-n", "6", *SMALL), env=environment(), **how) as process:
            os.write(controller, b"hi\n/quit\n")
            out, err = process.communicate(timeout=60)
    finally:
        os.close(controller)
        os.close(terminal)
    assert process.returncode == 0, err
    assert b"/drop [N]" in err
    assert b"> " in err
    assert out.count(b"> ") == 0
    piped = outcome("chat", "-m", folder, "-n", "6", *SMALL, input=b"hi\n")
    assert out == piped.stdout


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(folder: str) -> None:
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    arguments = ["chat", "-m", folder, "--ignore-eos", *SMALL]
    with subprocess.Popen(command(*arguments), env=environment(), **how) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"hi\n")
        process.stdin.flush()
        process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        assert b"cancelled" in process.stderr.readline()
        process.stdin.write(b"/new\n/quit\n")
        process.stdin.flush()
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"a new conversation\n")
