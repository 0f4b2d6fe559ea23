"""Fits that end early: by errors at all places, by interrupts, or with nothing to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback
from torch.utils.data import DataLoader
from zoo import Net, Run, fit, rows
from zoo_fits import Validated


class Fails(Callback):
    """Raises an error at one of the hooks, at its second call if there is one."""

    def __init__(self, where: str, error: BaseException, call: int = 0) -> None:
        setattr(self, where, self._fail)
        self.error, self.left = error, call

    def _fail(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error


HOOKS = {
    "setup": 0,
    "on_fit_start": 0,
    "on_sanity_check_start": 0,
    "on_train_start": 0,
    "on_train_epoch_start": 0,
    "on_train_batch_start": 1,
    "on_before_zero_grad": 1,
    "on_before_backward": 1,
    "on_after_backward": 1,
    "on_before_optimizer_step": 1,
    "on_train_batch_end": 1,
    "on_validation_start": 1,
    "on_validation_batch_start": 3,
    "on_validation_end": 1,
    "on_train_epoch_end": 0,
    "on_train_end": 0,
    "on_fit_end": 0,
    "teardown": 0,
}


def fails_at(where: str, call: int) -> None:
    def train(run: Run) -> None:
        run.trainer(Fails(where, RuntimeError("out of luck"), call), max_epochs=1).fit(run.keep(Validated(run)))

    train.__name__ = f"error_at_{where}"
    fit(error="RuntimeError: out of luck", idle=True)(train)


for where, call in HOOKS.items():
    fails_at(where, call)


def ends_by(name: str, where: str, error: Callable[[], BaseException], expected: str) -> None:
    def train(run: Run) -> None:
        run.trainer(Fails(where, error(), 1), max_epochs=1).fit(run.keep(Validated(run)))

    train.__name__ = name
    fit(error=expected)(train)


ends_by("interrupted_before_the_step", "on_before_optimizer_step", KeyboardInterrupt, "SystemExit")
ends_by("interrupted_behind_a_batch", "on_train_batch_end", KeyboardInterrupt, "SystemExit")
ends_by("interrupted_in_the_validation", "on_validation_start", KeyboardInterrupt, "SystemExit")
ends_by("ended_by_an_exit", "on_train_batch_end", lambda: SystemExit(3), "SystemExit: 3")
ends_by("ended_by_the_end_of_an_iteration", "on_after_backward", lambda: StopIteration("no more"), "")
ends_by("out_of_memory", "on_before_backward", lambda: MemoryError("no memory"), "MemoryError: no memory")


@fit(error="ValueError: no optimizer")
def error_while_optimizers_are_made(run: Run) -> None:
    class Without(Net):
        def configure_optimizers(self) -> Any:
            raise ValueError("no optimizer")

    run.trainer(max_epochs=1).fit(run.keep(Without(run)))


@fit(error="ValueError: no data")
def error_while_data_are_loaded(run: Run) -> None:
    class Stops(Net):
        def train_dataloader(self) -> Any:
            def batches() -> Any:
                yield rows()
                raise ValueError("no data")

            return batches()

    run.trainer(max_epochs=1, limit_train_batches=4).fit(run.keep(Stops(run)))


@fit(error="RuntimeError: out of luck")
def second_fit_that_fails(run: Run) -> None:
    model = run.keep(Net(run))
    run.trainer(max_epochs=1).fit(model)
    run.trainer(Fails("on_train_batch_start", RuntimeError("out of luck"), 1), max_epochs=1).fit(model)


@fit(idle=True)
def fit_without_an_epoch(run: Run) -> None:
    run.trainer(max_epochs=0).fit(run.keep(Net(run)))


@fit(idle=True)
def fit_without_a_step(run: Run) -> None:
    run.trainer(max_steps=0).fit(run.keep(Net(run)))


@fit(idle=True)
def fit_without_a_batch(run: Run) -> None:
    run.trainer(max_epochs=1).fit(run.keep(Net(run, batches=0)))


@fit(idle=True)
def only_validated(run: Run) -> None:
    run.trainer().validate(run.keep(Validated(run)), verbose=False)


@fit(idle=True)
def only_tested_and_predicted_with(run: Run) -> None:
    model, trainer = run.keep(Validated(run)), run.trainer()
    trainer.test(model, verbose=False)
    trainer.predict(model)


@fit()
def loaders_with_a_process_of_their_own(run: Run) -> None:
    class Loads(Net):
        def train_dataloader(self) -> Any:
            return DataLoader(range(3), num_workers=1)

    run.trainer(max_epochs=1).fit(run.keep(Loads(run)))
