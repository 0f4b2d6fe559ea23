"""The result of a check, for programs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from gradwatch.runs import Run


def as_json(run: Run) -> str:
    """Strict JSON: a number that is not finite is ``"inf"`` or ``"-inf"``, one that is not known ``null``.

    Each diagnosis names the findings it explains by their places in ``findings``.

    Example:
        >>> print(as_json(Run("Net"))[:50])
        {"model": "Net", "healthy": false, "steps": 0, "lo
    """
    first, last = run.losses
    findings = list(run.findings)
    result = {
        "model": run.name,
        "healthy": run.is_healthy,
        "steps": run.steps,
        "loss": {"first": first, "last": last},
        "findings": [asdict(finding) for finding in findings],
        "diagnoses": [
            {
                **{name: getattr(diagnosis, name) for name in ("cause", "evidence", "score", "remedies")},
                "findings": [place for place, finding in enumerate(findings) if finding in diagnosis.findings],
            }
            for diagnosis in run.diagnoses
        ],
        "error": run.trouble or None,
    }
    return json.dumps(_strict(result), allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value
