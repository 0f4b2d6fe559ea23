"""The vanishing case over time: a vanilla recurrent network on sequences of 100 time steps.

- Symptom: the loss stays at 1/6, as for predicting the mean: the number marked in the first half does not arrive.
- Idea: on its way back through time the gradient is multiplied by the same recurrent weights and by tanh's slope at
  each step. If they shrink it, it vanishes; if they enlarge it, it explodes, see ``clip_rnn.py``.
- Paper: Y. Bengio, P. Simard and P. Frasconi, Learning long-term dependencies with gradient descent is difficult, 1994,
  https://doi.org/10.1109/72.279181.
- The change: none; ``clip_rnn.py``, ``lstm.py`` and ``gru.py`` each differ from it in one marked block.
- Measured: test loss 0.174, 0.168 and 0.168 after 1,000 steps for the seeds 42, 0 and 1. At the first step the gradient
  at the cell's first call has 2e-24, 2e-21 and 1e-25 of the norm at its last; ``vanishing`` is open from there to the
  end. On the characters of a text, where each time step has a loss of its own, nothing vanishes.
  ``python examples/recurrent.py --seed 42``
- When not to use it: wherever something must be remembered for more than a few time steps.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
CLOSE = 0.04  # a sum counts as right when it is off by less: Hochreiter and Schmidhuber's criterion


class Recurrent(LightningModule):
    """Reads a sequence with one recurrent cell; a Linear maps the last state to a number, or each state to classes.

    The cell is called once a time step, so gradwatch shows the gradient at each: ``Snapshot.calls["cell"]``. A
    remedy is a subclass that overrides what it changes, between the same marks.

    Args:
        in_features: numbers at each time step.
        num_classes: classes of the next element, for sequences of integers (a text); None predicts a number at the end.
        width: units of the cell.
        lr: learning rate.
        optimizer: ``"adam"`` or ``"sgd"``.
        activation: ``"tanh"`` or ``"relu"``, in the vanilla cell.
        identity: start the vanilla cell's recurrent weights as the identity, as Le et al. do with ReLU; False leaves
            all weights as PyTorch draws them.

    Example:
        >>> Recurrent(in_features=2)(torch.zeros(3, 100, 2)).shape
        torch.Size([3])
        >>> Recurrent(in_features=65, num_classes=65)(torch.zeros(3, 100, dtype=torch.int64)).shape
        torch.Size([3, 100, 65])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int | None = None,
        width: int = 64,
        lr: float = 5e-3,
        optimizer: Literal["adam", "sgd"] = "adam",
        activation: Literal["tanh", "relu"] = "tanh",
        identity: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.cell = self.build_cell(in_features, width)
        self.head = nn.Linear(width, num_classes or 1)

    # --- what a remedy changes ---------------------------------------------------------------------------------------
    def build_cell(self, inputs: int, width: int) -> nn.Module:
        """Return the cell, a function (input, state) -> state of each time step."""
        cell = nn.RNNCell(inputs, width, nonlinearity=self.hparams.activation)
        if self.hparams.identity:
            nn.init.eye_(cell.weight_hh)
            nn.init.normal_(cell.weight_ih, std=0.03)
            nn.init.zeros_(cell.bias_hh)
            nn.init.zeros_(cell.bias_ih)
        return cell

    def configure_optimizers(self) -> Any:
        """Return the chosen optimizer, with PyTorch's defaults except for the learning rate."""
        return OPTIMIZERS[self.hparams.optimizer](self.parameters(), lr=self.hparams.lr)

    def configure_trainer(self) -> dict[str, Any]:
        """Further arguments of the Trainer."""
        return {}

    # -----------------------------------------------------------------------------------------------------------------

    def forward(self, sequences: Tensor) -> Tensor:
        """Return a number for each sequence, or logits for each time step."""
        if self.hparams.num_classes is None:
            outputs: Tensor = self.head(self.unroll(sequences)[-1]).squeeze(1)
            return outputs
        states = self.unroll(one_hot(sequences, self.hparams.num_classes).to(self.dtype))
        logits: Tensor = self.head(torch.stack(states, dim=1))
        return logits

    def unroll(self, sequences: Tensor) -> list[Tensor]:
        """Return the cell's output after each time step."""
        state, outputs = None, []
        for inputs in sequences.unbind(1):
            state = self.cell(inputs, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)  # an LSTM's state is a pair
        return outputs

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a training batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy."""
        self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy."""
        self._step(batch, "test")

    def _step(self, batch: tuple[Tensor, Tensor], part: str) -> Tensor:
        sequences, targets = batch
        outputs = self(sequences)
        if self.hparams.num_classes is None:
            loss, right = mse_loss(outputs, targets), (outputs - targets).abs() < CLOSE
        else:
            loss, right = cross_entropy(outputs.flatten(0, 1), targets.flatten()), outputs.argmax(2) == targets
        log = partial(self.log, on_step=False, on_epoch=True, batch_size=len(targets))
        log(f"{part}_loss", loss, prog_bar=True, sync_dist=True)
        log(f"{part}_accuracy", right.float().mean(), prog_bar=True, sync_dist=True)
        return loss


if __name__ == "__main__":
    from gradwatch.examples.run_sequences import main

    main(Recurrent)
