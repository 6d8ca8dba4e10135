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


def test_what_formats_cost_is_said_with_its_interval_and_a_large_loss_by_name(certificate: Certificate) -> None:
    bf16, int8 = certificate.losses
    bf16 = replace(bf16, divergence=0.0045, floor=0.0044, cost_low=-0.0002, cost_high=0.0004)
    small = replace(int8, divergence=0.0060, floor=0.0044, cost_low=0.0011, cost_high=0.0021)
    large = replace(int8, divergence=0.0264, floor=0.0044, cost_low=0.0180, cost_high=0.0260)
    for other, words in (
        (small, "int8 keys and values against f32 keys and values: a loss of 0.16% of perplexity (0.11% to 0.21%)"),
        (large, "LOSES 2.22% of perplexity (1.82% to 2.63%), more than the 0.50% that a format should cost"),
    ):
        found = replace(certificate, losses=(bf16, other))
        first, second = (line for line in verdict_lines(found) if line.startswith("lossy: "))
        assert "bf16 keys and values" in first
        assert "no loss measurable above last bits (at most 0.04% of perplexity, 95 %)" in first
        assert words in second
        assert "last bits alone 0.00440" in second
        assert words.partition(": ")[2] in markdown(found)
        assert found.verdict == certificate.verdict
        assert [loss["finding"] for loss in found.as_dict()["losses"]] == ["none measurable", other.finding]


def test_the_table_of_formats_has_floor_and_cost(certificate: Certificate) -> None:
    bf16 = replace(certificate.losses[0], divergence=0.0045, floor=0.0044, cost_low=-0.0002, cost_high=0.0004)
    row = "| 0.00450 | 0.00440 | 0.01% | -0.02% to 0.04% |"
    assert row in markdown(replace(certificate, losses=(bf16,)))
