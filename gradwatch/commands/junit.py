"""The outcome of a check as JUnit's XML, which CI servers show among the tests."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from gradwatch.commands.problems import Outcome, Problem
from gradwatch.commands.words import crash_in_full
from gradwatch.reporting.text import listed

# All that XML 1.0 can't hold, not even escaped: most control characters, half surrogates, two non-characters.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_junit(outcome: Outcome) -> str:
    """Return one test suite: a case for the training, which a crash makes an error, and one for each problem.

    A problem is a failure, or where the baseline has it a skipped test.

    References:
        The Jenkins xUnit plugin's schema, which CI servers follow: https://github.com/jenkinsci/xunit-plugin.
    """
    counts = {
        "tests": 1 + len(outcome.problems),
        "failures": len(outcome.unknown),
        "errors": int(bool(outcome.run.trouble)),
        "skipped": len(outcome.known),
    }
    named = {name: str(count) for name, count in counts.items()}
    suite = ElementTree.Element("testsuite", {"name": "gradwatch check", **named, "time": f"{outcome.seconds:.3f}"})
    _add_training(suite, outcome)
    for problem in outcome.problems:
        _add_problem(suite, problem, outcome)
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=False)


def _add_training(suite: ElementTree.Element, outcome: Outcome) -> None:
    run = outcome.run
    case = _case(suite, "training", outcome)
    if run.trouble:
        kind = type(run.error).__name__ if run.error is not None else "NoStep"
        error = ElementTree.SubElement(case, "error", type=kind, message=_clean(run.trouble))
        error.text = _clean(crash_in_full(run.error) if run.error is not None else run.trouble)
    else:
        ElementTree.SubElement(case, "system-out").text = _clean(run.headline)


def _add_problem(suite: ElementTree.Element, problem: Problem, outcome: Outcome) -> None:
    name = f"{problem.rule} {problem.name}" if problem.rule != problem.name else problem.name
    case = _case(suite, name, outcome)
    if problem.is_known:
        ElementTree.SubElement(case, "skipped", message=_clean(f"known: it is in the baseline {outcome.baseline}"))
        return
    failure = ElementTree.SubElement(case, "failure", type=problem.rule, message=_clean(problem.message))
    where = [f"Layers: {listed(problem.layers)}"] if problem.layers else []
    tries = [f"{place}. {one}" for place, one in enumerate(problem.tries, 1)]
    failure.text = _clean("\n".join([problem.message, *where, *tries]))


def _case(suite: ElementTree.Element, name: str, outcome: Outcome) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=_clean(outcome.model), name=_clean(name))


def _clean(text: str) -> str:
    """Return a text without what XML can't hold."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
