"""GradientTransform's numbers: where other callbacks find them, and that no failing logger ends a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from manual_fits import Raw
from small_fits import Regression, fit, same_weights
from torch import Tensor
from torch.utils.data import DataLoader

from gradwatch.callbacks.backward import BackwardTransform
from gradwatch.callbacks.transform import GradientTransform
from gradwatch.transforms import ClipByGlobalNorm, ClipByNorm, SkipNonFinite


class TakesTheIterator(Regression):
    def training_step(self, dataloader_iter: Any) -> Tensor:
        next(dataloader_iter)
        x = self.batch(int(self.seen))
        self.seen += 1
        return (self.net(x).squeeze(-1) - x.sum(1).sin()).square().mean()


class Validates(Regression):
    """Logs something in the validation, after which Lightning gathers its metrics anew."""

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", torch.tensor(1.0))

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.arange(2), batch_size=1)


@pytest.mark.parametrize("model", [TakesTheIterator, Validates, Regression, Raw])
def test_the_counts_are_in_callback_metrics_during_and_after_the_fit(model: type[Regression]) -> None:
    seen: list[set[str]] = []

    class Looks(EarlyStopping):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append(set(trainer.callback_metrics))

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                seen.append(set(trainer.callback_metrics))

    callback = GradientTransform([SkipNonFinite(), ClipByGlobalNorm(0.3)])
    trained = fit([callback, Looks("clipped_share")], model(), max_steps=-1, max_epochs=2)
    assert len(seen) == 2 + 2 * (model is Validates)
    assert all({"clipped_share", "skipped_steps"} <= keys for keys in seen)
    metrics = trained.trainer.callback_metrics
    assert isinstance(metrics["clipped_share"], Tensor)
    assert 0 < float(metrics["clipped_share"]) <= 1
    assert metrics["skipped_steps"] == 0


def test_early_stopping_and_checkpoints_go_by_them(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, "{epoch}-{skipped_steps:.0f}", monitor="skipped_steps", mode="max")
    stop = EarlyStopping("skipped_steps", mode="min", stopping_threshold=-1.0, divergence_threshold=0.5)
    callback = GradientTransform(SkipNonFinite())
    model = Validates(bad_batches=(12,))
    fit([callback, best, stop], model, max_steps=-1, max_epochs=9, enable_checkpointing=True)
    assert model.trainer.current_epoch == 2
    assert Path(best.best_model_path).name == "epoch=1-skipped_steps=1.ckpt"


class Fails(Logger):
    """Cannot be written to."""

    name, version = "fails", 0

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "skipped_steps" in metrics:
            self.calls += 1
            raise OSError("No space left on device")

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def test_a_logger_that_fails_is_switched_off_and_the_others_go_on(tmp_path: Path) -> None:
    broken, works = Fails(), CSVLogger(tmp_path, version=0)
    with pytest.warns(UserWarning, match=r"logger Fails: .* step 0 \(OSError: No space left on device\)"):
        ours = fit(GradientTransform(ClipByGlobalNorm(0.3), on_error="warn"), logger=[broken, works])
    assert broken.calls == 1
    assert same_weights(ours, fit(GradientTransform(ClipByGlobalNorm(0.3))))
    assert "clipped_share" in (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()


def test_a_logger_that_fails_raises_where_that_is_wished() -> None:
    with pytest.raises(OSError, match="No space left"):
        fit(GradientTransform(ClipByGlobalNorm(0.3), on_error="raise"), logger=Fails())


def test_an_unknown_setting_is_refused() -> None:
    for make in (GradientTransform, lambda t, **kw: BackwardTransform(t, layers=["*"], **kw)):
        with pytest.raises(ValueError, match="on_error is 'ignore'; expected 'warn' or 'raise'"):
            make(ClipByNorm(1.0), on_error="ignore")


def test_numbers_that_can_not_be_had_end_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no norm of this gradient")

    monkeypatch.setattr("gradwatch.callbacks.transform.total_norm", fails)
    with pytest.warns(UserWarning, match="the logged norms: .*no norm of this gradient"):
        model = fit(GradientTransform(ClipByGlobalNorm(0.3), on_error="warn"))
    assert "clipped_share" in model.trainer.callback_metrics


def test_an_error_of_a_transform_is_the_trainings() -> None:
    def fails(params: Any, context: Any) -> None:
        raise ZeroDivisionError("of the transform")

    for callback in (
        GradientTransform(fails, on_error="warn"),
        BackwardTransform(fails, layers=["net.0"], on_error="warn"),
    ):
        with pytest.raises(ZeroDivisionError, match="of the transform"):
            fit(callback)


@pytest.mark.filterwarnings("error:.*were clipped.*")
def test_advice_ends_no_run_where_warnings_are_errors(capsys: pytest.CaptureFixture[str]) -> None:
    fit(GradientTransform(ClipByGlobalNorm(1e-4)), max_steps=120)
    assert capsys.readouterr().err.count("were clipped") == 1
