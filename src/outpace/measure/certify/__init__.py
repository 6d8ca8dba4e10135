"""The certificate: proof, on the user's own model and machine, that faster decoding leaves the text alone.

Three questions, each with what would make the answer worthless:

* *Same sequence?* Every strategy x batch x KV format x cached prefix x sampling writes, token by token, what plain
  decoding writes (`identity.py`). Control: a sequence with one wrong token must be caught.
* *Same distribution?* Under each way of verification the first two tokens, over many seeds, fit the target's
  distribution, which is computed apart from the sampler (`target_distribution.py`, `distribution.py`,
  `chi_square.py`). Control: rejection sampling with the textbook mistake must be caught.
* *How lossy?* What changes the text on purpose (KV formats below float32) is measured, not proven (`loss.py`).

A certificate whose controls are not caught is void. `report.py` writes it for people.
"""

from outpace.measure.certify.certificate import FULL, QUICK, Certificate, Scope
from outpace.measure.certify.examination import certify
from outpace.measure.certify.report import markdown, verdict_lines

__all__ = ["FULL", "QUICK", "Certificate", "Scope", "certify", "markdown", "verdict_lines"]
