"""Fits with something unusual around the steps: validation, second fits, resumed fits, calls from callbacks."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from zoo import WIDTH, Net, Run, fit, has_columns, rows
from zoo_learner import TRUSTED

ANEW = "history and findings start anew"
FIRST = has_columns("grad_norm", "grad_output_norm", "output_rms", layer="0")


def normalized() -> nn.Module:
    layers = [nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)]
    return nn.Sequential(*layers)


class Validated(Net):
    """Is validated, tested and predicted with."""

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(rows()).mean()

    test_step = predict_step = validation_step

    def val_dataloader(self) -> Any:
        return DataLoader(range(2))

    test_dataloader = predict_dataloader = val_dataloader


class ValidatedWithGradients(Validated):
    """Its validation takes gradients, as that of energies and forces does."""

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.enable_grad():
            x = rows().requires_grad_()
            (slope,) = torch.autograd.grad(self(x).sum(), x, create_graph=True)
            return slope.square().mean().detach()


@fit(expect=FIRST)
def validation_between_steps(run: Run) -> None:
    run.trainer(max_epochs=2, val_check_interval=2).fit(run.keep(Validated(run, normalized(), 4)))


@fit(expect=FIRST)
def validation_with_gradients_while_they_accumulate(run: Run) -> None:
    model = run.keep(ValidatedWithGradients(run, batches=6))
    run.trainer(max_epochs=1, val_check_interval=1, accumulate_grad_batches=3, inference_mode=False).fit(model)


@fit(expect=FIRST)
def validation_with_backward_passes(run: Run) -> None:
    class Probes(Validated):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            with torch.enable_grad():
                self(rows()).sum().backward()
            self.zero_grad()

    model = run.keep(Probes(run, batches=4))
    run.trainer(max_epochs=2, num_sanity_val_steps=2, inference_mode=False).fit(model)


@fit()
def validation_and_test_behind_a_fit(run: Run) -> None:
    model = run.keep(Validated(run, normalized()))
    trainer = run.trainer(max_epochs=1)
    trainer.fit(model)
    trainer.validate(model)
    trainer.test(model)
    trainer.predict(model)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model)


class Calls(Callback):
    """Calls the model with other data at one of the hooks."""

    def __init__(self, where: str, backward: bool = False) -> None:
        setattr(self, where, self._call)
        self.backward = backward

    def _call(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        with torch.set_grad_enabled(self.backward):
            loss = pl_module(rows() * 100).square().mean()
        if self.backward:
            torch.autograd.grad(loss, list(pl_module.parameters()))


@fit(expect=FIRST)
def callback_that_calls_the_model_at_a_batchs_start(run: Run) -> None:
    run.trainer(Calls("on_train_batch_start"), max_epochs=1).fit(run.keep(Net(run)))


@fit(expect=FIRST)
def callback_that_calls_the_model_at_a_batchs_end(run: Run) -> None:
    run.trainer(Calls("on_train_batch_end"), max_epochs=1).fit(run.keep(Net(run)))


@fit(expect=FIRST)
def callback_that_takes_gradients_at_a_batchs_start(run: Run) -> None:
    run.trainer(Calls("on_train_batch_start", backward=True), max_epochs=1).fit(run.keep(Net(run)))


@fit(expect=FIRST)
def callback_that_calls_the_model_after_the_backward_pass(run: Run) -> None:
    run.trainer(Calls("on_after_backward"), max_epochs=1).fit(run.keep(Net(run)))


@fit(expect=FIRST)
def callback_that_calls_the_model_before_the_step(run: Run) -> None:
    run.trainer(Calls("on_before_optimizer_step"), max_epochs=1, accumulate_grad_batches=2).fit(run.keep(Net(run)))


@fit(expect=FIRST)
def callback_that_calls_the_model_between_accumulated_batches(run: Run) -> None:
    run.trainer(Calls("on_train_batch_end"), max_epochs=1, accumulate_grad_batches=2).fit(run.keep(Net(run, batches=6)))


@fit(expect=FIRST)
def averaged_weights_with_batch_norm(run: Run) -> None:
    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
    run.trainer(averaging, max_epochs=3).fit(run.keep(Net(run, normalized())))


@fit()
def fit_with_nothing_left_to_do(run: Run) -> None:
    model = run.keep(Net(run))
    trainer = run.trainer(max_epochs=1, logger=TensorBoardLogger(run.folder))
    trainer.fit(model)
    trainer.fit(model)


@fit(expect=FIRST)
def fit_called_twice(run: Run) -> None:
    model = run.keep(Net(run))
    for _ in range(2):
        run.trainer(max_epochs=1, logger=CSVLogger(run.folder)).fit(model)


@fit(expect=FIRST)
def fit_that_goes_on_with_the_same_trainer(run: Run) -> None:
    model = run.keep(Net(run))
    trainer = run.trainer(max_epochs=1)
    trainer.fit(model)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model)


@fit(says=ANEW)
def second_fit_with_another_model(run: Run) -> None:
    trainer = run.trainer(max_epochs=1)
    trainer.fit(run.keep(Net(run)))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(run.keep(Net(run, normalized())))


@fit()
def second_fit_with_other_layers_of_the_same_names(run: Run) -> None:
    run.trainer(max_epochs=1).fit(run.keep(Net(run)))
    run.trainer(max_epochs=1).fit(run.keep(Net(run, nn.Sequential(nn.ReLU(), nn.Linear(WIDTH, 3), nn.Sigmoid()))))


@fit(says=ANEW)
def resumed_with_other_layers_included(run: Run) -> None:
    keep = ModelCheckpoint(run.folder, "last", every_n_train_steps=2)
    own = run.new_callbacks(include=["net.0", "net.3"])
    run.trainer(keep, own=own, max_steps=2, enable_checkpointing=True).fit(Net(run))
    own = run.new_callbacks(exclude=["net.0"])
    run.trainer(own=own, max_steps=4).fit(run.keep(Net(run)), ckpt_path=run.folder / "last.ckpt", **TRUSTED)


@fit(says=ANEW)
def resumed_with_another_model(run: Run) -> None:
    keep = ModelCheckpoint(run.folder, "last", every_n_train_steps=2)
    run.trainer(keep, max_steps=2, enable_checkpointing=True).fit(Net(run))

    class Lenient(Net):
        strict_loading = False

        def on_load_checkpoint(self, checkpoint: Any) -> None:
            checkpoint["state_dict"], checkpoint["optimizer_states"] = {}, []

    model = run.keep(Lenient(run, normalized()))
    run.trainer(own=run.new_callbacks(), max_steps=4).fit(model, ckpt_path=run.folder / "last.ckpt", **TRUSTED)


@fit()
def resumed_in_the_middle_of_an_epoch(run: Run) -> None:
    keep = ModelCheckpoint(run.folder, "last", every_n_train_steps=2)
    run.trainer(keep, max_steps=2, enable_checkpointing=True).fit(Net(run, batches=4))
    own = run.new_callbacks()
    model = run.keep(Net(run, batches=4))
    run.trainer(own=own, max_epochs=2).fit(model, ckpt_path=run.folder / "last.ckpt", **TRUSTED)


class Ends(Net):
    """Ends its fit in the second step by an error."""

    def __init__(self, run: Run, error: BaseException | None = None) -> None:
        super().__init__(run)
        self.error = error

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss()
        if batch_idx == 1:
            if self.error is None:
                self.trainer.should_stop = True
            else:
                raise self.error
        return loss


@fit(error="RuntimeError: out of luck")
def error_in_a_step(run: Run) -> None:
    run.trainer(max_epochs=1, logger=CSVLogger(run.folder)).fit(run.keep(Ends(run, RuntimeError("out of luck"))))


@fit(error="SystemExit")
def interrupted_by_the_keyboard(run: Run) -> None:
    run.trainer(max_epochs=1).fit(run.keep(Ends(run, KeyboardInterrupt())))


@fit()
def stopped_by_a_flag_in_a_step(run: Run) -> None:
    run.trainer(max_epochs=2, min_epochs=1).fit(run.keep(Ends(run)))


@fit(expect=FIRST)
def fit_behind_one_that_failed(run: Run) -> None:
    for error in (RuntimeError("out of luck"), None):
        try:
            run.trainer(max_epochs=1).fit(run.keep(Ends(run, error)))
        except RuntimeError as caught:
            assert str(caught) == "out of luck"  # noqa: PT017


@fit(error="RuntimeError: no gradient")
def error_in_the_backward_pass(run: Run) -> None:
    class Fails(Net):
        def on_fit_start(self) -> None:
            def fail(grad: Tensor) -> None:
                if len(self.run.losses) == 2:
                    raise RuntimeError("no gradient")

            self.net[0].weight.register_hook(fail)

    run.trainer(max_epochs=1).fit(run.keep(Fails(run)))


@fit(error="RuntimeError: no step")
def error_in_the_optimizer(run: Run) -> None:
    class Fails(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            closure()
            raise RuntimeError("no step")

    class Failing(Net):
        def configure_optimizers(self) -> Any:
            return self.run.keep(Fails(self.parameters(), lr=0.1))

    run.trainer(max_epochs=1).fit(run.keep(Failing(run)))


@fit(error="RuntimeError: no validation")
def error_in_the_validation(run: Run) -> None:
    class Fails(Validated):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise RuntimeError("no validation")

    run.trainer(max_epochs=1, num_sanity_val_steps=0).fit(run.keep(Fails(run)))
