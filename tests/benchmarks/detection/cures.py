"""Measure suggested remedies: each faulty program is treated, and trained anew from another seed.

With one seed the program is trained untreated and diagnosed, remedies are suggested, and a trial compares several.
With another seed it is trained with the first suggestion, with the best of the trial, and with a random one of all that
can be applied. Each score is compared with the healthy twin's at that seed, on test data that no choice used.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from adapter import Batches, Trained, judge, options_of
from cases import every_case
from evidence import Evidence
from intervals import share, sign_test
from lightning.pytorch import Trainer
from program import Case, Program
from rich.console import Console
from rich.progress import track
from store import Store, key_of, source_of, source_of_gradwatch
from tables import Row

from gradwatch import GradientMonitor, GradientTransform
from gradwatch.remedies import Advice, Setup
from gradwatch.trial import suggest, try_remedies

NEAR = 0.01  # of the healthy twin's score: cured
CHOSEN, JUDGED = 0, 1  # seeds
WAYS = ("first suggested", "best of the trial", "at random")
_QUIET = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
          "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}  # fmt: skip


@dataclass(frozen=True)
class Cure:
    """The outcome for one program.

    Attributes:
        case: program that was treated.
        twin, untreated: scores of the healthy twin and of the faulty program.
        scores: way of choosing -> score; the untreated score if no remedy could be chosen or applied.
        names: way -> the remedy.
    """

    case: Case
    twin: float
    untreated: float
    scores: dict[str, float]
    names: dict[str, str]

    def is_cured(self, way: str) -> bool:
        """Return True if the score comes within a point of the twin's."""
        return self.scores[way] >= self.twin - NEAR

    def won_back(self, way: str) -> float:
        """Return the share of the lost score that it restores, 0 to 1."""
        lost = max(self.twin - self.untreated, NEAR)
        return max(0.0, min(1.0, (self.scores[way] - self.untreated) / lost))


def _setup(program: Program, seed: int) -> Any:
    batch = next(program.batches(seed))
    return Setup(Trained(program, seed), options=options_of(program), batch=batch)


def fit(setup: Any, program: Program, seed: int, *callbacks: Any) -> float:
    """Train a set-up under a Trainer and return its last score."""
    watchers = [*callbacks, *([GradientTransform([*setup.transforms])] if setup.transforms else [])]
    trainer = Trainer(callbacks=watchers, max_epochs=1, limit_val_batches=0, **{**setup.options, **_QUIET})
    trainer.fit(setup.module, datamodule=Batches(program, seed))
    return judge(program, setup.module.network)


def treat(program: Program, remedy: Any, untreated: float) -> float:
    """Return the score with a remedy; the untreated score if the remedy can't be applied or breaks the training."""
    if remedy is None:
        return untreated
    try:
        return fit(remedy.apply(_setup(program, JUDGED)), program, JUDGED)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        Console(stderr=True).print(f"{remedy!r}: {type(error).__name__}: {str(error)[:150]}")
        return untreated


def _all_causes() -> list[Any]:
    causes = sorted({cause for case in every_case() for cause in case.causes})
    return [SimpleNamespace(cause=cause, score=1.0) for cause in causes]


def _first(remedies: Sequence[Any]) -> Any:
    return next((remedy for remedy in remedies if not isinstance(remedy, Advice)), None)


def choose(program: Program, name: str) -> dict[str, Any]:
    """Return a remedy for each way of choosing, None if there is none."""
    monitor = GradientMonitor(summary=False, record_path=False, on_finding=lambda finding: None)
    fit(_setup(program, CHOSEN), program, CHOSEN, monitor)
    fresh = _setup(program, CHOSEN)
    suggested = suggest(monitor.diagnosis(), fresh, monitor.history)
    trial = try_remedies(fresh, Batches(program, CHOSEN), steps=program.steps, seed=CHOSEN)
    every = [remedy for remedy in suggest(_all_causes(), fresh) if not isinstance(remedy, Advice)]
    drawn = random.Random(name).choice(every) if every else None
    return dict(zip(WAYS, (_first(suggested), trial.best.remedy if trial.best else None, drawn), strict=True))


def _cure(case: Case) -> dict[str, Any]:
    chosen = choose(case.program, case.name)
    untreated = fit(_setup(case.program, JUDGED), case.program, JUDGED)
    twin = fit(_setup(case.twin or case.program, JUDGED), case.twin or case.program, JUDGED)
    scores = {way: treat(case.program, remedy, untreated) for way, remedy in chosen.items()}
    names = {way: repr(remedy) if remedy else "" for way, remedy in chosen.items()}
    return {"twin": twin, "untreated": untreated, "scores": scores, "names": names}


def cure(evidence: Sequence[Evidence], store: Store) -> list[Cure]:
    """Treat every program whose fault does harm."""
    source = source_of_gradwatch() + source_of("cures.py", "adapter.py")
    cures = []
    harmed = [seen.case for seen in evidence if seen.verdict == "harmed"]
    for case in track(harmed, description="remedies", console=Console(stderr=True)):
        key = key_of("cure", source, case.program, JUDGED, case.name)
        cures.append(Cure(case, **store.get(key, lambda case=case: _cure(case), case=case.name)))
    return cures


def ways(cures: Sequence[Cure]) -> list[Row]:
    """A row a family: the number of cures of each way of choosing, and the first suggestion against chance."""
    families = dict.fromkeys(found.case.family for found in cures)
    groups = [(family, [found for found in cures if found.case.family == family]) for family in families]
    return [_ways(name, group) for name, group in [*groups, ("all", list(cures))] if group]


def _ways(name: str, group: Sequence[Cure]) -> Row:
    def cured(way: str) -> str:
        won = sum(found.won_back(way) for found in group) / len(group)
        return f"{share(sum(found.is_cured(way) for found in group), len(group))}, {won:.0%} won back"

    wins = [found.is_cured(WAYS[0]) - found.is_cured(WAYS[2]) for found in group]
    better, worse = wins.count(1), wins.count(-1)
    against = f"{better} to {worse}, p = {sign_test(better, worse):.2g}"
    return {"family": name, **{way: cured(way) for way in WAYS}, "first against random": against}


def not_cured(cures: Sequence[Cure]) -> list[Row]:
    """A row for each program that the first suggestion does not cure."""
    return [
        {
            "program": found.case.name, "twin": f"{found.twin:.2f}", "untreated": f"{found.untreated:.2f}",
            **{way: f"{found.scores[way]:.2f} {found.names[way]}" for way in WAYS[:2]},
        }
        for found in cures if not found.is_cured(WAYS[0])
    ]  # fmt: skip
