"""The outcome of a check: its problems, each with its rule, layers and place, in the form that all formats write."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from gradwatch.identifiers import identifier_of
from gradwatch.places import own_frames
from gradwatch.records import Diagnosis, Finding, Severity
from gradwatch.short_runs.run import Run, SetupFault

HEALTHY, SICK, WRONG_USE = 0, 1, 2
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Problem:
    """A cause with the findings that it explains, or a finding that no cause explains.

    Attributes:
        name: of the cause, or the finding's kind.
        level: ``error`` where training can't go on.
        message: what was measured.
        tries: what to do, the first thing to try first.
        findings: that the cause explains, or the finding itself.
        is_cause: False for a finding alone.
        model: the model's class, with its module.
        is_known: it is in the baseline, and does not fail the check.
    """

    name: str
    level: Severity
    message: str
    tries: tuple[str, ...]
    findings: tuple[Finding, ...]
    is_cause: bool
    model: str
    is_known: bool = False

    @property
    def rule(self) -> str:
        """The identifier, such as GW101; the name where it is of the user's own detector."""
        return identifier_of(self.name) or self.name

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers, parameters or quantities that it is about, each once."""
        return tuple(dict.fromkeys(layer for finding in self.findings for layer in finding.layers))

    @property
    def patterns(self) -> tuple[str, ...]:
        """The layers with ``*`` for each number, each once, in the order of the alphabet.

        Which of the blocks of a network a trouble reaches differs a little from machine to machine.
        """
        return tuple(sorted({_NUMBER.sub("*", layer) for layer in self.layers}))

    @property
    def fingerprint(self) -> str:
        """A text that is the same in each run that has this problem, whatever its numbers are.

        Example:
            >>> found = Finding("dead", ("net.3", "net.5"), 0, 0.9, 0.8, "90 % are dead")
            >>> len(Problem("dead", "warning", found.message, (), (found,), False, "package.Net").fingerprint)
            64
        """
        parts = "\n".join([self.rule, self.model, *self.patterns])
        return hashlib.sha256(parts.encode(errors="surrogatepass")).hexdigest()

    @property
    def advice(self) -> str:
        """The things to do, in a sentence; empty where none is known."""
        return f"Try: {'; '.join(self.tries)}." if self.tries else ""


@dataclass(frozen=True)
class Outcome:
    """The result of a check.

    Attributes:
        run: the training, without what is allowed.
        kind: the model's class.
        problems: of the run, the likeliest cause first.
        baseline: file of the known problems; empty without one.
        fixed: lines about entries of the baseline that do not occur any more.
        seconds: that the check took.
    """

    run: Run
    kind: type
    problems: tuple[Problem, ...]
    baseline: str = ""
    fixed: tuple[str, ...] = ()
    seconds: float = 0.0

    @cached_property
    def model(self) -> str:
        """The model's class, with its module."""
        return name_of_class(self.kind)

    @property
    def known(self) -> tuple[Problem, ...]:
        """The problems that the baseline has."""
        return tuple(problem for problem in self.problems if problem.is_known)

    @property
    def unknown(self) -> tuple[Problem, ...]:
        """The problems that fail the check."""
        return tuple(problem for problem in self.problems if not problem.is_known)

    @property
    def exit_code(self) -> int:
        """0 where all is healthy or known, 1 where something was found, 2 where a part of the training is missing."""
        if isinstance(self.run.error, SetupFault):
            return WRONG_USE
        return SICK if self.unknown or self.run.trouble else HEALTHY


def problems_of(run: Run, kind: type) -> tuple[Problem, ...]:
    """Return a problem for each cause, and for each finding that none explains."""
    model = name_of_class(kind)
    explained = [finding for diagnosis in run.diagnoses for finding in diagnosis.findings]
    causes = (_of_cause(diagnosis, model) for diagnosis in run.diagnoses)
    alone = (_of_finding(finding, model) for finding in run.findings if finding not in explained)
    return (*causes, *alone)


def _of_cause(diagnosis: Diagnosis, model: str) -> Problem:
    level: Severity = "error" if any(finding.severity == "error" for finding in diagnosis.findings) else "warning"
    tries = tuple(diagnosis.remedies)
    return Problem(diagnosis.cause, level, diagnosis.evidence, tries, diagnosis.findings, is_cause=True, model=model)


def _of_finding(finding: Finding, model: str) -> Problem:
    return Problem(finding.kind, finding.severity, finding.message, (), (finding,), is_cause=False, model=model)


def without_known(outcome: Outcome) -> Run:
    """Return the run without its known problems, to be shown."""
    causes = {problem.name for problem in outcome.known if problem.is_cause}
    left = tuple(diagnosis for diagnosis in outcome.run.diagnoses if diagnosis.cause not in causes)
    still = {finding for diagnosis in left for finding in diagnosis.findings}
    gone = {finding for problem in outcome.known for finding in problem.findings} - still
    findings = tuple(finding for finding in outcome.run.findings if finding not in gone)
    return replace(outcome.run, findings=findings, diagnoses=left)


def name_of_class(kind: type) -> str:
    """Return a class as it is imported.

    Example:
        >>> name_of_class(Problem)
        'gradwatch.commands.problems.Problem'
    """
    return f"{kind.__module__}.{kind.__qualname__}"


@dataclass(frozen=True)
class Location:
    """A line of a file; ``path`` is relative to the repository where it is inside of it, with slashes."""

    path: str
    line: int

    @property
    def is_inside(self) -> bool:
        """Return True if the file belongs to the repository."""
        return not Path(self.path).is_absolute()


def repository() -> Path:
    """Return the root of the git repository that the current folder is in; the folder itself outside of one."""
    here = Path.cwd().resolve()
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)


def location_of_class(kind: type) -> Location | None:
    """Return file and line of a class; None where it has no source."""
    try:
        path, line = inspect.getsourcefile(kind), inspect.getsourcelines(kind)[1]
    except (OSError, TypeError):
        return None
    return _located(path, line) if path else None


def location_of_error(error: BaseException | None) -> Location | None:
    """Return the deepest line of an error's traceback that belongs to the repository."""
    frames = own_frames(error) if error is not None else []
    found = [_located(frame.filename, frame.lineno or 1) for frame in frames if not frame.filename.startswith("<")]
    inside = [location for location in found if location.is_inside]
    return inside[-1] if inside else None


def _located(path: str, line: int) -> Location:
    full, root = Path(path).resolve(), repository()
    return Location(full.relative_to(root).as_posix() if full.is_relative_to(root) else str(full), line)


def counted(problems: Sequence[Problem], noun: str = "problem") -> str:
    """Return how many there are, in words.

    Example:
        >>> counted(())
        '0 problems'
    """
    return f"{len(problems)} {noun}{'' if len(problems) == 1 else 's'}"


def in_a_line(problem: Problem) -> str:
    """Return rule, name and layers of a problem."""
    some: Iterable[str] = problem.patterns[:3]
    where = f": {', '.join(some)}" if problem.patterns else ""
    return f"{problem.rule} {problem.name}{where}".strip() if problem.rule != problem.name else f"{problem.name}{where}"
