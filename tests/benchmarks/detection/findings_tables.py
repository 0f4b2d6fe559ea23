"""Tables of the findings on faulty and on healthy programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import median

from baselines import BASELINES, of_rules
from evidence import Evidence
from intervals import share
from tables import Row
from watching import Run


def _families(evidence: Sequence[Evidence]) -> list[tuple[str, list[Evidence]]]:
    names = dict.fromkeys(seen.case.family for seen in evidence)
    groups = [(name, [seen for seen in evidence if seen.case.family == name]) for name in names]
    return [*groups, ("all", list(evidence))]


def _rate(runs: Iterable[bool]) -> str:
    answers = list(runs)
    return share(sum(answers), len(answers))


def _steps(values: Sequence[int]) -> str:
    return f"{median(values):g} ({min(values)}-{max(values)}, n={len(values)})" if values else "-"


def lead(run: Run) -> int | None:
    """Steps from the first finding to the first loss that is not finite or ten times the first; None without both."""
    if run.outcome.blew_up is None or not run.said:
        return None
    return run.outcome.blew_up - run.said[0].step


def detection(evidence: Sequence[Evidence]) -> list[Row]:
    """A row a family: harmed runs found, the lead of the findings in steps, and twins accused."""
    return [_detection(name, group) for name, group in _families(evidence)]


def _detection(name: str, group: Sequence[Evidence]) -> Row:
    harmed = [seen for seen in group if seen.verdict == "harmed"]
    runs = [run for seen in harmed for run in seen.runs]
    early = [run.said[0].step for seen in harmed if seen.case.from_start for run in seen.runs if run.said]
    leads = [steps for run in runs if (steps := lead(run)) is not None]
    return {
        "family": name, "pairs": len(group), "harmed": len(harmed), "found": _rate(bool(run.said) for run in runs),
        "step it was found": _steps(early), "steps before it blew up": _steps(leads),
        "healthy twins accused": _rate(bool(run.said) for seen in harmed for run in seen.twins),
    }  # fmt: skip


def causes(evidence: Sequence[Evidence]) -> list[Row]:
    """A row a family: harmed runs with a right cause named first, or among the first three."""
    return [_causes(name, group) for name, group in _families(evidence)]


def _causes(name: str, group: Sequence[Evidence]) -> Row:
    runs = [(seen.case, run) for seen in group if seen.verdict == "harmed" for run in seen.runs]

    def named(first: int) -> str:
        return _rate(bool(set(run.causes[:first]) & set(case.causes)) for case, run in runs)

    wrong = Counter(run.causes[0] for case, run in runs if run.causes and run.causes[0] not in case.causes)
    said = ", ".join(f"{cause} x{count}" for cause, count in wrong.most_common(3))
    return {"family": name, "named first": named(1), "among three": named(3), "named first instead": said}


def false_alarms(evidence: Sequence[Evidence]) -> list[Row]:
    """A row a group of healthy programs, and the sum."""
    return [
        {
            "group": name,
            "programs": len(group),
            "runs with a warning": _rate(bool(run.said) for seen in group for run in seen.runs),
        }
        for name, group in _families([seen for seen in evidence if seen.verdict is True])
    ]


def accused(evidence: Sequence[Evidence], runs_of: Callable[[Evidence], Sequence[Run]]) -> list[Row]:
    """A row for each program with a false alarm: number of runs, kinds and first step."""
    rows: list[Row] = []
    for seen in evidence:
        runs = runs_of(seen)
        kinds = Counter(kind for run in runs for kind in {said.kind for said in run.said})
        if kinds:
            first = _steps([run.said[0].step for run in runs if run.said])
            count = sum(bool(run.said) for run in runs)
            named = ", ".join(f"{kind} x{times}" for kind, times in kinds.most_common())
            causes = Counter(run.causes[0] for run in runs if run.causes)
            rows.append(
                {"program": seen.case.name, "runs": f"{count} of {len(runs)}", "kinds": named, "first step": first,
                 "cause": ", ".join(causes)}
            )  # fmt: skip
    return rows


def missed(evidence: Sequence[Evidence]) -> list[Row]:
    """A row for each harmed program with a run without findings."""
    return [
        {
            "program": seen.case.name,
            "found": f"{sum(bool(run.said) for run in seen.runs)} of {len(seen.runs)}",
            "score": ", ".join(f"{run.outcome.after:.2f}" for run in seen.runs),
            "twin's score": ", ".join(f"{run.outcome.after:.2f}" for run in seen.twins),
        }
        for seen in evidence
        if seen.verdict == "harmed" and not all(run.said for run in seen.runs)
    ]


def verdicts(evidence: Sequence[Evidence]) -> list[Row]:
    """A row a family: the number of harmful faults, or of healthy programs that learn."""
    return [
        {"family": name, "programs": len(group), "count": sum(seen.verdict in ("harmed", True) for seen in group)}
        for name, group in _families(evidence)
    ]


def left_out(evidence: Sequence[Evidence]) -> list[Row]:
    """A row for each case that does not count, with the reason."""
    return [
        {
            "program": seen.case.name,
            "why": seen.verdict if seen.case.twin else "does not learn",
            "score": ", ".join(f"{run.outcome.after:.2f}" for run in seen.runs),
            "twin's score or score before": ", ".join(
                f"{run.outcome.after if seen.case.twin else run.outcome.before:.2f}" for run in seen.twins or seen.runs
            ),
        }
        for seen in evidence
        if seen.verdict not in ("harmed", True)
    ]


def beside(evidence: Sequence[Evidence], judgements: Sequence[Evidence]) -> list[Row]:
    """A row for gradwatch and for each set of published rules: found faults, accused twins, false alarms."""
    rows = [_against("gradwatch", evidence, lambda run: run)]
    for rules in BASELINES:
        rows.append(_against(rules.name, judgements, partial(of_rules, name=rules.name)))
    return rows


def _against(name: str, evidence: Sequence[Evidence], view: Callable[[Run], Run]) -> Row:
    def rate(runs: Iterable[Run]) -> str:
        return _rate(bool(view(run).said) for run in runs)

    harmed = [seen for seen in evidence if seen.verdict == "harmed"]
    well = [seen for seen in evidence if seen.verdict is True]
    return {
        "rules": name,
        "found": rate(run for seen in harmed for run in seen.runs),
        "healthy twins accused": rate(run for seen in harmed for run in seen.twins),
        "healthy programs accused": rate(run for seen in well for run in seen.runs),
    }
