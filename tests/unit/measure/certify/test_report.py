from __future__ import annotations

from dataclasses import replace

from outpace.measure.certify import Certificate, markdown, verdict_lines
from outpace.measure.certify.divergence import Divergence


def test_the_report_says_what_was_found(certificate: Certificate) -> None:
    report = markdown(certificate)
    assert "PASS" in report
    assert "| prediction | int8 | sampled | 4 of 4 cases |" in report
    assert "Where sequences part" not in report
    assert any("controls" in line and "NOT" not in line for line in verdict_lines(certificate))


def test_a_difference_is_shown_with_its_place_and_whether_rounding_explains_it(certificate: Certificate) -> None:
    rounding = Divergence(1, 4, 8, 9, 0.1, 0.1, 0.1)
    for divergence, words in (
        (Divergence(0, 3, 1, 2, 0.5, 0.5, 0.0), "at token 3: 2 instead of 1, whose score is 0.5 higher"),
        (rounding, "scores move by 0.1 between pass widths: within rounding"),
        (replace(rounding, rounding=0.01), "NOT within rounding"),
        (Divergence(0, 7, 5, None, None, None, None), "at token 7 one sequence ends (5 against None)"),
    ):
        broken = replace(certificate.identity[0], divergences=(divergence,))
        failed = replace(certificate, identity=(broken, *certificate.identity[1:]))
        assert words in markdown(failed)
        assert any(words in line for line in verdict_lines(failed))


def test_a_control_that_was_not_caught_is_said(certificate: Certificate) -> None:
    void = replace(certificate, wrong_token=None, biased_control=certificate.distribution[0])
    assert "VOID" in markdown(void)
    assert "**not caught**" in markdown(void)
    controls = next(line for line in verdict_lines(void) if line.startswith("controls"))
    assert controls.count("NOT") == 2


def test_a_format_that_loses_too_much_is_named_and_others_are_measured(certificate: Certificate) -> None:
    bf16, int8 = (replace(loss, divergence=value) for loss, value in zip(certificate.losses, (1e-5, 0.02), strict=True))
    found = replace(certificate, losses=(bf16, int8))
    lines = [line for line in verdict_lines(found) if line.startswith("lossy: ")]
    assert "divergence 0.00001" in lines[0]
    assert "LOSES MORE" not in lines[0]
    assert "int8 keys and values against f32 keys and values: divergence 0.02000" in lines[1]
    assert "LOSES MORE than 0.01 nats" in lines[1]
    assert "**int8 keys and values**: LOSES MORE" in markdown(found)
    assert found.as_dict()["losses"][1]["large"]
    assert found.verdict == certificate.verdict
