"""The scripts that measure the arithmetic and the loop still run; what they print is for people."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import outpace
from benchmarks import attention, experts, levels, matmul, ops, overhead, perplexity
from tests.decoding import tiny_ops
from tests.folder import make_folder
from tests.published import write_ours


def test_a_steps_overhead_is_printed_with_and_without_drafts(capsys: pytest.CaptureFixture[str]) -> None:
    overhead.main(["--steps", "20"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" nodes")[0].split() for line in lines] == [
        ["greedy", "0"], ["greedy", "16"], ["sampled", "0"], ["sampled", "16"],
    ]  # fmt: skip
    assert all(float(re.findall(r"[\d.]+ microseconds", line)[0].split()[0]) > 0 for line in lines)


def test_passes_are_measured_by_rows_and_context(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("outpace.ops.native")
    ops.main(["--model", "tiny", "--formats", "Q8_0,BF16", "--quick", "--threads", "1", "--repeats", "2"])
    out = capsys.readouterr().out
    assert out.count("8 rows, context 512") == 2
    assert "tiny BF16" in out
    assert "sample, temperature 0.8, top-p 0.95" in out


def test_attention_is_measured_by_turns_with_another_build(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("outpace.ops.native")
    source = str(Path(outpace.__file__).parents[1])
    arguments = ["--rounds", "1", "--repeats", "1", "--cases", "1 at 128,2 texts at 32", "--against", source]
    attention.main(["--model", "tiny", *arguments])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("  1 at 128 ")
    assert lines[2].startswith("  2 texts at 32")
    assert all(float(line.rsplit("pass ", 1)[1]) > 0 for line in lines[1:])


def test_products_are_measured_relative_to_a_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("outpace.ops.native")
    monkeypatch.setattr(matmul, "MIN_BYTES", 100_000)
    matmul.main(["--formats", "Q4_1", "--shape", "64x64", "--rows", "1", "8", "--threads", "1", "--repeats", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("Q4_1 64x64")
    assert [line.split()[0] for line in lines[2:]] == ["1", "8"]


def test_a_row_s_experts_are_measured_relative_to_a_read(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("outpace.ops.native")
    experts.main(["--model", "tiny", "--format", "Q8_0", "--layers", "2", "--threads", "1", "--repeats", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert "MB active of" in lines[0]
    assert sum("experts of a layer" in line for line in lines) == len(experts.ROWS)
    assert "pass of one row" in "".join(lines)


@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_a_drafters_levels_are_measured_relative_to_plain_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], temperature: str
) -> None:
    folder = make_folder(tmp_path / "tiny")
    drafter = write_ours(outpace.load(folder, threads=1), tmp_path / "drafter.gguf")
    command = ["-m", str(folder), "--drafter", str(drafter), "--threads", "1", "--tokens", "40"]
    levels.main([*command, "--temperature", temperature])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"temperature {temperature}, 39 passes")
    assert [line.split()[0] for line in lines] == ["wall", "processor"]
    for line in lines:
        milliseconds = [float(number) for number in re.findall(r"([\d.]+) ms", line)]
        assert min(milliseconds[:2]) > 0
        assert 0 < float(re.findall(r"ms = ([\d.]+) of it", line)[0]) < 50


def test_perplexity_is_relative_to_the_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("outpace.ops.native")
    folder = make_folder(tmp_path / "tiny")
    perplexity.main(["-m", str(folder), "--tokens", "60", "-o", str(tmp_path)])
    saved = json.loads((tmp_path / "perplexity.json").read_text())
    assert saved["kind"] == "perplexity"
    assert [(row["ops"], row["kv"]) for row in saved["rows"]] == [
        ("reference", "f32"), ("native", "f32"), ("native", "bf16"), ("native", "int8"),
    ]  # fmt: skip
    assert abs(saved["rows"][1]["change_percent"]) < 5
    assert capsys.readouterr().out.count("perplexity") == 4


def test_log_probs_are_those_of_the_next_tokens(tmp_path: Path) -> None:
    lm = outpace.load(make_folder(tmp_path / "tiny"), ops=tiny_ops())
    tokens = list(range(2, 40))
    found = perplexity.log_probs(lm, tokens)
    assert found.shape == (37, lm.config.vocab_size)
    assert np.exp(found).sum(axis=1) == pytest.approx(1.0)
    plain = lm.generate([tokens], max_new_tokens=1, ignore_eos=True)[0].tokens[0]
    longer = perplexity.log_probs(lm, [*tokens, plain])
    assert longer[-1].argmax() == plain
