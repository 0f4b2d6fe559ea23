"""ReLU with He initialization: the first thing to try when a deep stack of Sigmoid or Tanh layers does not learn.

- Symptom: the gradient shrinks layer by layer towards the input, as in ``baseline.py``.
- Idea: a ReLU that is on has slope 1. Half of them are on, and weights of variance 2 / inputs make up for the rest, so
  that activations and gradients keep their size through all layers.
- Paper: K. He, X. Zhang, S. Ren and J. Sun, Delving Deep into Rectifiers, 2015, https://arxiv.org/abs/1502.01852. There
  the last layer is drawn this way too; here it keeps PyTorch's initialization.
- The change: ``build_block``.
- Measured: test accuracy 0.92, 0.90 and 0.92 after 300 steps on digits, for the seeds 42, 0 and 1 (baseline: 0.10); at
  the first step the gradient norms of all hidden Linears' weights are between 0.19 and 0.33 (seed 42).
  ``python examples/activation_relu.py --max-epochs 100 --seed 42``
- When not to use it: in narrow and very deep networks, where random ReLU gradients still vary exponentially with depth
  (B. Hanin, Which neural net architectures give rise to exploding and vanishing gradients?, 2018,
  https://arxiv.org/abs/1801.03744); with large learning rates, which can switch units off for good.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from gradwatch.examples.baseline import Baseline


class HeReLU(Baseline):
    """The baseline with ReLU and He initialization; takes the same arguments."""

    # --- the remedy --------------------------------------------------------------------------------------------------
    def build_block(self, inputs: int, outputs: int) -> nn.Module:
        """One hidden layer with weights drawn from N(0, 2 / inputs) and no bias at first."""
        linear = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        return nn.Sequential(OrderedDict(linear=linear, activation=nn.ReLU()))

    # -----------------------------------------------------------------------------------------------------------------


if __name__ == "__main__":
    from gradwatch.examples.run import main

    main(HeReLU)
