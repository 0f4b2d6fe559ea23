"""Residual blocks: each hidden layer is added to its input.

- Symptom: the gradient shrinks layer by layer towards the input, as in ``baseline.py``.
- Idea: a block passes the gradient back unchanged, plus the part through its layer.
- Paper: K. He, X. Zhang, S. Ren and J. Sun, Identity mappings in deep residual networks, 2016,
  https://arxiv.org/abs/1603.05027.
- The change: ``build_block``; the first block, whose input has another size, has no sum.
- Measured: test accuracy 0.8113 on Fashion-MNIST (baseline: 0.1000); 0.100 ± 0.000 on digits, mean and deviation of
  three seeds (baseline: 0.102 ± 0.002). At the first step the first Linear's gradient has 0.04 times the norm of the
  head's (baseline: 4e-6).
  ``python examples/skip_residual.py --dataset fashion-mnist --data-dir DIR --model.init_std 0.05``
- When not to use it: with an activation that is never negative, as here, the sum grows from block to block; put the
  normalization inside the block (``combination.py``).
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from gradwatch.examples.baseline import Baseline


class ResidualBlock(nn.Sequential):
    """A Sequential whose input is added to its output."""

    def forward(self, x: Tensor) -> Tensor:
        """X + f(x)."""
        return x + super().forward(x)


class Residual(Baseline):
    """The baseline with residual blocks; takes the same arguments."""

    # --- the remedy --------------------------------------------------------------------------------------------------
    def build_block(self, inputs: int, outputs: int) -> nn.Module:
        """One hidden layer, added to its input where the sizes are the same."""
        block = ResidualBlock if inputs == outputs else nn.Sequential
        return block(OrderedDict(linear=nn.Linear(inputs, outputs), activation=nn.Sigmoid()))

    # -----------------------------------------------------------------------------------------------------------------


if __name__ == "__main__":
    from gradwatch.examples.run import main

    main(Residual)
