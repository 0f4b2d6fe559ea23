"""The results as numbers: ranked, and as one flat record a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any

from gradwatch import Finding
from gradwatch.examples.comparison.remedies import published_accuracy
from gradwatch.examples.comparison.results import Result


def record(result: Result) -> dict[str, Any]:
    """Return all numbers of a run, unrounded; empty for a missing one."""
    values = {
        "remedy": result.name,
        "family": result.family,
        "seed": result.seed,
        "test_accuracy": result.test_accuracy,
        "published_accuracy": _published(result),
        "train_loss": result.train_loss,
        "first_layer_grad_norm_start": result.start[0] if result.start else None,
        "first_layer_grad_norm_end": result.end[0] if result.end else None,
        "first_to_last_start": result.ratio_start,
        "first_to_last_end": result.ratio_end,
        "steps_to_70": result.steps_to_good,
        "findings": summary(result.findings),
        "seconds": round(result.seconds, 1),
        "error": result.reason,
    }
    return {name: None if value is None or value != value else value for name, value in values.items()}


def ranked(results: Iterable[Result]) -> list[Result]:
    """Sort by remedy, the best first, then by seed; failed runs last."""
    runs = [run for runs in by_remedy(results).values() for run in runs]
    return sorted(runs, key=lambda run: bool(run.error))


def by_remedy(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Group the runs by remedy, the one with the best mean test accuracy first."""
    names: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: (result.name, result.seed)):
        names.setdefault(result.name, []).append(result)
    return dict(sorted(names.items(), key=lambda item: -_mean_accuracy(item[1])))


def has_seeds(results: Iterable[Result]) -> bool:
    """Return True if there are several seeds."""
    return len({result.seed for result in results}) > 1


def summary(findings: Iterable[Finding]) -> str:
    """Return each kind of finding once, with its first and last step.

    Example:
        >>> def at(step, closed): return Finding("vanishing", ("first",), step, 1e-7, 1e-3, "", closed_step=closed)
        >>> summary([at(0, 60), at(100, None)]), summary([at(0, 60)])
        ('vanishing 0 to end', 'vanishing 0 to 60')
    """
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(finding.kind, []).append(finding)
    parts = []
    for kind, found in kinds.items():
        ends = [finding.closed_step for finding in found if finding.closed_step is not None]
        end = "end" if len(ends) < len(found) else max(ends)
        parts.append(f"{kind} {min(finding.step for finding in found)} to {end}")
    return ", ".join(parts)


def _mean_accuracy(results: Sequence[Result]) -> float:
    known = [result.test_accuracy for result in results if not result.error]
    return mean(known) if known else 0.0


def _published(result: Result) -> float | None:
    return published_accuracy(result.name) if result.settings.get("dataset") == "fashion-mnist" else None
