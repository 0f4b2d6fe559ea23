"""Trainings with random orders of actions have the same result watched and unwatched."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from zoo import UNCALLED, WIDTH, Net, TrainingCase, mean_square, rows, sgd
from zoo_run import Run, check


class Actor:
    """Does one thing after the other with a model.

    Args:
        run: takes the losses.
        model: is trained.
        optimizer: has its parameters.
        watcher: reads and steps; a Bare one, or none, steps alone.
    """

    def __init__(self, run: Run, model: Any, optimizer: Any, watcher: Any = None) -> None:
        self.run, self.model, self.optimizer, self.watcher = run, model, optimizer, watcher
        self.losses: list[Tensor] = []

    def forward(self) -> None:
        x = rows()
        self.losses.append(self.run.note(mean_square(self.model, x), x))

    def backward(self) -> None:
        if self.losses and self.losses[-1].requires_grad:
            self.losses.pop().backward()

    def backward_twice(self) -> None:
        if self.losses and self.losses[0].requires_grad:
            self.losses[0].backward(retain_graph=True)

    def step(self) -> None:
        loss = self.losses[-1] if self.losses else None
        self.optimizer.step() if self.watcher is None else self.watcher.step(self.optimizer, loss)

    def step_unseen(self) -> None:
        getattr(self.optimizer, "optimizer", self.optimizer).step()

    def read(self) -> None:
        if self.watcher is not None:
            self.watcher.read(self.optimizer)

    def begin(self) -> None:
        if self.watcher is not None:
            self.watcher.begin()

    def end(self) -> None:
        if self.watcher is not None:
            self.watcher.end()

    def clip(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)

    def drop_gradients(self) -> None:
        self.optimizer.zero_grad()

    def spoil_a_gradient(self) -> None:
        for param in self.model[0].parameters():
            param.grad = torch.full_like(param, float("nan"))

    def freeze_or_thaw(self) -> None:
        self.model[2].requires_grad_(not self.model[2].weight.requires_grad)

    def infer(self) -> None:
        self.model.eval()
        with torch.no_grad():
            self.model(rows())
        self.model.train()

    def infer_in_a_thread(self) -> None:
        thread = threading.Thread(target=self.infer)
        thread.start()
        thread.join()

    def copy(self) -> None:
        copy.deepcopy(self.model)(rows()).sum().backward()

    def pickle(self) -> None:
        pickle.loads(pickle.dumps(self.model))(rows())

    def reload(self) -> None:
        self.model.load_state_dict({name: value.clone() for name, value in self.model.state_dict().items()})

    def exchange_a_layer(self) -> None:
        self.model[4] = nn.Linear(8, 2)
        self.optimizer.param_groups[0]["params"] = [p for p in self.model.parameters() if p.requires_grad]

    def exchange_a_layer_for_a_copy(self) -> None:
        self.model[2] = copy.deepcopy(self.model[2])

    def compute_without_modules(self) -> None:
        params = {name: param * 2 for name, param in self.model.named_parameters()}
        self.losses.append(self.run.note(functional_call(self.model, params, (rows(),)).square().mean()))

    def map(self) -> None:
        torch.vmap(self.model[2:], randomness="different")(torch.randn(3, 2, 8))

    def fail(self) -> None:
        try:
            self.model(torch.randn(2, WIDTH + 1))
        except RuntimeError:
            return
        raise AssertionError("no error")

    def penalize(self) -> None:
        x = rows().requires_grad_()
        (slope,) = torch.autograd.grad(self.model(x).sum(), x, create_graph=True)
        self.losses.append(self.run.note(slope.square().mean(), x))

    def forget(self) -> None:
        self.losses.clear()


ACTIONS = [name for name, value in vars(Actor).items() if callable(value) and not name.startswith("_")]
USUAL = ["drop_gradients", "forward", "backward", "step"]
plans = st.lists(st.sampled_from([*ACTIONS, *USUAL]), max_size=12).map(lambda extra: [*USUAL, *extra, *USUAL])


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Dropout(0.1), nn.Linear(8, 2))


class Acts(Net):
    """Does one thing after the other in each batch."""

    def __init__(self, run: Run, plan: list[str]) -> None:
        super().__init__(run, network(), batches=2)
        self.automatic_optimization, self.plan, self.actor = False, plan, None

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.actor = self.actor or [Actor(self.run, self.net, self.optimizers())]
        for action in self.plan:
            getattr(self.actor[0], action)()

    def on_fit_end(self) -> None:
        self.actor = None


def in_a_loop(run: Run, plan: list[str]) -> None:
    model = run.keep(network())
    optimizer = run.keep(sgd(model))
    with run.watch(model) as watcher:
        actor = Actor(run, model, optimizer, watcher)
        for action in [*plan, *plan]:
            getattr(actor, action)()


QUIET = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=120, **QUIET)
@given(plan=plans)
def test_loops_of_random_actions(plan: list[str]) -> None:
    gc.freeze()
    case = TrainingCase(name="random", train=lambda run: in_a_loop(run, plan), says=UNCALLED)
    check(case.train, case, Path("random"), "watched", "seldom", may_fail=True)


@settings(max_examples=60, **QUIET)
@given(plan=plans)
def test_fits_of_random_actions(plan: list[str]) -> None:
    gc.freeze()

    def train(run: Run) -> None:
        run.trainer(max_epochs=2).fit(run.keep(Acts(run, plan)))

    case = TrainingCase(name="random", train=train, says=UNCALLED)
    check(case.train, case, Path("random"), "watched", "transformed", may_fail=True)
