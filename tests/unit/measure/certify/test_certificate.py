from __future__ import annotations

import json
from dataclasses import replace

from outpace.measure.certify import Certificate
from outpace.measure.certify.divergence import Divergence


def test_the_verdict_is_void_without_its_controls_and_fails_with_any_broken_part(certificate: Certificate) -> None:
    right, biased = certificate.distribution[0], certificate.biased_control
    assert replace(certificate, wrong_token=None).verdict == "void"
    assert replace(certificate, wrong_token=Divergence(0, 5, 1, 2, 0.0, 0.0, 1.0)).verdict == "void"
    assert replace(certificate, biased_control=right).verdict == "void"
    assert replace(certificate, distribution=(right, biased)).verdict == "fail"
    broken = replace(certificate.identity[0], divergences=(Divergence(0, 3, 1, 2, 0.5, 0.5, 0.0),))
    failed = replace(certificate, identity=(broken, *certificate.identity[1:]))
    assert failed.verdict == "fail"
    assert failed.broken == [broken]


def test_it_survives_json(certificate: Certificate) -> None:
    again = json.loads(json.dumps(certificate.as_dict()))
    assert (again["schema"], again["verdict"], len(again["identity"])) == (4, "pass", len(certificate.identity))
    assert again["scope"]["draws"] == 500
    assert again["distribution_control"]["verification"] == "control: biased rejection sampling"
    assert again["identity_control"]["within_rounding"] is False
