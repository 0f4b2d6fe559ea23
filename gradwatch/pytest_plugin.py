"""pytest plugin: ``pytest --gradwatch`` watches each fit of a Lightning Trainer, and fails a test that trains badly.

pytest loads it at each start, so it loads nothing of torch until a Trainer is made in a watched test.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from gradwatch.autoload import added_to_trainers

if TYPE_CHECKING:
    from gradwatch.records import Diagnosis, Finding
    from gradwatch.short_runs.run import Run

_MARKER = "gradwatch(allow=[...], off=True): causes or findings that this test may have; off: it is not watched"
_SECTION = "gradwatch"


class WatchedTest:
    """The trainings of one test, which the fixture ``gradwatch`` gives it.

    Args:
        allow: causes, or kinds of findings, that the test may have.

    Example:
        >>> watched = WatchedTest(["dead"])
        >>> watched.allow("unscaled input")
        >>> watched.runs, watched.findings, watched.diagnoses
        ([], [], [])
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self._allowed = set(allow)
        self._fits: list[Any] = []

    @property
    def runs(self) -> list[Run]:
        """The trainings that came to their end, judged as ``gradwatch check`` judges one."""
        self._fits += _new_fits()
        if not self._fits:
            return []
        from gradwatch.preflight.verdict import judge

        return [judge(fit.name, fit.history, fit.findings, allow=self._allowed) for fit in self._fits]

    @property
    def findings(self) -> list[Finding]:
        """The findings in all trainings, without those that are allowed or that a longer training would take back."""
        return [finding for run in self.runs for finding in run.findings]

    @property
    def diagnoses(self) -> list[Diagnosis]:
        """The causes in all trainings, the likeliest first in each."""
        return [diagnosis for run in self.runs for diagnosis in run.diagnoses]

    def allow(self, *names: str) -> None:
        """Let the test have these causes, or kinds of findings, such as ``"dead"`` or ``"unscaled input"``.

        Raises:
            ValueError: for a name that is no cause and no kind of finding.
        """
        _require_known(names)
        self._allowed.update(names)

    def in_words(self) -> str:
        """Return what is wrong with the trainings, with the layers of each; empty where nothing is."""
        sick = [run for run in self.runs if not run.is_healthy]
        if not sick:
            return ""
        kinds = dict.fromkeys(finding.kind for run in sick for finding in run.findings)
        causes = dict.fromkeys(diagnosis.cause for run in sick for diagnosis in run.diagnoses)
        head = f"sick training: {', '.join(kinds or causes)} in {', '.join(dict.fromkeys(run.name for run in sick))}"
        way_out = f"If this is meant to be: @pytest.mark.gradwatch(allow={[*(kinds or causes)]})"
        return "\n\n".join([head, *map(str, sick), way_out])


_WATCHED = pytest.StashKey[WatchedTest]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare ``--gradwatch``, and the setting for what all tests may have."""
    text = "watch each fit of a Lightning Trainer, and fail tests whose training is sick"
    parser.getgroup("gradwatch").addoption("--gradwatch", action="store_true", help=text)
    text = "causes, or kinds of findings, that the trainings of all tests may have, one a line"
    parser.addini("gradwatch_allow", text, type="linelist", default=[])


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", _MARKER)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse unknown names before the first test runs."""
    for item in filter(_is_watched, items):
        try:
            _require_known(_allowed_in(item))
        except ValueError as error:
            raise pytest.UsageError(f"gradwatch, {item.nodeid}: {error}") from None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Watch the Trainers that are made for a test, from its first fixture on."""
    if not _is_watched(item):
        return (yield)
    _new_fits()  # of a Trainer that somebody fitted between two tests
    item.stash[_WATCHED] = WatchedTest(_allowed_in(item))
    with _watching():
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Tell of the trainings in the report of a test whose fixtures fail."""
    with _told(item, "setup"):
        yield


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a test that has passed with a sick training; tell of it in the report of one that has failed."""
    with _told(item, "call"):
        yield
    _judge(item)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Judge the trainings of the teardown too."""
    yield
    if _WATCHED in item.stash and (new := _new_fits()):
        item.stash[_WATCHED]._fits = new  # the others have been judged
        _judge(item)


@pytest.fixture(name="gradwatch")
def _gradwatch(request: pytest.FixtureRequest) -> Generator[WatchedTest, None, None]:
    """Watch the Trainers of this test: ``findings``, ``diagnoses``, ``runs``, and ``allow(...)`` what may be."""
    watched = request.node.stash.get(_WATCHED, None)
    if watched is not None or _marked(request.node, "off"):
        yield watched or WatchedTest()
        return
    request.node.stash[_WATCHED] = watched = WatchedTest(_allowed_in(request.node))  # asked for by getfixturevalue
    with _watching():
        yield watched


def _watching() -> Any:
    return added_to_trainers(_make_monitor)


def _make_monitor() -> Any:
    from gradwatch.fits_in_tests import FitMonitor

    return FitMonitor()


def _new_fits() -> list[Any]:
    loaded = sys.modules.get("gradwatch.fits_in_tests")  # where no Trainer was made, there is no fit
    return loaded.FitMonitor.take() if loaded is not None else []


@contextmanager
def _told(item: pytest.Item, when: str) -> Iterator[None]:
    """Tell of sick trainings in the report where the body of the ``with`` fails; skipping is no failure."""
    try:
        yield
    except (Exception, pytest.fail.Exception, pytest.skip.Exception) as error:
        text = _trouble_of(item)  # takes the fits, so that they are not judged at the end
        if text and not isinstance(error, pytest.skip.Exception):
            item.add_report_section(when, _SECTION, text)
        raise


def _judge(item: pytest.Item) -> None:
    if text := _trouble_of(item):
        pytest.fail(text, pytrace=False)


def _trouble_of(item: pytest.Item) -> str:
    watched = item.stash.get(_WATCHED, None)
    return watched.in_words() if watched is not None else ""


def _is_watched(item: pytest.Item) -> bool:
    is_asked = item.config.getoption("--gradwatch") or "gradwatch" in getattr(item, "fixturenames", ())
    return bool(is_asked) and not _marked(item, "off")


def _marked(item: pytest.Item, name: str) -> Any:
    """Return what the closest marker says."""
    return next((mark.kwargs[name] for mark in item.iter_markers("gradwatch") if name in mark.kwargs), None)


def _allowed_in(item: pytest.Item) -> list[str]:
    names: list[str] = list(item.config.getini("gradwatch_allow"))
    for mark in item.iter_markers("gradwatch"):
        allow = mark.kwargs.get("allow", ())
        names += [allow] if isinstance(allow, str) else allow
    return names


def _require_known(names: Iterable[str]) -> None:
    if names := list(names):
        from gradwatch.preflight.verdict import known_names

        known_names(names)
