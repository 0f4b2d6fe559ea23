"""The remedies that work, together: residual blocks, BatchNorm, GELU, AdamW with warm-up and cosine.

- Symptom: the gradient shrinks layer by layer towards the input, as in ``baseline.py``.
- Idea: the sum keeps the gradient's size over depth, the normalization that of the activations, Adam the step's;
  dropout and the cosine are for the last points of accuracy.
- Paper: K. He et al., Identity mappings in deep residual networks, 2016, https://arxiv.org/abs/1603.05027; D. Hendrycks
  and K. Gimpel, Gaussian Error Linear Units, 2016, https://arxiv.org/abs/1606.08415; I. Loshchilov and F. Hutter,
  Decoupled weight decay regularization, 2019, https://arxiv.org/abs/1711.05101.
- The change: ``build_block``, ``initialize`` and ``configure_optimizers``.
- Measured: test accuracy 0.8975 on Fashion-MNIST (baseline: 0.1000); 0.980 ± 0.004 on digits, mean and deviation of
  three seeds (baseline: 0.102 ± 0.002). At the first step the first Linear's gradient has 1 times the norm of the
  head's (baseline: 4e-6).
  ``python examples/combination.py --dataset fashion-mnist --data-dir DIR``
- When not to use it: for a network of a few layers, where each part alone is enough.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from gradwatch.examples.baseline import Baseline
from gradwatch.examples.skip_residual import ResidualBlock


class Combination(Baseline):
    """Residual blocks of Linear, BatchNorm and GELU, with dropout, trained by AdamW."""

    # --- the remedy --------------------------------------------------------------------------------------------------
    def __init__(
        self, *args: Any, lr: float = 2e-3, dropout: float = 0.1, weight_decay: float = 1e-2, **kwargs: Any
    ) -> None:
        super().__init__(*args, lr=lr, **kwargs)

    def build_block(self, inputs: int, outputs: int) -> nn.Module:
        """One hidden layer, added to its input where the sizes are the same."""
        linear, norm = nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs)
        block = ResidualBlock if inputs == outputs else nn.Sequential
        dropout = nn.Dropout(self.hparams.dropout)
        return block(OrderedDict(linear=linear, norm=norm, activation=nn.GELU(), dropout=dropout))

    def initialize(self, linear: nn.Linear) -> None:
        """He's weights, biases of 0."""
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)

    def configure_optimizers(self) -> Any:
        """AdamW, with a learning rate that rises for a while and then falls to 0."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=self.hparams.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams.lr, steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # -----------------------------------------------------------------------------------------------------------------


if __name__ == "__main__":
    from gradwatch.examples.run import main

    main(Combination)
