"""``pytest --gradwatch`` fails tests whose training is sick, and changes nothing else of a session."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.skipif(
    not any(point.value == "gradwatch.pytest_plugin" for point in entry_points(group="pytest11")),
    reason="the installed gradwatch has no entry point pytest11: install this checkout, also an editable one, anew",
)

PROJECT = """
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(LightningModule):
    def __init__(self, depth, activation):
        super().__init__()
        torch.manual_seed(0)
        layers = [each for _ in range(depth) for each in (nn.Linear(8, 8), activation())]
        self.net = nn.Sequential(*layers, nn.Linear(8, 2))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def make(**options):
    quiet = dict(enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    return Trainer(max_steps=12, accelerator="cpu", **{"logger": False, **quiet, **options})


def fit(is_sick, trainer=None):
    x = torch.randn(64, 8)
    trainer = trainer or make()
    model = Net(10, nn.Sigmoid) if is_sick else Net(1, nn.ReLU)
    trainer.fit(model, DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16))
    return trainer
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("COLUMNS", "150")
    pytester.makepyfile(project=PROJECT)
    pytester.syspathinsert()
    return pytester


def run(project: pytest.Pytester, tests: str, *args: str) -> pytest.RunResult:
    project.makepyfile(f"import pytest\nfrom project import fit, make\n\n{tests}")
    return project.runpytest_inprocess("-p", "no:cacheprovider", "-W", "ignore", *args)


TESTS = """
def test_healthy():
    fit(False)

def test_sick():
    fit(True)

@pytest.mark.gradwatch(allow=["vanishing"])
def test_allowed():
    fit(True)

@pytest.mark.gradwatch(allow=["saturating activation"])
def test_allowed_by_its_cause():
    fit(True)

@pytest.mark.gradwatch(off=True)
def test_off():
    assert not fit(True).callbacks

def test_fails_by_itself():
    fit(True)
    assert 1 == 2

def test_skips():
    fit(True)
    pytest.skip("later")

class TestOfOneKind:
    pytestmark = pytest.mark.gradwatch(allow="vanishing")

    def test_allowed_by_its_class(self):
        fit(True)
"""


def test_a_session(project: pytest.Pytester) -> None:
    result = run(project, TESTS, "--gradwatch")
    result.assert_outcomes(passed=5, failed=2, skipped=1)
    text = result.stdout.str()
    failure, _, own = text.partition("_ test_fails_by_itself _")
    for expected in ("sick training: vanishing in Net", "net.0  Linear", "saturating activation"):
        assert expected in failure
    assert "@pytest.mark.gradwatch(allow=['vanishing'])" in failure
    assert "assert 1 == 2" in own
    assert "Captured gradwatch call" in own
    assert "FAILED test_a_session.py::test_sick - Failed: sick training: vanishing in Net" in text
    assert not list(project.path.rglob("*.jsonl"))
    assert not list(project.path.rglob("*logs*"))


def test_it_is_off_unless_asked_for(project: pytest.Pytester) -> None:
    run(project, TESTS).assert_outcomes(passed=6, failed=1, skipped=1)
    project.makeini("[pytest]\nmarkers = gradwatch")
    run(project, TESTS, "--strict-markers", "-p", "no:gradwatch").assert_outcomes(passed=6, failed=1, skipped=1)


