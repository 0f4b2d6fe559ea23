"""The identifiers of findings and causes: an identifier means the same for good."""

from __future__ import annotations

import re
from typing import get_args

from gradwatch.commands.explained_causes import CAUSES
from gradwatch.commands.explained_findings import FINDINGS
from gradwatch.identifiers import IDENTIFIERS
from gradwatch.records import Cause, Kind

# A copy on purpose: baselines, --allow and code scanning hold these. A line of it is never changed and never removed.
PINNED = {
    "GW001": "vanishing",
    "GW002": "exploding",
    "GW003": "nonfinite",
    "GW004": "dead",
    "GW005": "saturated",
    "GW006": "stalled",
    "GW007": "spike",
    "GW008": "unmoved",
    "GW009": "carried-over",
    "GW010": "idle-clip",
    "GW011": "out-of-sync",
    "GW012": "broadcast",
    "GW013": "not-learning",
    "GW101": "saturating activation",
    "GW102": "initialization too small",
    "GW103": "initialization too large",
    "GW104": "learning rate too high",
    "GW105": "dead ReLU",
    "GW106": "zero-gradient head",
    "GW107": "unscaled input",
    "GW108": "unscaled target",
    "GW109": "recurrent depth",
    "GW110": "missing normalization or skip",
    "GW111": "learning rate too low",
    "GW112": "missing warm-up",
    "GW113": "outlier batch",
    "GW114": "unguarded operation",
    "GW115": "frozen or detached part",
    "GW116": "precision underflow",
    "GW117": "unbounded loss",
    "GW118": "weight decay too strong",
    "GW119": "clipping too hard",
    "GW120": "gradients are not zeroed",
    "GW121": "step without effect",
    "GW122": "clip without effect",
    "GW123": "replicas out of sync",
    "GW124": "shapes broadcast",
    "GW125": "unbounded activation",
    "GW126": "posterior collapse",
    "GW127": "not known",
    "GW128": "ignored labels",
    "GW129": "constant reward",
}
STEPS = """
{name!r} has no identifier. Add, in this order:
1. gradwatch/identifiers.py: "{next}": "{name}",
2. tests/test_identifiers.py, PINNED: the same line
3. gradwatch/commands/explained_{block}.py: "{next}": Explanation(...), with its words in plain English
4. run: python docs/rule_pages.py
"""


def steps_for(name: str, *, is_cause: bool) -> str:
    first = 101 if is_cause else 1
    numbers = [int(identifier[2:]) for identifier in PINNED if (int(identifier[2:]) > 100) == is_cause]
    following = f"GW{max([first - 1, *numbers]) + 1:03d}"
    return STEPS.format(name=name, next=following, block="causes" if is_cause else "findings")


def test_every_finding_and_cause_has_an_identifier() -> None:
    named = set(IDENTIFIERS.values())
    for kind in get_args(Kind):
        assert kind in named, steps_for(kind, is_cause=False)
    for cause in get_args(Cause):
        assert cause in named, steps_for(cause, is_cause=True)


def test_an_identifier_never_changes_and_none_is_used_again() -> None:
    for identifier, name in PINNED.items():
        assert IDENTIFIERS.get(identifier) == name, f"{identifier} is {name!r} for good: put it back"
    new = {identifier: name for identifier, name in IDENTIFIERS.items() if identifier not in PINNED}
    assert not new, f"append to PINNED in tests/test_identifiers.py: {new}"
    assert len(set(IDENTIFIERS.values())) == len(IDENTIFIERS), "one name has two identifiers"
    assert all(re.fullmatch(r"GW\d{3}", identifier) for identifier in IDENTIFIERS)
    assert list(IDENTIFIERS) == sorted(IDENTIFIERS)


def test_findings_and_causes_have_blocks_of_their_own() -> None:
    assert {IDENTIFIERS[each] for each in IDENTIFIERS if each < "GW100"} == set(get_args(Kind))
    assert {IDENTIFIERS[each] for each in IDENTIFIERS if each > "GW100"} == set(get_args(Cause))


def test_each_is_explained() -> None:
    assert {**FINDINGS, **CAUSES}.keys() == IDENTIFIERS.keys()
    for identifier, told in {**FINDINGS, **CAUSES}.items():
        assert not told.short.endswith("."), identifier
        assert len(told.text.split()) >= 40, f"{identifier}: a reader wants to know more"
        compile(told.looks.replace("return ", ""), identifier, "exec")
        for other in re.findall(r"GW\d+", told.text):
            assert other in IDENTIFIERS
