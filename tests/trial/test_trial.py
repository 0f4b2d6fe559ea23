"""Real trials: remedies that cure, crash or are stopped early, and the traces of a trial."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from every_remedy import Classifier, Cut, labelled, mlp, regression
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradwatch.examples.baseline import Baseline
from gradwatch.examples.data import ImageData
from gradwatch.records import Snapshot
from gradwatch.remedies import (
    ChangeOptimizer,
    Clip,
    Combination,
    GuardOperations,
    InitializeAgain,
    InsertNormalization,
    KeepGraph,
    LowerLearningRate,
    Remedy,
    RemoveClip,
    ReplaceActivations,
    RescaleTargets,
    Setup,
    SkipBadSteps,
    UnfreezeAll,
    WarmUp,
)
from gradwatch.remedies.remedy import ModelRemedy
from gradwatch.trial import Row, Trial, try_remedies
from gradwatch.trial.suggestion import bounding
from gradwatch.trial.trial import _Session


@dataclass(frozen=True)
class Breaks(ModelRemedy):
    """A change that can't be trained."""

    def change(self, setup: Setup) -> Setup:
        setup.module.network = nn.Linear(1, 1)
        return setup

    def patch(self, setup: Setup) -> str:
        return "pass"


@dataclass(frozen=True)
class BreaksWhenApplied(Breaks):
    """A change that can't even be made."""

    def change(self, setup: Setup) -> Setup:
        raise KeyError("no such part")


@pytest.fixture(scope="module")
def digits() -> Any:
    torch.manual_seed(0)
    module, calls = Baseline(64), []
    before = {name: value.clone() for name, value in module.state_dict().items()}
    random = torch.get_rng_state()
    trial = try_remedies(
        module, ImageData(batch_size=64), steps=80, most=3, on_progress=lambda *call: calls.append(call)
    )
    unchanged = all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    return trial, calls, unchanged and torch.equal(random, torch.get_rng_state())


class TestDigits:
    """Seven Sigmoid layers that do not learn, and the remedies tried on them."""

    def test_the_best_remedy_beats_the_untreated_by_far(self, digits: Any) -> None:
        trial, _, _ = digits
        assert trial.metric == "val_accuracy"
        assert trial.untreated.result < 0.15
        assert trial.best.result > 0.8
        assert trial.best.flow > 100 * trial.untreated.flow
        assert {finding.kind for finding in trial.untreated.findings} == {"vanishing"}
        assert not trial.best.findings

    def test_the_cause_is_known_and_the_first_suggestion_cures(self, digits: Any) -> None:
        trial, _, _ = digits
        assert "saturating activation" in [diagnosis.cause for diagnosis in trial.diagnoses]
        first = next(row for row in trial.rows if isinstance(row.remedy, ReplaceActivations))
        assert first.result > trial.untreated.result + 0.3

    def test_two_are_tried_together(self, digits: Any) -> None:
        trial, _, _ = digits
        assert any(" + " in row.name for row in trial.rows)

    def test_the_original_and_the_random_numbers_stay(self, digits: Any) -> None:
        assert digits[2]

    def test_progress_is_reported_step_by_step(self, digits: Any) -> None:
        trial, calls, _ = digits
        done = [call[1] for call in calls]
        assert done == sorted(done)
        assert calls[-1][1] == calls[-1][2] == len(trial.rows) * 80

    def test_the_patch_makes_the_best_model(self, digits: Any) -> None:
        trial, _, _ = digits
        model = Baseline(64)
        exec(trial.patch, {"model": model, "nn": nn, "torch": torch})
        assert str(model) == str(trial.best.remedy.apply(Baseline(64)))

    def test_the_report_holds_table_cause_and_patch(self, digits: Any, tmp_path: Path) -> None:
        trial, _, _ = digits
        trial.report(tmp_path / "new" / "report.md")
        text = (tmp_path / "new" / "report.md").read_text()
        assert text.count("\n| ") == len(trial.rows) + 2
        assert "saturating activation" in text
        assert trial.patch in text
        assert trial.table().row_count == len(trial.rows)


