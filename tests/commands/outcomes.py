"""Outcomes of checks as the formats get them, with all that is awkward in them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from gradwatch.commands.problems import Outcome, problems_of
from gradwatch.preflight.verdict import check_training
from gradwatch.records import Diagnosis, Finding, Snapshot
from gradwatch.short_runs.run import Run, SetupFault

ODD = "block<0>.\x07&\"'\ud800.umlaut-ä"  # a name of a layer that XML and JSON have to survive
NAN = Finding("nonfinite", ("loss", ODD), 3, float("nan"), 0.0, "50 % <of> it\nis NaN & \x00 odd", severity="error")
DEAD = Finding("dead", ("net.1", "net.13"), 3, 0.9, 0.8, "dead units: 90 % of the units")
OWN = Finding("slow_first_layer", (), 3, 1.0, 0.0, "found by a detector of the user's own")
CAUSE = Diagnosis("outlier batch", "The loss jumped.", 0.9, (NAN,), ("look at the batch", "clip"))


class Model(nn.Module):
    """Something with a place in this file."""


def outcome(*findings: Finding, causes: tuple[Diagnosis, ...] = (), error: Exception | None = None) -> Outcome:
    run = Run("Model", (Snapshot(0, (), loss=1.0), Snapshot(1, (), loss=0.5)), findings, causes, error)
    return Outcome(run, Model, problems_of(run, Model), seconds=1.5)


def healthy() -> Outcome:
    return outcome()


def sick() -> Outcome:
    return outcome(NAN, DEAD, OWN, causes=(CAUSE,))


def crashed() -> Outcome:
    try:
        raise RuntimeError("boom \x1b[31m")
    except RuntimeError as error:
        return outcome(error=error)


def untrained() -> Outcome:
    return outcome(error=SetupFault("no optimizer"))


def half_known() -> Outcome:
    found = sick()
    problems = (found.problems[0], *(replace(problem, is_known=True) for problem in found.problems[1:]))
    return replace(found, problems=problems, baseline="known.json", fixed=("GW001 vanishing in package.Net: net.*",))


def of_a_real_training() -> Outcome:
    module = nn.Sequential(*(part for _ in range(10) for part in (nn.Linear(8, 8), nn.Sigmoid())), nn.Linear(8, 1))
    run = check_training(module, (torch.rand(32, 8), torch.rand(32, 1)), loss=nn.MSELoss())
    return Outcome(run, type(module), problems_of(run, type(module)))


ALL = (healthy, sick, crashed, untrained, half_known, of_a_real_training)
