"""The runs of a case under one observer, from the store or made now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from cases import SEEDS, chosen
from program import Case, Program
from rich.console import Console
from rich.progress import track
from store import Store, key_of
from truth import Verdict, is_healthy, verdict
from watching import Run

Observe = Callable[[Program, int], Run]


@dataclass(frozen=True)
class Evidence:
    """The runs of a case.

    Attributes:
        case: program that was run.
        runs: one a seed.
        twins: of the healthy twin, at the same seeds.
    """

    case: Case
    runs: tuple[Run, ...]
    twins: tuple[Run, ...] = ()

    @property
    def verdict(self) -> Verdict | bool:
        """Return the verdict on a fault; for a healthy program, True if it is healthy."""
        outcomes = [run.outcome for run in self.runs]
        return verdict(outcomes, [run.outcome for run in self.twins]) if self.case.twin else is_healthy(outcomes)


@dataclass(frozen=True)
class Look:
    """A way to observe a run: its name, the digest of its sources, and its training function."""

    name: str
    source: str
    observe: Observe


Job = tuple[Program, int]


def jobs(case: Case, seeds: int | None = None) -> Iterator[Job]:
    count = seeds or SEEDS["fault" if case.twin else "healthy"]
    for program in (case.program, case.twin):
        if program is not None:
            yield from ((program, seed) for seed in range(count))


def _work(name: str, index: int, observe: Observe, seeds: int | None) -> object:
    torch.set_num_threads(1)
    case = next(case for case in chosen("both") if case.name == name)
    return observe(*list(jobs(case, seeds))[index]).to_json()


def gather(
    cases: Iterable[Case], look: Look, store: Store, processes: int = 1, seeds: int | None = None
) -> list[Evidence]:
    """Make the runs that are not in the store, and collect the runs of each case."""
    cases = list(cases)
    missing = {
        key_of(look.name, look.source, *job): (case.name, index)
        for case in cases
        for index, job in enumerate(jobs(case, seeds))
        if key_of(look.name, look.source, *job) not in store.kept
    }
    made = _made(list(missing.values()), look, processes, seeds)
    for key, (name, index), run in zip(
        track(list(missing), description=look.name, console=Console(stderr=True)), missing.values(), made, strict=True
    ):
        store.put(key, run, look=look.name, case=name, job=index)
    return [_evidence(case, look, store, seeds) for case in cases]


def _made(missing: list[tuple[str, int]], look: Look, processes: int, seeds: int | None) -> Iterator[object]:
    work = partial(_work, observe=look.observe, seeds=seeds)
    if processes == 1:
        yield from (work(name=name, index=index) for name, index in missing)
        return
    with ProcessPoolExecutor(processes) as pool:
        futures = [pool.submit(work, name=name, index=index) for name, index in missing]
        yield from (future.result() for future in futures)


def _evidence(case: Case, look: Look, store: Store, seeds: int | None) -> Evidence:
    runs = [Run.from_json(store.kept[key_of(look.name, look.source, *job)]) for job in jobs(case, seeds)]
    half = len(runs) // 2 if case.twin else len(runs)
    return Evidence(case, tuple(runs[:half]), tuple(runs[half:]))
