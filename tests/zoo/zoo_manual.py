"""Trainings that decide when gradients are made and when an optimizer steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from zoo import WIDTH, Expect, Net, Run, fit, has_columns, loop, mean_square, mlp, rows

FIRST: Expect = has_columns("grad_norm", "grad_output_norm", "output_rms", layer="0")


class Manual(Net):
    """Takes all steps by hand."""

    def __init__(self, run: Run, net: nn.Module | None = None, batches: int = 4) -> None:
        super().__init__(run, net, batches)
        self.automatic_optimization = False

    def step(self, optimizer: Any) -> None:
        optimizer.zero_grad()
        self.manual_backward(self.loss())
        optimizer.step()


def trains(run: Run, model: Net, **settings: Any) -> None:
    run.trainer(**{"max_epochs": 1, **settings}).fit(run.keep(model))


@fit(expect=FIRST)
def manual_steps(run: Run) -> None:
    class Plain(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.step(self.optimizers())

    trains(run, Plain(run))


@fit()
def manual_without_any_backward_pass(run: Run) -> None:
    class Idle(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.loss()

    trains(run, Idle(run))


@fit()
def manual_with_a_backward_pass_in_every_other_batch(run: Run) -> None:
    class Half(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            if batch_idx % 2:
                self.step(self.optimizers())
            else:
                self.loss()

    trains(run, Half(run))


@fit()
def manual_steps_without_gradients(run: Run) -> None:
    class Empty(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.loss()
            self.optimizers().step()

    trains(run, Empty(run))


@fit()
def manual_with_the_bare_optimizer(run: Run) -> None:
    """``use_pl_optimizer=False``: Lightning does not see the step, and calls no hook."""

    class Unseen(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.step(self.optimizers(use_pl_optimizer=False))

    trains(run, Unseen(run))


@fit()
def manual_accumulation(run: Run) -> None:
    class Accumulates(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.manual_backward(self.loss() / 2)
            if batch_idx % 2:
                self.optimizers().step()
                self.optimizers().zero_grad()

    trains(run, Accumulates(run))


@fit()
def manual_with_several_steps_a_batch(run: Run) -> None:
    class Several(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            for _ in range(3):
                self.step(self.optimizers())

    trains(run, Several(run))


@fit()
def manual_steps_at_the_epochs_end(run: Run) -> None:
    class Late(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.manual_backward(self.loss())

        def on_train_epoch_end(self) -> None:
            self.optimizers().step()
            self.optimizers().zero_grad()

    trains(run, Late(run), max_epochs=2)


@fit()
def manual_closure(run: Run) -> None:
    class Closes(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = self.loss()
                self.manual_backward(loss)
                return loss

            optimizer.step(closure)

    trains(run, Closes(run))


class ByLbfgs(Net):
    def configure_optimizers(self) -> Any:
        return self.run.keep(torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3))


@fit()
def lbfgs(run: Run) -> None:
    trains(run, ByLbfgs(run))


@fit()
def lbfgs_by_hand(run: Run) -> None:
    class Closes(ByLbfgs):
        def __init__(self, run: Run) -> None:
            super().__init__(run)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer, x = self.optimizers(), rows()

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = self.run.note(mean_square(self, x), x)
                self.manual_backward(loss)
                return loss

            optimizer.step(closure)

    trains(run, Closes(run))


@loop()
def lbfgs_in_a_loop(run: Run) -> None:
    model = run.keep(mlp())
    optimizer = run.keep(torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3))
    with run.watch(model) as watcher:
        for _ in range(3):
            x = rows()

            def closure(x: Tensor = x) -> Tensor:
                optimizer.zero_grad()
                loss = run.note(mean_square(model, x), x)
                loss.backward()
                return loss

            watcher.step(optimizer, closure=closure)


class Gan(Manual):
    """A generator and a discriminator, each with its optimizer."""

    def __init__(self, run: Run) -> None:
        super().__init__(run, nn.ModuleDict({"g": nn.Linear(WIDTH, WIDTH), "d": mlp()}))

    def configure_optimizers(self) -> Any:
        return [self.run.keep(torch.optim.Adam(self.net[name].parameters(), lr=0.01)) for name in "gd"], []

    def turn(self, index: int) -> None:
        optimizer, x = self.optimizers()[index], rows()
        self.toggle_optimizer(optimizer)
        fake = self.net["d"](self.net["g"](x)).mean()
        loss = self.run.note(-fake if index == 0 else fake - self.net["d"](x).mean() + self.penalty(x), x)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.untoggle_optimizer(optimizer)

    def penalty(self, x: Tensor) -> Tensor:
        """The gradient penalty of Wasserstein GANs."""
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.net["d"](x).sum(), x, create_graph=True)
        return (slope.norm(dim=1) - 1).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.turn(0), self.turn(1)


@fit()
def gan_with_a_gradient_penalty(run: Run) -> None:
    trains(run, Gan(run))


@fit()
def gan_that_takes_turns(run: Run) -> None:
    class Turns(Gan):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.turn(batch_idx % 2)

    trains(run, Turns(run))


@fit()
def optimizers_that_share_parameters(run: Run) -> None:
    class Shared(Manual):
        def configure_optimizers(self) -> Any:
            kinds = (torch.optim.SGD, torch.optim.Adam)
            return [self.run.keep(kind(self.parameters(), lr=0.01)) for kind in kinds], []

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.manual_backward(self.loss())
            for optimizer in self.optimizers():
                optimizer.step()
            self.optimizers()[0].zero_grad()

    trains(run, Shared(run))


class InBackward(Manual):
    """Each parameter has an optimizer that steps as soon as its gradient is there."""

    def configure_optimizers(self) -> Any:
        return None

    def on_fit_start(self) -> None:
        optimizers = {param: torch.optim.SGD([param], lr=0.05) for param in self.parameters()}

        def step(param: Tensor) -> None:
            optimizers[param].step()
            optimizers[param].zero_grad()

        for param in self.parameters():
            param.register_post_accumulate_grad_hook(step)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(self.loss())


@fit()
def optimizers_that_step_in_the_backward_pass(run: Run) -> None:
    trains(run, InBackward(run))


@fit()
def optimizer_with_two_states_a_batch(run: Run) -> None:
    """Sharpness-aware minimization: a step up, a second gradient, a step down from where it began."""

    class Sam(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss())
            with torch.no_grad():
                moves = [0.05 * param.grad for param in self.parameters()]
                for param, move in zip(self.parameters(), moves, strict=True):
                    param.add_(move)
            self.step(optimizer)
            with torch.no_grad():
                for param, move in zip(self.parameters(), moves, strict=True):
                    param.sub_(move)

    trains(run, Sam(run))


@fit()
def step_that_returns_nothing_now_and_then(run: Run) -> None:
    class Skips(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss()
            return None if batch_idx in (0, 2) else loss

    trains(run, Skips(run, batches=5))


@fit()
def step_that_returns_nothing_ever(run: Run) -> None:
    class Skips(Net):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.loss()

    trains(run, Skips(run))


@fit(expect=FIRST)
def step_that_returns_a_mapping(run: Run) -> None:
    class Returns(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": self.loss(), "more": [object()], "odd": {"loss": "none"}}

    trains(run, Returns(run))


@fit(expect=FIRST)
def module_that_edits_its_gradients(run: Run) -> None:
    class Edits(Net):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            for param in self.parameters():
                param.grad.mul_(0.5)
            self.net[0].weight.grad = None

        def on_after_backward(self) -> None:
            self.net[4].weight.grad = self.net[4].weight.grad.t().contiguous().t()

    trains(run, Edits(run))


@fit()
def module_that_drops_its_gradients(run: Run) -> None:
    class Drops(Net):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.zero_grad()

    trains(run, Drops(run))


@fit()
def module_that_leaves_out_steps(run: Run) -> None:
    class LeavesOut(Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:
            if batch_idx % 2:
                optimizer.step(closure=closure)
            else:
                closure()

    trains(run, LeavesOut(run, batches=5))


@fit()
def module_with_its_own_backward(run: Run) -> None:
    class Twice(Net):
        def backward(self, loss: Tensor) -> None:
            loss.backward(retain_graph=True)
            loss.backward()

    trains(run, Twice(run))


@fit()
def module_without_an_optimizer(run: Run) -> None:
    class Without(Net):
        def configure_optimizers(self) -> None:
            return None

    trains(run, Without(run))


@fit(expect=FIRST)
def several_optimizers_over_parts(run: Run) -> None:
    class Parts(Manual):
        def configure_optimizers(self) -> Any:
            parts = (self.net[0], self.net[2], self.net[4])
            return [self.run.keep(torch.optim.SGD(part.parameters(), lr=0.05)) for part in parts], []

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.manual_backward(self.loss())
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    trains(run, Parts(run))


@fit()
def batches_taken_by_hand(run: Run) -> None:
    """A ``training_step`` that is given the iterator and takes as many batches as it wants."""

    class Takes(Net):
        def training_step(self, dataloader_iter: Any) -> Tensor:
            next(dataloader_iter)
            return self.loss()

        def train_dataloader(self) -> Any:
            return DataLoader(range(8), batch_size=2)

    trains(run, Takes(run), max_steps=3)
