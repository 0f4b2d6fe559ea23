"""The dying ReLU: units that are off for every image and get no gradient to switch them on again.

- Symptom: gradwatch reports ``dead``; the gradient of whole layers is exactly zero, and the loss does not change.
- Idea: an activation with some slope below 0 passes a gradient to units that are off. The biases of -0.5 stand for what
  one step at too large a learning rate leaves behind.
- Paper: L. Lu, Y. Shin, Y. Su and G. Karniadakis, Dying ReLU and initialization, 2019,
  https://arxiv.org/abs/1903.06733.
- The change: ``build_block`` and ``initialize``; ``--model.activation elu`` is the remedy.
- Measured: test accuracy 0.1000 on Fashion-MNIST with ReLU and 0.8756 with ELU; on digits, mean and deviation of three
  seeds, ReLU 0.103 ± 0.000, LeakyReLU 0.101 ± 0.002, GELU 0.101 ± 0.002, ELU 0.933 ± 0.003, SELU 0.956 ± 0.012.
  ``python examples/activation_dying_relu.py --dataset fashion-mnist --data-dir DIR --model.activation elu``
- When not to use it: GELU is nearly flat below 0 too, and LeakyReLU's slope of 0.01 there may be too little, as
  measured here.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

from torch import nn

from gradwatch.examples.baseline import Baseline

Activation = Literal["relu", "leaky_relu", "gelu", "elu", "selu"]

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "gelu": nn.GELU, "elu": nn.ELU, "selu": nn.SELU}


class DyingReLU(Baseline):
    """The baseline with ReLU, He initialization and biases of ``bias``, or another activation in the same place."""

    # --- the remedy --------------------------------------------------------------------------------------------------
    def __init__(self, *args: Any, activation: Activation = "relu", bias: float = -0.5, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def build_block(self, inputs: int, outputs: int) -> nn.Module:
        """One hidden layer."""
        activation = ACTIVATIONS[self.hparams.activation]()
        return nn.Sequential(OrderedDict(linear=nn.Linear(inputs, outputs), activation=activation))

    def initialize(self, linear: nn.Linear) -> None:
        """He's weights, and biases that keep most units off."""
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.constant_(linear.bias, self.hparams.bias)

    # -----------------------------------------------------------------------------------------------------------------


if __name__ == "__main__":
    from gradwatch.examples.run import main

    main(DyingReLU)
