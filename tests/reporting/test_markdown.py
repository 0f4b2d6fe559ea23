"""The text that TensorBoard shows."""

from dataclasses import replace

from shown_runs import DIAGNOSIS, FINDING

from gradwatch.reporting.text import findings_text


def test_an_open_finding_has_its_cause_and_what_to_try_as_a_list() -> None:
    text = findings_text([FINDING], [DIAGNOSIS])
    assert "Cause: **saturating activation**. Each Sigmoid takes 0.25. Try, in this order:\n\n1. ReLU with He" in text


def test_a_cause_without_a_finding_is_told_alone_and_beside_findings() -> None:
    alone = replace(DIAGNOSIS, findings=())
    assert findings_text([], [alone]).startswith("**saturating activation**, without a finding. Each Sigmoid")
    assert "without a finding" in findings_text([FINDING], [alone])
    assert findings_text([]) == "No finding so far."
