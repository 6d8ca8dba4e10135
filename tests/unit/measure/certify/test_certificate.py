from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import outpace
from outpace import cli
from outpace.api import LanguageModel
from outpace.api.strategies import STRATEGIES
from outpace.measure.certify import Certificate, Plan, certify, markdown, num_parts, verdict_lines
from outpace.measure.certify.divergence import Divergence
from outpace.measure.certify.identity import Identity
from outpace.measure.prompts import TaskPrompt
from outpace.tree import DraftTree
from tests.decoding import tiny_ops
from tests.folder import make_folder

PROMPTS = [  # longer than a block of the cache
    TaskPrompt("a", "the cat sat on the mat and the dog said: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15"),
    TaskPrompt("b", "def f(x):\n    return x, f(x)\n\ndef g(y):\n    return f(y) + y ** 3 - 2 * y / 7 + f(f(y))"),
]
SMALL = Plan(num_prompts=2, num_tokens=10, num_recomputed=3, batches=(1, 2), most_groups=1, draws=500)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def own_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "models"))


def opener(folder: Path) -> Any:
    ops = tiny_ops()
    return lambda kv, cache_tokens: outpace.load(folder, kv=kv, cache_tokens=cache_tokens, ops=ops)


@pytest.fixture(scope="module")
def certificate(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Certificate, list[str]]:
    parts: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTPACE_CACHE", str(tmp_path_factory.mktemp("cache") / "models"))
        return certify(opener(folder), PROMPTS, SMALL, tick=parts.append), parts


def test_every_strategy_meets_every_batch_cache_and_sampling(certificate: tuple[Certificate, list[str]]) -> None:
    found, parts = certificate
    cases = {(c.strategy, c.batch, c.kv, c.prefix, c.sampling) for c in (run.case for run in found.identity)}
    expected = {
        (strategy, batch, kv, prefix, sampling)
        for strategy in STRATEGIES
        if strategy != "none"
        for batch in (1, 2)
        for kv in ("f32", "bf16", "int8")
        for prefix in (("fresh",) if strategy == "recompute" else ("fresh", "cached"))
        for sampling in ("greedy", "sampled")
    }
    assert cases == expected
    assert len(parts) == num_parts()


def test_a_true_engine_passes_and_its_controls_are_caught(certificate: tuple[Certificate, list[str]]) -> None:
    found, _ = certificate
    assert found.verdict == "pass"
    assert found.wrong_stream is not None
    assert found.wrong_stream.position == 5
    assert not found.biased_rule.result.passed
    assert all(run.tokens > 0 and run.identical for run in found.identity)
    for run in found.identity:
        assert (run.cached_tokens > 0) == (run.case.prefix == "cached")
        if run.case.strategy == "prediction":
            assert run.tokens_per_step > 1.5  # drafts were really verified


def test_lossy_formats_are_measured_against_f32(certificate: tuple[Certificate, list[str]]) -> None:
    bf16, int8 = certificate[0].losses
    assert bf16.mode.startswith("bf16")
    assert int8.mode.startswith("int8")
    assert 0 < bf16.tv_mean < int8.tv_mean < 0.5
    assert bf16.tv_mean <= bf16.tv_max
    assert 0.5 < int8.top1 <= 1
    assert int8.positions == 20
    assert bf16.perplexity > 1


def test_the_report_says_what_was_found(certificate: tuple[Certificate, list[str]]) -> None:
    found, _ = certificate
    again = json.loads(json.dumps(found.as_dict()))
    assert (again["schema"], again["verdict"], len(again["identity"])) == (1, "pass", len(found.identity))
    assert "PASS" in markdown(found)
    assert any("controls" in line and "NOT" not in line for line in verdict_lines(found))


def test_the_verdict_is_void_without_its_controls_and_fails_with_any_broken_part(
    certificate: tuple[Certificate, list[str]],
) -> None:
    found, _ = certificate
    right, biased = found.distribution[0], found.biased_rule
    assert replace(found, wrong_stream=None).verdict == "void"
    assert replace(found, wrong_stream=Divergence(0, 5, 1, 2, 0.0, 0.0, 1.0)).verdict == "void"
    assert replace(found, biased_rule=right).verdict == "void"
    assert replace(found, distribution=(right, biased)).verdict == "fail"
    broken = replace(found.identity[0], divergences=(Divergence(0, 3, 1, 2, 0.5, 0.5, 0.0),))
    failed = replace(found, identity=(broken, *found.identity[1:]))
    assert failed.verdict == "fail"
    assert "NOT within rounding" in markdown(failed)
    assert any("token 3" in line for line in verdict_lines(failed))


def test_an_engine_that_believes_its_drafts_is_caught(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole certificate against a broken loop: the walk accepts a first guess that the target did not make."""

    def credulous(tree: DraftTree, target_tokens: list[int]) -> tuple[list[int], int]:
        return ([0], target_tokens[1]) if len(tree) else ([], target_tokens[0])

    monkeypatch.setattr("outpace.engine.verify.match", credulous)
    found = certify(opener(folder), PROMPTS, SMALL)
    assert found.verdict == "fail"
    assert {"prediction", "lookahead"} & {run.case.strategy for run in found.broken}
    assert not any(d.within_rounding for run in found.broken for d in run.divergences)


def test_the_command_writes_both_reports_and_prints_the_verdict(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("outpace.measure.certify.QUICK", SMALL)
    path = tmp_path / "proof.json"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"category": p.category, "turns": [p.text]}) + "\n" for p in PROMPTS))
    arguments = ["certify", "-m", str(folder), "--quick", "--prompts", str(prompts), "-o", str(path), "--threads", "1"]
    assert _exit_code(arguments) == 0
    assert capsys.readouterr().out.startswith("PASS")
    assert json.loads(path.read_text())["prompts"] == [p.text for p in PROMPTS]
    assert (tmp_path / "proof.md").read_text().startswith("# Certificate")


def test_a_certificate_that_is_not_a_pass_ends_with_exit_code_1(
    certificate: tuple[Certificate, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    void = replace(certificate[0], wrong_stream=None)
    monkeypatch.setattr("outpace.measure.certify.certify", lambda *arguments, **options: void)
    assert _exit_code(["certify", "-m", "nothing-is-loaded", "-o", str(tmp_path / "c.json")]) == 1
    assert _exit_code(["certify", "-o", str(tmp_path / "c.txt")]) == 2


def _exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    return int(end.value.code or 0)


def test_a_draft_model_of_the_users_is_used(folder: Path) -> None:
    asked: list[LanguageModel] = []

    def draft(target: LanguageModel) -> LanguageModel:
        asked.append(target)
        return target

    certify(opener(folder), PROMPTS, replace(SMALL, num_tokens=2, draws=64), draft=draft)
    assert len(asked) == 1


@pytest.mark.parametrize("cut", [3, 7])
def test_a_text_that_ends_early_is_not_plain_decodings(folder: Path, cut: int) -> None:
    """Also where it has just the length of `recompute`'s texts."""
    lm = opener(folder)("f32", 4096)
    prompts = [prompt.encode(lm.tokenizer) for prompt in PROMPTS]
    identity = Identity(lm, "f32", prompts, lm, num_tokens=10, num_recomputed=3, batches=(1,), most_groups=None)
    (plain, _) = identity.write_plain("greedy")
    assert identity.difference(0, plain, "greedy", length=10) is None
    assert identity.difference(0, plain[:3], "greedy", length=3) is None
    found = identity.difference(0, plain[:cut], "greedy", length=10)
    assert found is not None
    assert (found.position, found.other) == (cut, None)