def loader(samples: int = 48) -> DataLoader[Any]:
    inputs, _ = labelled(8, samples=samples)
    return DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1)), batch_size=16, shuffle=True)


def sick() -> Classifier:
    torch.manual_seed(0)
    return Classifier(mlp())


def test_a_crash_is_a_row_and_what_does_not_apply_too() -> None:
    remedies: list[Remedy] = [Breaks(), BreaksWhenApplied(), UnfreezeAll(), InsertNormalization()]
    trial = try_remedies(sick(), loader(), remedies=remedies, steps=20)
    errors = {row.name: row.error for row in trial.rows}
    assert "RuntimeError" in errors["Breaks()"]
    assert errors["UnfreezeAll()"].startswith("not applicable")
    assert trial.rows[0].name == "InsertNormalization(kind='auto')"
    assert trial.metric == "train loss"
    assert "no such part" in errors["BreaksWhenApplied()"]
    assert len(trial.rows) == 5


def test_the_same_trial_twice_is_the_same() -> None:
    first, again = (try_remedies(sick(), loader(), remedies=[InitializeAgain()], steps=15) for _ in range(2))
    assert [row.result for row in first.rows] == [row.result for row in again.rows]


def test_all_see_the_same_batches_though_their_models_draw_random_numbers() -> None:
    seen: list[list[float]] = []

    class Notes(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 0:
                seen.append([])
            seen[-1].append(batch[0].sum().item())

    torch.manual_seed(0)
    module = Classifier(nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Dropout(0.5), nn.Linear(8, 3)))
    setup = Setup(module, options={"callbacks": [Notes()]})
    try_remedies(setup, loader(), remedies=[InsertNormalization(), ReplaceActivations("RReLU")], steps=10)
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]
    assert len(set(seen[0])) > 3


def test_ctrl_c_ends_it_with_the_rows_so_far() -> None:
    handler = signal.getsignal(signal.SIGINT)
    calls = []

    def stop(name: str, done: int, total: int) -> None:
        calls.append(done)
        if done == 15:
            raise KeyboardInterrupt

    trial = try_remedies(sick(), loader(), remedies=[InitializeAgain(), Clip()], steps=10, on_progress=stop)
    assert trial.interrupted
    assert [row.error for row in trial.rows] == ["", "broken off"]
    assert signal.getsignal(signal.SIGINT) is handler
    assert "broken off" in trial.markdown()


def test_options_and_transforms_are_used() -> None:
    torch.manual_seed(0)
    setup = Setup(Classifier(mlp(nn.ReLU)), options={"gradient_clip_val": 1e-6})
    remedies: list[Remedy] = [RemoveClip(), SkipBadSteps(), ChangeOptimizer(), LowerLearningRate()]
    trial = try_remedies(setup, loader(), remedies=remedies, steps=60)
    results = {type(row.remedy).__name__: row.result for row in trial.rows}
    assert results["RemoveClip"] < results["NoneType"]
    assert results["SkipBadSteps"] == results["NoneType"]  # nothing was bad
    assert not any(row.error for row in trial.rows)


def test_rescaled_targets_are_ranked_in_the_unit_of_the_others() -> None:
    setup = regression()
    rows = DataLoader(TensorDataset(*setup.batch), batch_size=16)
    trial = try_remedies(setup, rows, remedies=[RescaleTargets()], steps=60)
    assert trial.rows[0].remedy == RescaleTargets()
    assert trial.rows[0].result < 10_000  # the targets' variance is 90,000
    assert not trial.rows[0].error


def test_where_nothing_is_found_the_usual_remedies_are_tried() -> None:
    torch.manual_seed(0)
    trial = try_remedies(Classifier(mlp(nn.ReLU)), loader(), steps=20, most=3)
    assert trial.diagnoses == ()
    names = {row.name for row in trial.rows}
    assert {"untreated", "WarmUp(steps=100)", "LowerLearningRate(factor=0.1)"} < names
    assert "Nothing was found in the untreated training" in trial.markdown()


