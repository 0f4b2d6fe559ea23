"""Options given as text have the types of a signature, and a wrong one is said and left out."""

from __future__ import annotations

from typing import Any

import pytest

from gradwatch import GradientMonitor
from gradwatch.text_options import options_of_text, read_options


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("every_n_steps=10,report=1", {"every_n_steps": 10, "report": True}),
        (" every-n-steps = 10 , summary = no ", {"every_n_steps": 10, "summary": False}),
        ("report", {"report": True}),
        ("report=runs/a.html", {"report": "runs/a.html"}),
        ("record_path=0", {"record_path": False}),
        ("record_path=runs/a.jsonl,on_finding=stop", {"record_path": "runs/a.jsonl", "on_finding": "stop"}),
        ("include=encoder.*,head,dense_steps=3", {"include": ["encoder.*", "head"], "dense_steps": 3}),
        ("histogram_every_n_steps=none", {"histogram_every_n_steps": None}),
        ("on_error=raise,total_norm_every_step=TRUE", {"on_error": "raise", "total_norm_every_step": True}),
    ],
)
def test_options_have_the_types_of_the_signature(text: str, expected: dict[str, Any]) -> None:
    assert read_options(GradientMonitor, text) == (expected, [])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "every_n_step=3",
            r"there is no option every_n_step, only every_n_steps, .*; did you mean every_n_steps\?",
        ),
        ("detectors=Vanishing", "there is no option detectors, only"),
        ("every_n_steps=ten", "every_n_steps is 'ten'; expected a whole number"),
        ("every_n_steps=0", "every_n_steps"),  # the class's own words
        ("summary=maybe", r"summary is 'maybe'; expected yes or no \(1 or 0\)"),
        ("on_finding=explode", "on_finding is 'explode'; expected warn or stop or raise"),
        ("histogram_every_n_steps=often", "expected a whole number, or none"),
    ],
)
def test_a_wrong_option_is_named_and_the_others_hold(text: str, sentence: str) -> None:
    options, wrong = read_options(GradientMonitor, f"dense_steps=4,{text}")
    assert options == {"dense_steps": 4}
    with pytest.raises(ValueError, match=sentence):
        raise ValueError(*wrong)


def test_it_is_said_once_and_nothing_is_raised(recwarn: pytest.WarningsRecorder) -> None:
    for _ in range(2):
        found = options_of_text(GradientMonitor, "every_n_steps=0,report=said-once.html", "GRADWATCH")
    assert found == {"report": "said-once.html"}
    texts = [str(warning.message) for warning in recwarn]
    assert len(texts) == 1
    assert "GRADWATCH='every_n_steps=0,report=said-once.html', of which an option is left out: " in texts[0]
    assert recwarn.list[0].filename == __file__


def test_options_that_are_right_alone_and_not_together_are_all_left_out() -> None:
    class Window:
        def __init__(self, low: int = 0, high: int = 9) -> None:
            if low > high:
                raise ValueError(f"low is {low}, above high, {high}")

    with pytest.warns(UserWarning, match="whose options are left out: low is 5, above high, 3"):
        assert options_of_text(Window, "low=5,high=3", "GRADWATCH") == {}
