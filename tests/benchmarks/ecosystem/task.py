"""The form of a program of the ecosystem, and the fit that trains it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

Rule = Callable[[Iterable[nn.Parameter]], Optimizer]
Loss = Callable[[nn.Module, Any], Tensor]


class Learner(LightningModule):
    """A network of a library with the loss, the optimizer and the schedule of its tutorial."""

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        rule: Rule = Adam,
        schedule: Callable[[Optimizer], LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.loss, self.rule, self.schedule = network, loss, rule, schedule

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self.network, batch)

    def configure_optimizers(self) -> Any:
        optimizer = self.rule(self.parameters())
        if self.schedule is None:
            return optimizer
        return [optimizer], [{"scheduler": self.schedule(optimizer), "interval": "step"}]


@dataclass
class Task:
    """A training that is ready to start.

    Attributes:
        module: the module to fit; a :class:`Learner` unless the library or several optimizers ask for another.
        batches: what to feed it.
        score: measures the module on held-out data.
        steps: number of batches to train on.
        options: more arguments of the Trainer, such as ``gradient_clip_val``.
        fit: the library's way to train with some callbacks; None takes a Trainer.
    """

    module: LightningModule
    batches: Any
    score: Callable[[], float]
    steps: int = 150
    options: dict[str, Any] = field(default_factory=dict)
    fit: Callable[[list[Callback]], None] | None = None

    @property
    def network(self) -> Any:
        return self.module.network

    def train(self, *callbacks: Callback) -> None:
        """Train, with callbacks."""
        if self.fit is not None:
            self.fit(list(callbacks))
            return
        trainer = Trainer(
            max_steps=self.steps,
            max_epochs=-1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
            **self.options,
        )
        trainer.fit(self.module, self.batches)

    def measured(self) -> float:
        """Return the score, measured in evaluation mode and without a trace in the random numbers."""
        was_training, state = self.module.training, torch.get_rng_state()
        self.module.eval()
        torch.manual_seed(0)
        with torch.no_grad():
            score = float(self.score())
        torch.set_rng_state(state)
        self.module.train(was_training)
        return score


@dataclass(frozen=True)
class Program:
    """A sound program: a library's model, trained as its documentation trains it.

    Attributes:
        needs: the package that has to be there, as it is imported.
        source: the tutorial or example that it follows.
        make: builds the task.
        measure: the name of its score; where it is a loss or a distance, less is better.
        learned: the score from which on it has learned.
    """

    needs: str
    source: str
    make: Callable[[], Task]
    measure: str
    learned: float

    @property
    def is_there(self) -> bool:
        return find_spec(self.needs) is not None

    @property
    def sign(self) -> int:
        """Return 1 where more of the score is better, else -1."""
        return -1 if self.measure in ("loss", "distance") else 1

    def has_learned(self, score: float) -> bool:
        return self.sign * (score - self.learned) >= 0

    def built(self, seed: int) -> Task:
        quiet()
        seed_everything(seed, verbose=False)
        return self.make()


@dataclass(frozen=True)
class Fault:
    """A sound program with one thing changed for the worse.

    Attributes:
        of: name of the sound program.
        source: where such a fault is described.
        change: changes the task before it starts.
        causes: the names that an expert would accept: those of gradwatch where it has one, else free words.
    """

    of: str
    source: str
    change: Callable[[Task], None]
    causes: tuple[str, ...]


def quiet() -> None:
    """Silence the libraries."""
    warnings.simplefilter("ignore")
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning", "transformers", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)


def replaced(network: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module]) -> None:
    """Put another module in the place of each of a kind."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is kind:
                setattr(parent, name, make(child))


Programs = Mapping[str, Program]