def test_the_fixture_watches_its_test(project: pytest.Pytester) -> None:
    tests = """
    def test_it_is_judged(gradwatch):
        fit(True)

    def test_it_tells_what_was_found(gradwatch):
        gradwatch.allow("vanishing")
        fit(True)
        assert gradwatch.findings == gradwatch.diagnoses == []
        fit(False)
        assert [run.name for run in gradwatch.runs] == ["Net", "Net"]

    def test_before_it_allows(gradwatch):
        fit(True)
        assert [finding.kind for finding in gradwatch.findings] == ["vanishing"]
        assert gradwatch.diagnoses[0].cause == "saturating activation"
        gradwatch.allow("vanishing")

    def test_unknown(gradwatch):
        with pytest.raises(ValueError, match="did you mean 'vanishing'"):
            gradwatch.allow("vanish")

    def test_asked_for_late(request):
        trainer = request.getfixturevalue("gradwatch") and fit(True)
        assert [type(each).__name__ for each in trainer.callbacks] == ["FitMonitor"]

    def test_another_is_not_watched():
        assert not fit(True).callbacks
    """
    result = run(project, textwrap.dedent(tests))
    result.assert_outcomes(passed=4, failed=2)
    result.stdout.fnmatch_lines(["FAILED *test_it_is_judged - Failed: sick training: vanishing in Net"])
    result.stdout.fnmatch_lines(["FAILED *test_asked_for_late - Failed: sick training: vanishing in Net"])


def test_fixtures_monitors_and_crashes(project: pytest.Pytester) -> None:
    tests = """
import copy
import unittest
from gradwatch import GradientMonitor

@pytest.fixture(scope="module")
def trained():
    return fit(True)

def test_trained_by_its_fixture(trained): ...

def test_that_only_uses_it(trained): ...

@pytest.fixture
def trains_at_its_end():
    yield
    fit(True)

def test_trained_after_it(trains_at_its_end): ...

def test_with_a_monitor_of_its_own():
    own = GradientMonitor(summary=False, record_path=False, on_finding=lambda finding: None)
    trainer = fit(True, make(callbacks=[own]))
    assert [each for each in trainer.callbacks if isinstance(each, GradientMonitor)] == [own]

def test_a_copied_callback():
    trainer = make()
    trainer.callbacks = copy.deepcopy(trainer.callbacks)
    fit(True, trainer)

def test_meant_to_crash():
    class Crashes(GradientMonitor): ...
    trainer = make()
    trainer.fit_loop.epoch_loop.max_steps = "no number"
    with pytest.raises(TypeError):
        fit(True, trainer)

def test_that_checks_gradients_itself():
    from gradwatch.testing import assert_healthy_gradients
    from project import Net, nn, torch

    batch = torch.randn(16, 8), torch.randint(0, 2, (16,))
    with pytest.raises(AssertionError, match="vanishing"):
        assert_healthy_gradients(Net(10, nn.Sigmoid), batch)

class TestOld(unittest.TestCase):
    def test_of_unittest(self):
        fit(True)

@pytest.mark.xfail(strict=True)
def test_expected_to_fail():
    fit(True)
"""
    result = run(project, tests, "--gradwatch")
    result.assert_outcomes(passed=4, failed=4, errors=1, xfailed=1)
    failed = [line.split("::")[-1].split(" - ")[0] for line in result.outlines if line.startswith(("FAILED", "ERROR "))]
    assert failed == [
        "test_trained_by_its_fixture",
        "test_with_a_monitor_of_its_own",
        "test_a_copied_callback",
        "test_of_unittest",
        "test_trained_after_it",
    ]


def test_what_all_tests_may_have(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\ngradwatch_allow =\n    GW001\n    dead")
    run(project, "def test_sick():\n    fit(True)\n", "--gradwatch").assert_outcomes(passed=1)


def test_an_unknown_name_is_refused_before_a_test_runs(project: pytest.Pytester) -> None:
    tests = "@pytest.mark.gradwatch(allow=['vanish'])\ndef test_sick():\n    fit(True)\n"
    result = run(project, tests, "--gradwatch")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_sick: allow has 'vanish'; did you mean 'vanishing'?*"])


def test_a_session_without_a_training_loads_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_plain.py").write_text("def test_plain():\n    assert True\n")
    code = (
        "import sys, pytest; code = pytest.main(['-q', '-p', 'no:cacheprovider', *sys.argv[1:]]); "
        "print(int(code), sorted({'torch', 'numpy', 'lightning'} & set(sys.modules)))"
    )
    for args in ([], ["--gradwatch"]):
        command = [sys.executable, "-c", code, *args]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert ran.stdout.splitlines()[-1] == "0 []"
