"""LightningModules with unusual overrides, and Trainers inside of Trainers."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torchmetrics
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor, nn
from torch.utils.data import DataLoader
from zoo import WIDTH, Net, Run, fit, has_columns, rows
from zoo_manual import FIRST, Manual, trains

LAYERS = has_columns("grad_norm", layer="0")


@fit(expect=FIRST)
def clips_by_itself(run: Run) -> None:
    class Clips(Net):
        def configure_gradient_clipping(
            self, optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any
        ) -> None:
            nn.utils.clip_grad_norm_(self.parameters(), 0.01)

    trains(run, Clips(run))


@fit(expect=FIRST)
def drops_its_gradients_in_its_own_way(run: Run) -> None:
    class Drops(Net):
        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
            optimizer.zero_grad(set_to_none=False)

    trains(run, Drops(run))


@fit()
def never_drops_its_gradients(run: Run) -> None:
    class Keeps(Net):
        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None: ...

    trains(run, Keeps(run))


@fit(expect=FIRST)
def brings_its_own_callbacks(run: Run) -> None:
    class Brings(Net):
        def configure_callbacks(self) -> Any:
            return [LambdaCallback(on_train_batch_end=lambda *_: None)]

    trains(run, Brings(run))


@fit(expect=FIRST)
def counts_with_metrics(run: Run) -> None:
    class Counts(Net):
        def __init__(self, run: Run) -> None:
            super().__init__(run)
            self.mean, self.many = torchmetrics.MeanMetric(), torchmetrics.MetricCollection([torchmetrics.SumMetric()])

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = self.loss()
            self.many.update(loss.detach())
            self.log("mean", self.mean(loss.detach()), on_epoch=True)
            return loss

    trains(run, Counts(run))


@fit(expect=FIRST)
def saves_itself_in_a_step(run: Run) -> None:
    class Saves(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.trainer.save_checkpoint(self.run.folder / "in_step.ckpt")
            loss = self.loss()
            self.trainer.save_checkpoint(self.run.folder / "behind.ckpt")
            torch.load(self.run.folder / "in_step.ckpt", weights_only=False)
            return loss

    trains(run, Saves(run))


@fit(expect=FIRST)
def copies_itself_in_a_step(run: Run) -> None:
    class Copies(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = self.loss()
            twin = copy.deepcopy(self.net)
            twin(rows()).sum().backward()
            return loss

    trains(run, Copies(run))


@fit(expect=FIRST)
def switches_to_evaluation_in_a_step(run: Run) -> None:
    class Switches(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.eval()
            with torch.no_grad():
                self(rows())
            self.train()
            return self.loss()

    trains(run, Switches(run))


@fit(expect=FIRST)
def freezes_itself_in_an_epoch(run: Run) -> None:
    class Freezes(Net):
        def on_train_epoch_start(self) -> None:
            self.freeze() if self.current_epoch == 5 else self.unfreeze()
            self.net[0].eval()

    trains(run, Freezes(run), max_epochs=2)


@fit()
def changes_from_automatic_to_manual(run: Run) -> None:
    class Changes(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.automatic_optimization = batch_idx % 2 == 0
            if self.automatic_optimization:
                return self.loss()
            self.step(self.optimizers())
            return None

    trains(run, Changes(run))


@fit(expect=FIRST)
def toggles_its_optimizers(run: Run) -> None:
    class Toggles(Manual):
        def configure_optimizers(self) -> Any:
            parts = (self.net[:2], self.net[2:])
            return [self.run.keep(torch.optim.Adam(part.parameters(), lr=0.01)) for part in parts], []

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                with optimizer.toggle_model(sync_grad=True):
                    self.step(optimizer)

    trains(run, Toggles(run))


@fit(expect=LAYERS)
def fit_inside_of_a_fit(run: Run) -> None:
    """Another model is trained at the end of each epoch, and watched as well."""

    class Trains(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            inner = run.trainer(own=run.new_callbacks(), max_epochs=1)
            inner.fit(run.keep(Net(run)))

    run.trainer(Trains(), max_epochs=2).fit(run.keep(Net(run)))


@fit(expect=FIRST)
def validated_by_another_trainer_in_a_step(run: Run) -> None:
    class Checked(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(rows())

    class Validates(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            twin = Checked(run)
            twin.load_state_dict(pl_module.state_dict())
            run.trainer(own=[]).validate(twin, DataLoader(range(2)), verbose=False)

    run.trainer(Validates(), max_epochs=1).fit(run.keep(Net(run)))


@fit(expect=FIRST)
def scripted_by_a_callback_at_a_batchs_start(run: Run) -> None:
    class Scripts(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
            torch.jit.script(pl_module.net)(rows())
            torch.jit.trace(pl_module.net, rows())(rows())
            torch.fx.symbolic_trace(pl_module.net)(rows())

    run.trainer(Scripts(), max_epochs=1).fit(run.keep(Net(run)))


@fit()
def network_exchanged_by_a_callback(run: Run) -> None:
    """The layers are replaced by copies in the middle of the fit, in the optimizer too."""

    class Exchanges(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                pl_module.net = copy.deepcopy(pl_module.net)
                trainer.optimizers[0].param_groups[0]["params"] = list(pl_module.net.parameters())

    run.trainer(Exchanges(), max_epochs=1).fit(run.keep(Net(run)))


@fit()
def network_of_other_layers_by_a_callback(run: Run) -> None:
    class Exchanges(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                pl_module.net = nn.Sequential(nn.LSTM(WIDTH, WIDTH, batch_first=True), First(), nn.Linear(WIDTH, 2))
                trainer.optimizers[0].param_groups[0]["params"] = list(pl_module.net.parameters())

    run.trainer(Exchanges(), max_epochs=2).fit(run.keep(Net(run)))


class First(nn.Module):
    """Takes the first of several outputs."""

    def forward(self, out: Any) -> Tensor:
        return out[0]


@fit(expect=FIRST)
def layers_without_a_batch(run: Run) -> None:
    """A loss of the weights alone in every other batch."""

    class Penalizes(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if batch_idx == 1:
                return self.run.note(sum(param.square().sum() for param in self.parameters()) + 0 * self(rows()).sum())
            return self.loss()

    trains(run, Penalizes(run))


@fit(expect=FIRST)
def batches_of_growing_size(run: Run) -> None:
    class Grows(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = rows(1 + batch_idx * 7)
            return self.run.note(self(x).square().sum(), x)

    trains(run, Grows(run))
