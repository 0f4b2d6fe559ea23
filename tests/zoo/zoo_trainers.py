"""Settings of the Trainer, each with the same small network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader
from zoo import WIDTH, Expect, Net, Run, fit, has_columns
from zoo_fits import Validated, normalized

FIRST: Expect = has_columns("grad_norm", "grad_output_norm", "output_rms", layer="0")


class Usual(Validated):
    """Logs, is validated, and has a schedule for its rate."""

    def __init__(self, run: Run) -> None:
        super().__init__(run, normalized(), 4)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss()
        self.log("train_loss", loss, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", super().validation_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
        return [optimizer], [{"scheduler": rate, "interval": "step"}]


def trains_with(name: str, expect: Expect | None = FIRST, idle: bool = False, **settings: Any) -> None:
    """A fit of two epochs with these settings; functions are called for their values, with the run."""

    def train(run: Run) -> None:
        given = {key: value(run) if callable(value) else value for key, value in settings.items()}
        run.trainer(**{"max_epochs": 2, **given}).fit(run.keep(Usual(run)))

    train.__name__ = name
    fit(expect=expect, idle=idle)(train)


def scaled(run: Run) -> Any:
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**8))


def overflowing(run: Run) -> Any:
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**120))


trains_with("nothing_special")
trains_with("overfitted_batches", overfit_batches=2)
trains_with("fast_run", fast_dev_run=2)
trains_with("limited_batches", limit_train_batches=2, limit_val_batches=0)
trains_with("no_training_batches", limit_train_batches=0, expect=None, idle=True)
trains_with("bare_bones", barebones=True, log_every_n_steps=None)
trains_with("anomalies_sought", detect_anomaly=True)
trains_with("clipped_by_norm", gradient_clip_val=0.01)
trains_with("clipped_by_value", gradient_clip_val=0.01, gradient_clip_algorithm="value")
trains_with("accumulated", accumulate_grad_batches=3)
trains_with("accumulated_over_more_than_an_epoch", accumulate_grad_batches=9)
trains_with("mixed_with_bfloat16", precision="bf16-mixed")
trains_with("truly_bfloat16", precision="bf16-true", expect=None)
trains_with("truly_double", precision="64-true")
trains_with("mixed_with_half_and_a_scale", plugins=scaled)
trains_with("mixed_with_half_and_a_scale_that_overflows", plugins=overflowing, expect=None)
trains_with("mixed_with_half_clipped_and_accumulated", plugins=scaled, gradient_clip_val=0.1, accumulate_grad_batches=2)
trains_with("validated_in_mid_epoch", val_check_interval=2, num_sanity_val_steps=2)
trains_with("validated_every_other_epoch", check_val_every_n_epoch=2)
trains_with("loaders_made_anew", reload_dataloaders_every_n_epochs=1)
trains_with("out_of_time", max_time="00:00:00:00", expect=None, idle=True)
trains_with("steps_and_epochs", max_steps=5, min_steps=3)
trains_with("without_inference_mode", inference_mode=False)
trains_with("deterministic", deterministic=True)
trains_with("deterministic_with_warnings", deterministic="warn")
trains_with("benchmarked", benchmark=True)
trains_with("logged_every_other_step", log_every_n_steps=2, logger=lambda run: CSVLogger(run.folder))
trains_with("logged_never", log_every_n_steps=0)
trains_with("with_a_progress_bar", enable_progress_bar=True)
trains_with("with_a_summary_of_the_model", enable_model_summary=True)
trains_with("with_checkpoints", enable_checkpointing=True)
trains_with("profiled_simply", profiler="simple")
trains_with("on_one_of_many", devices="auto", num_nodes=1)


class OddBatches:
    """A loader of batches with few tensors in them."""

    def __iter__(self) -> Iterator[Any]:
        for _ in range(3):
            yield {"none": None, "text": ["a"], "object": object(), "rows": torch.ones(2)}


@fit(expect=FIRST)
def batches_of_odd_kinds(run: Run) -> None:
    class Mixed(Net):
        def train_dataloader(self) -> Any:
            return OddBatches()

    run.trainer(max_epochs=1).fit(run.keep(Mixed(run)))


@fit(expect=FIRST)
def endless_batches(run: Run) -> None:
    class Endless(Net):
        def train_dataloader(self) -> Any:
            while True:
                yield torch.ones(1)

    run.trainer(max_steps=3, limit_train_batches=2).fit(run.keep(Endless(run)))


@fit(expect=FIRST)
def several_loaders_at_once(run: Run) -> None:
    class Several(Net):
        def train_dataloader(self) -> Any:
            return {"a": DataLoader(range(3)), "b": DataLoader(range(2))}

    run.trainer(max_epochs=1).fit(run.keep(Several(run)))


@fit(expect=FIRST)
def frozen_and_thawed_by_the_module(run: Run) -> None:
    class Thaws(Net):
        def on_train_epoch_start(self) -> None:
            self.net[2].requires_grad_(self.current_epoch == 1)

    run.trainer(max_epochs=2).fit(run.keep(Thaws(run)))


@fit(expect=FIRST)
def layers_made_in_the_module_as_it_is_set_up(run: Run) -> None:
    class Late(Net):
        def configure_model(self) -> None:
            if not isinstance(self.net, torch.nn.Sequential):
                self.net = torch.nn.Sequential(torch.nn.Linear(WIDTH, 2))

    run.trainer(max_epochs=1).fit(run.keep(Late(run, torch.nn.Identity())))


@fit(expect=FIRST)
def modules_inside_of_modules(run: Run) -> None:
    """A LightningModule as a part of another."""

    class Outer(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + self.inner(x)

    model = Outer(run)
    model.inner = Net(run)
    run.trainer(max_epochs=1).fit(run.keep(model))


@fit(expect=FIRST)
def names_that_lightning_uses(run: Run) -> None:
    class Named(Net):
        def __init__(self, run: Run) -> None:
            super().__init__(run)
            self.findings = self.history = self.log_metrics = None

    assert issubclass(Named, LightningModule)
    run.trainer(max_epochs=1).fit(run.keep(Named(run)))
