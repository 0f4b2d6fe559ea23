"""A small training for injected faults: it depends on nothing but the number of its batch and its process."""

from __future__ import annotations

import inspect
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from zoo_evidence import hooks_on

from gradwatch import GradientMonitor

# Lightning 2.6 asks whether a checkpoint is trusted; earlier ones trust it.
TAKES_TRUST = "weights_only" in inspect.signature(Trainer.fit).parameters
TRUSTED: dict[str, Any] = {"weights_only": False} if TAKES_TRUST else {}
STEPS = 12
WIDE = 9  # the width of the first layer's output, and of no other tensor


class Learner(LightningModule):
    """Two layers that learn a sine."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, WIDE), nn.Tanh(), nn.Linear(WIDE, 1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        number = int(batch[0]) * self.trainer.world_size + self.trainer.global_rank
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
        return (self.net(x) - x.sum(1, keepdim=True).sin()).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.5)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(range(STEPS * self.trainer.world_size))


@dataclass
class Outcome:
    """The end of a fit."""

    weights: dict[str, Tensor]
    hooks: list[str]
    said: list[str] = field(default_factory=list)


def trainer(folder: Path, *callbacks: Callback | None, **settings: Any) -> Trainer:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "default_root_dir": folder, "log_every_n_steps": 1}
    callbacks = [callback for callback in callbacks if callback is not None]
    return Trainer(callbacks=callbacks, **{**defaults, **quiet, **settings})


def trained(
    folder: Path,
    monitor: GradientMonitor | None = None,
    *callbacks: Callback,
    filtered: Literal["always", "error"] = "always",
    **settings: Any,
) -> Outcome:
    """Train, and return the weights and what gradwatch warned of; what it warns of may be an error."""
    model = Learner()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings(filtered, "gradwatch")
        trainer(folder, monitor, *callbacks, **settings).fit(model)
    said = [str(warning.message) for warning in caught if "gradwatch" in str(warning.message)]
    return outcome_of(model, said)


def outcome_of(model: nn.Module, said: list[str] | None = None) -> Outcome:
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return Outcome(weights, list(hooks_on(model)), said or [])


def assert_same_end(bare: Outcome, watched: Outcome) -> None:
    assert bare.weights.keys() == watched.weights.keys()
    assert all(torch.equal(value, watched.weights[name]) for name, value in bare.weights.items())
    assert watched.hooks == bare.hooks


def in_one_line(text: str) -> str:
    """Return a printed text without the line breaks that a narrow terminal needs."""
    return re.sub(r"\s+", " ", text)
