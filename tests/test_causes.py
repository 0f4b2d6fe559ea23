"""The table of advice: each cause has steps, and all reports and suggestions read them."""

from typing import get_args

import pytest

from gradwatch import remedies
from gradwatch.causes import STEPS, advice, causes_treated_by, fit_of
from gradwatch.diagnosis import RULES
from gradwatch.preflight.rules import _RULES as PREFLIGHT_RULES
from gradwatch.records import Cause, Kind

TRANSFORMER = ("Linear", "LayerNorm", "GELU", "MultiheadAttention")


@pytest.mark.parametrize("cause", get_args(Cause))
def test_every_cause_has_steps_in_the_order_of_their_fit(cause: Cause) -> None:
    steps = STEPS[cause]
    fits = [step.fit for step in steps if step.remedy]
    assert fits == sorted(fits, reverse=True)
    assert 1 <= len(advice(cause)) <= 3
    for step in steps:
        assert not step.text.endswith(".")
        assert step.text[0].islower()
        assert (step.fit > 0) == bool(step.remedy)


@pytest.mark.parametrize("cause", get_args(Cause))
def test_every_case_of_a_step_is_one_that_a_rule_claims(cause: Cause) -> None:
    cases = {case for rule in (*RULES, *PREFLIGHT_RULES) if rule.cause == cause for case in rule.scores}
    if cause == "not known":
        cases = {*get_args(Kind), "crash"}
    cases |= {"", "no graph"}  # the rule whose cause is a crash has one score
    assert {case for step in STEPS[cause] for case in step.cases} <= cases


def test_every_remedy_is_in_the_table_and_the_other_way_round() -> None:
    keys = {step.remedy.partition(" ")[0] for steps in STEPS.values() for step in steps if step.remedy}
    assert all(isinstance(getattr(remedies, key), type) for key in keys)
    for name in remedies.__all__:
        kind = getattr(remedies, name)
        if isinstance(kind, type) and issubclass(kind, remedies.Remedy):
            is_for_composing = name in ("Advice", "Combination", "Remedy", "LSTMLikeRNN")
            assert is_for_composing or causes_treated_by(name), name


def test_advice_fits_the_network() -> None:
    texts = [
        *advice("missing normalization or skip", kinds=TRANSFORMER),
        *advice("initialization too small", "small", TRANSFORMER),
    ]
    assert not any("put a normalization layer" in text for text in texts)
    assert "normalize before each block, not after it" in texts
    assert not any("bounded" in text for text in texts)


def test_the_first_advice_is_the_first_suggestion() -> None:
    """The most direct remedy of a cause comes first; for a dying ReLU that is not a lower rate."""
    for cause, steps in STEPS.items():
        by_remedy = [step for step in steps if step.remedy and not step.cases]
        assert all(fit_of(step.remedy, cause) <= by_remedy[0].fit for step in by_remedy)
    assert advice("dead ReLU", "in training")[0] == "replace the ReLUs by LeakyReLU"