def test_where_no_suggested_remedy_helps_the_usual_ones_are_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradwatch.trial.trial.suggest", lambda *_: [Breaks()])
    calls: list[tuple[Any, ...]] = []
    trial = try_remedies(sick(), loader(), steps=5, most=2, on_progress=lambda *call: calls.append(call))
    names = [row.name for row in trial.rows]
    assert len(names) >= 4  # untreated, the one that breaks, and two more
    assert "Breaks()" in names
    assert calls[-1][2] >= 5 * 4


def test_a_trial_in_which_nothing_helps_says_so() -> None:
    trial = try_remedies(sick(), loader(), remedies=[Breaks()], steps=3)
    assert trial.best is None
    assert trial.table().caption is not None


def test_a_run_that_turns_nan_is_tried_with_all_that_bounds_it() -> None:
    module = sick()
    setup = Setup(module, batch=next(iter(loader())))
    tried = {type(remedy) for remedy in bounding(setup, [Snapshot(0, ("a",), total_norm=1.0, loss=math.inf)])}
    assert {Clip, LowerLearningRate, SkipBadSteps, InsertNormalization} <= tried


def test_of_rows_that_do_as_well_the_one_tried_first_is_the_best() -> None:
    rows = [Row(WarmUp(), 0.88, place=2), Row(GuardOperations(), 0.875, place=1), Row(Clip(), 0.7), Row(None, 0.23)]
    trial = Trial(tuple(rows), "val_acc", higher_is_better=True, steps=1, seed=0)
    assert trial.best == rows[1]
    assert "GuardOperations" in trial.markdown()
    far = Trial((rows[0], rows[2], rows[3]), "val_acc", higher_is_better=True, steps=1, seed=0)
    assert far.best == rows[0]
    nan = Trial((Row(Clip(), 0.5, place=1), Row(None)), "train loss", higher_is_better=False, steps=1, seed=0)
    assert nan.best == nan.rows[0]
    assert Trial((Row(None, 0.5), Row(Clip(), 0.4)), "val_acc", higher_is_better=True, steps=1, seed=0).best is None


def test_the_best_change_is_combined_with_the_next_that_does_not_draw_the_weights_too() -> None:
    session = _Session(sick(), None, 1, 0, None)
    tried: list[tuple[Any, float]] = [
        (None, 0.4), (ReplaceActivations(), 0.92), (InitializeAgain(), 0.87), (InsertNormalization(), 0.7)
    ]  # fmt: skip
    session.done = [(Row(remedy), {"val_acc": result}) for remedy, result in tried]
    both = session._best_two()
    assert isinstance(both, Combination)
    assert both.remedies == (ReplaceActivations(), InsertNormalization())


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: try_remedies(sick(), loader(), steps=0), ValueError, "steps is 0"),
        (lambda: try_remedies(nn.Linear(1, 1), loader()), TypeError, "expected a LightningModule"),
        (
            lambda: try_remedies(sick(), loader(), remedies=[], steps=2, metric="val_f1"),
            ValueError,
            "no training logged",
        ),
    ],
)
def test_what_is_wrong_is_refused(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_what_is_for_the_user_to_change_is_in_the_report() -> None:
    from gradwatch.remedies import Advice
    from gradwatch.trial.result import Row, Trial

    advice = Advice("unguarded operation", "Guard the log.", "x = torch.log(x + 1e-6)")
    text = Trial((Row(None, 0.5),), "val_acc", True, 10, 0, advice=(advice,)).markdown()
    assert "- unguarded operation: Guard the log. x = torch.log(x + 1e-6)" in text


def test_nothing_is_written_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try_remedies(sick(), loader(), remedies=[InitializeAgain()], steps=5)
    assert not list(tmp_path.iterdir())


def test_a_graph_that_is_kept_lets_the_hooks_and_the_log_detach() -> None:
    torch.manual_seed(0)
    trial = try_remedies(Classifier(Cut()), loader(), remedies=[KeepGraph()], steps=10)
    assert [row.error for row in trial.rows] == ["", ""]
