"""Write docs/rules/: a page for each finding and each cause, from the tables, docstrings and constants of the package.

``python docs/rule_pages.py`` writes them anew. A test says when that is due.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import logging
import re
import textwrap
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import griffe
from docstrings import as_markdown

import gradwatch
from gradwatch import remedies
from gradwatch.causes import STEPS, advice
from gradwatch.commands.explained_causes import CAUSES
from gradwatch.commands.explained_findings import FINDINGS
from gradwatch.commands.explanation import Explanation, is_cause, way_to_allow
from gradwatch.diagnosis import RULES
from gradwatch.diagnosis.evidence import Evidence
from gradwatch.diagnosis.ranking import Rule
from gradwatch.identifiers import IDENTIFIERS, identifier_of
from gradwatch.preflight.rules import _RULES as BEFORE_TRAINING
from gradwatch.records import Kind

FOLDER = Path(__file__).parent / "rules"
DETECTORS: Mapping[str, tuple[type, ...]] = {
    "vanishing": (gradwatch.Vanishing,),
    "exploding": (gradwatch.Exploding,),
    "nonfinite": (gradwatch.NonFinite,),
    "dead": (gradwatch.Dead,),
    "saturated": (gradwatch.Saturated,),
    "stalled": (gradwatch.Stalled, gradwatch.CutOff),
    "spike": (gradwatch.Spike,),
    "unmoved": (gradwatch.Unmoved,),
    "carried-over": (gradwatch.CarriedOver,),
    "idle-clip": (gradwatch.IdleClip,),
    "out-of-sync": (gradwatch.OutOfSync,),
    "broadcast": (gradwatch.Broadcast,),
    "not-learning": (gradwatch.NotLearning,),
}
_NOTE = "<!-- Written by `python docs/rule_pages.py`, which says from what. Changes here are lost. -->"
_SHOWN = 12  # constants of a rule; more of them are its details


def pages() -> dict[str, str]:
    """Return the text of each page by its name."""
    told = {**FINDINGS, **CAUSES}
    return {"index.md": _index(told), **{f"{each}.md": _page(each, told[each]) for each in IDENTIFIERS}}


def _index(told: Mapping[str, Explanation]) -> str:
    lines = [
        _NOTE,
        "# Rules",
        "A finding is a measured fact about some layers. A cause is what explains findings. Each has an identifier "
        "that never changes: `gradwatch check` prints it, `--allow` takes it, and [baselines](../ci.md#known-problems) "
        "and [code scanning](../ci.md#code-scanning) hold it.",
    ]
    for head, wanted in (("Findings", False), ("Causes", True)):
        rows = [
            f"| [{each}]({each}.md) | {IDENTIFIERS[each]} | {told[each].short} |"
            for each in IDENTIFIERS
            if is_cause(each) is wanted
        ]
        lines += [f"## {head}", "\n".join(["| identifier | name | in a line |", "| --- | --- | --- |", *rows])]
    return "\n\n".join(lines) + "\n"


def _page(identifier: str, told: Explanation) -> str:
    name = IDENTIFIERS[identifier]
    parts = [
        _NOTE,
        f"# {identifier} {name}",
        f"{'Cause' if is_cause(identifier) else 'Finding'}: {told.short[0].lower()}{told.short[1:]}.",
        f"## What it means\n\n{_wrapped(told.text)}",
        f"## How it looks\n\nThe line that has it; the comment says what to write instead.\n\n```py\n{told.looks}\n```",
        *(_of_cause(name) if is_cause(identifier) else _of_finding(name)),
        f"## To accept it\n\n`gradwatch check {way_to_allow(name)}` ignores it, and so does\n"
        f'`assert_healthy_gradients(..., allow=["{identifier}"])`.\n'
        "With a [baseline](../ci.md#known-problems) only new ones fail.",
    ]
    return "\n\n".join(parts) + "\n"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


# Findings: the detector's docstring


def _of_finding(name: str) -> Iterator[str]:
    yield "## What is measured"
    for detector in DETECTORS[name]:
        yield from _of_detector(detector)
    causes = [rule.cause for rule in _rules() if name in _kinds_named_by(rule)]
    links = ", ".join(_link(cause) for cause in dict.fromkeys(causes))
    yield f"## What to do\n\nDo what the cause beside the finding says. Those that may explain it: {links}."
    yield f"Where none is named: {'; '.join(advice('not known', name))}."


def _of_detector(detector: type) -> Iterator[str]:
    link = f"[`gradwatch.{detector.__name__}`](../reference/detectors.md#gradwatch.{detector.__name__})"
    yield f"The detector is {link}."
    for section in _sections(detector):
        if section.kind is griffe.DocstringSectionKind.text:
            yield as_markdown(section.value)
        elif section.kind is griffe.DocstringSectionKind.parameters:
            yield _thresholds(detector, section.value)
        elif section.kind is griffe.DocstringSectionKind.admonition and section.title == "References":
            yield f"Source of the thresholds: {as_markdown(section.value.contents)}"


def _sections(documented: Any) -> Iterable[Any]:
    text = inspect.getdoc(documented) or ""
    logging.getLogger("griffe").setLevel(logging.ERROR)  # that a parameter has no type here
    return griffe.Docstring(text).parse("google")


def _thresholds(detector: type, parameters: Iterable[Any]) -> str:
    defaults = {field.name: field.default for field in dataclasses.fields(detector)}
    rows = [f"| `{p.name}` | {defaults.get(p.name)!r} | {' '.join(p.description.split())} |" for p in parameters]
    return "\n".join(["| setting | default | meaning |", "| --- | --- | --- |", *rows])


# Causes: the rules' docstrings, and the constants that they compare with


def _of_cause(name: str) -> Iterator[str]:
    rules = [rule for rule in _rules() if rule.cause == name]
    yield "## What is measured"
    yield "It is named where one of these holds:"
    rest = ["Findings are left that no other cause explains, unless the loss has fallen by half."]
    holds = [*map(_sentence, rules), *(rest if name == "not known" else [])]
    yield "\n".join(f"- {sentence}" for sentence in holds)
    kinds = dict.fromkeys(kind for rule in rules for kind in _kinds_named_by(rule))
    if kinds:
        yield f"Findings that it may explain: {', '.join(map(_link, kinds))}."
    rows = list(dict.fromkeys(row for rule in rules for row in _constants_of(rule)))[:_SHOWN]
    if rows:
        yield "\n".join(["| number | value | what it is |", "| --- | --- | --- |", *rows])
    yield "## What to do\n\nIn this order. What does not fit the model, or is there already, is left out in a report."
    yield "\n".join(f"{place}. {step}" for place, step in enumerate(_steps(name), 1))


def _rules() -> list[Rule[Any]]:
    return [*RULES, *BEFORE_TRAINING]


def _sentence(rule: Rule[Any]) -> str:
    text = " ".join((inspect.getdoc(rule.weigh) or "").split("References:")[0].split())
    return f"{text}{'' if rule in RULES else ' (Looked at before the training.)'}"


def _steps(cause: str) -> Iterator[str]:
    for step in STEPS[cause]:  # type: ignore[index]
        remedy = step.remedy.split()[0] if step.remedy else ""
        code = f" (`gradwatch.remedies.{remedy}`)" if remedy and hasattr(remedies, remedy) else ""
        yield f"{step.text[0].upper()}{step.text[1:]}{code}"


def _link(name: str) -> str:
    return f"[{name}]({identifier_of(name)}.md)"


def _functions_of(rule: Rule[Any]) -> Iterator[Any]:
    """Yield the function of a rule and those of the package that it calls, however deep."""
    waiting, seen = [rule.weigh], set()
    while waiting:
        function = waiting.pop(0)
        if function in seen:
            continue
        seen.add(function)
        yield function
        names = function.__code__.co_names
        found = [function.__globals__.get(name) for name in names] + [getattr(Evidence, name, None) for name in names]
        plain = [getattr(each, "func", getattr(each, "fget", each)) for each in found]  # of a property
        is_ours = [inspect.isfunction(each) and each.__module__.startswith("gradwatch.diagnosis") for each in plain]
        waiting += [each for each, ours in zip(plain, is_ours, strict=True) if ours and each.__name__ != "rule"]


def _kinds_named_by(rule: Rule[Any]) -> list[str]:
    """Return the kinds of findings in the code of a rule."""
    own = rule.weigh.__module__
    near = [each for each in _functions_of(rule) if each.__module__ == own or each.__name__ == "faded_early"]
    texts = {text for each in near for text in _texts(each)}
    return [kind for kind in get_args(Kind) if kind in texts]


def _texts(function: Any) -> Iterator[str]:
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))
    yield from (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def _constants_of(rule: Rule[Any]) -> Iterator[str]:
    """Yield a row for each named number that a rule, or a function of its own file, compares with."""
    for function in _functions_of(rule):
        if function.__module__ != rule.weigh.__module__:
            continue
        for name in function.__code__.co_names:
            value = function.__globals__.get(name)
            if name.isupper() and isinstance(value, (int, float)) and not isinstance(value, bool):
                words = name.strip("_").lower().replace("_", " ")
                yield f"| {words} | {value:g} | {_comment_on(name, function.__globals__)} |"


def _comment_on(name: str, names: Mapping[str, Any]) -> str:
    """Return the comment at the definition of a constant, in the module that defines it."""
    modules = [names["__name__"], *sorted({each.__module__ for each in names.values() if inspect.isfunction(each)})]
    modules += [each.__name__ for each in names.values() if isinstance(each, ModuleType)]
    imported = _module_of_import(name, names["__name__"])
    for module in [*([imported] if imported else []), *modules]:
        comments = _comments(importlib.import_module(module)) if module.startswith("gradwatch") else {}
        if name in comments:
            return comments[name]
    return ""


def _module_of_import(name: str, module: str) -> str:
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    nodes = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return next((node.module or "" for node in nodes if any(alias.name == name for alias in node.names)), "")


def _comments(module: ModuleType) -> dict[str, str]:
    """Return the comments behind, or right above, the constants of a module."""
    source = inspect.getsource(module)
    behind = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign):
            continue
        names = [each.id for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Name)]
        above = _lines_above(lines, node.lineno, behind)
        found.update(dict.fromkeys(names, " ".join(filter(None, (above, behind.get(node.lineno, ""))))))
    return {name: text.replace("|", "/") for name, text in found.items()}


def _lines_above(lines: list[str], at: int, comments: Mapping[int, str]) -> str:
    found: list[str] = []
    while at - 1 in comments and re.match(r"\s*#", lines[at - 2]):
        at -= 1
        found.insert(0, comments[at])
    return " ".join(found)


def write() -> None:
    """Write all pages, and remove those of rules that are gone."""
    FOLDER.mkdir(exist_ok=True)
    written = pages()
    for name, text in written.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    for path in FOLDER.glob("*.md"):
        if path.name not in written:
            path.unlink()


if __name__ == "__main__":
    write()
