"""Small models and short fits that the callbacks' tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

STEPS_AN_EPOCH = 10
torch.set_num_threads(1)  # such small fits are 20 times slower when the cores are busy with something else


class Regression(LightningModule):
    """A small network on data that only the count of batches so far and the rank decide, not a loader."""

    def __init__(
        self,
        net: Callable[[], nn.Module] | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
        bad_batches: tuple[int, ...] = (),
        **settings: Any,
    ) -> None:
        super().__init__()
        self.make_net, self.make_optimizer, self.settings = net or small_net, optimizer, {"lr": 0.02, **settings}
        self.bad_batches = bad_batches
        self.net = self.make_net()
        self.register_buffer("seen", torch.tensor(0))

    def batch(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index * self.trainer.world_size + self.trainer.global_rank)
        x = torch.randn(8, 4, generator=generator) * (10.0 if index % 7 == 3 else 1.0)
        return x * float("nan") if index in self.bad_batches else x

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        x = self.batch(int(self.seen))
        self.seen += 1
        loss = (self.net(x).squeeze(-1) - x.sum(1).sin()).square().mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters(), **self.settings)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.arange(STEPS_AN_EPOCH * self.trainer.world_size), batch_size=1)


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)
    )


def fit(
    callbacks: Any = (),
    model: LightningModule | None = None,
    max_steps: int = 25,
    ckpt_path: Path | str | None = None,
    **kwargs: Any,
) -> LightningModule:
    """Train from the same initial weights each time; the Trainer is the result's ``trainer``."""
    seed_everything(0, verbose=False)
    model = Regression() if model is None else model
    seed_everything(0, verbose=False)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    trainer(callbacks, max_steps, **kwargs).fit(model, ckpt_path=ckpt_path)
    return model


def fit_until(step: int, folder: Path, callbacks: Any = (), model: LightningModule | None = None) -> Path:
    """Train to a step and return the checkpoint made there."""
    keep = ModelCheckpoint(folder, f"{step}", every_n_train_steps=step, save_top_k=-1)
    callbacks = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
    fit([*callbacks, keep], model, max_steps=step, enable_checkpointing=True)
    return folder / f"{step}.ckpt"


def trainer(callbacks: Any = (), max_steps: int = 25, **kwargs: Any) -> Trainer:
    callbacks = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    settings = {"accelerator": "cpu", "devices": 1, "log_every_n_steps": 5} | quiet | kwargs
    return Trainer(callbacks=callbacks, max_steps=max_steps, **settings)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


def close_weights(a: nn.Module, b: nn.Module, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    for (name, x), y in zip(weights(a).items(), weights(b).values(), strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")
