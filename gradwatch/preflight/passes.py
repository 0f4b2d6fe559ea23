"""One forward and backward pass of a copy, in a plain loop or by a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from gradwatch.preflight.believed import believed
from gradwatch.preflight.recorder import Recorder
from gradwatch.runs import Run, train_in_a_loop, train_with_a_trainer
from gradwatch.runs.aside import copied

Loss = Callable[[Any, Any], Tensor]


def one_pass(module: nn.Module, batch: Any, loss: Loss | None, zeros: Sequence[str] = ()) -> tuple[Run, Recorder]:
    """Pass a batch through a copy and back.

    Args:
        module: stays as it is.
        batch: what a training step gets.
        loss: of a plain module; None for a LightningModule.
        zeros: parameters that are all zero, and are moved a little first, as a step would.

    Raises:
        TypeError: when a plain module comes without a loss, or a module can't be copied.

    Example:
        >>> run, recorder = one_pass(nn.Linear(2, 1), (torch.ones(4, 2), torch.zeros(4, 1)), nn.MSELoss())
        >>> run.steps, recorder.first[1].shape
        (1, torch.Size([4, 2]))
    """
    moved, recorder = _moved(module, zeros) if zeros else module, Recorder()
    if loss is not None:
        run = train_in_a_loop(moved, batch, loss, steps=1, observer=recorder)
        return believed(run, recorder), recorder
    if not isinstance(moved, LightningModule):
        raise TypeError(
            f"{type(module).__name__} is no lightning.pytorch.LightningModule; expected one, or a loss function: "
            f"gradwatch.diagnose(module, (inputs, targets), loss=torch.nn.functional.cross_entropy)"
        )
    run = train_with_a_trainer(moved, batch, steps=1, observer=recorder)
    return believed(run, recorder), recorder


def _moved(module: nn.Module, names: Sequence[str]) -> nn.Module:
    moved, generator = copied(module), torch.Generator().manual_seed(0)
    for name, param in moved.named_parameters():
        if name in names:
            # A tenth of what keeps a signal's size: enough to pass gradients on, too little to carry the network.
            size = 0.1 / max(param[0].numel(), 1) ** 0.5 if param.dim() > 1 else 0.1
            noise = torch.randn(param.shape, generator=generator) * size
            param.data.copy_(noise.to(param))
    return moved
