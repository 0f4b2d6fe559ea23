"""Two skip connections: h1 is added after h3, and h4 after h7.

- Symptom: the gradient shrinks layer by layer towards the input, as in ``baseline.py``.
- Idea: along a sum the gradient flows back unchanged, past the layers in between.
- Paper: K. He, X. Zhang, S. Ren and J. Sun, Deep residual learning for image recognition, 2015,
  https://arxiv.org/abs/1512.03385; for layers that are not next to each other, R. Srivastava, K. Greff and J.
  Schmidhuber, Highway networks, 2015, https://arxiv.org/abs/1505.00387.
- The change: ``build_network``.
- Measured: test accuracy 0.6584 on Fashion-MNIST (baseline: 0.1000); 0.101 ± 0.003 on digits, mean and deviation of
  three seeds (baseline: 0.102 ± 0.002). At the first step the first Linear's gradient has 0.03 times the norm of the
  head's (baseline: 4e-6).
  ``python examples/skip_connection.py --dataset fashion-mnist --data-dir DIR --model.init_std 0.05``
- When not to use it: as a cure for Sigmoid in deeper networks: between the sums the gradient still vanishes.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from gradwatch.examples.baseline import Baseline

SKIPS = {"block3": "block1", "block7": "block4"}


class Skipping(nn.Sequential):
    """A Sequential that adds the output of an earlier block to that of a later one, as ``SKIPS`` says."""

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks."""
        outputs: dict[str, Tensor] = {}
        for name, module in self.named_children():
            x = module(x)
            if name in SKIPS:
                x = x + outputs[SKIPS[name]]
            outputs[name] = x
        return x


class SkipConnections(Baseline):
    """The baseline with two skip connections; takes the same arguments, and has them as far as ``depth`` goes."""

    # --- the remedy --------------------------------------------------------------------------------------------------
    def build_network(self, sizes: list[int], num_classes: int) -> nn.Module:
        """The baseline's blocks, under the same names, and the sums."""
        return Skipping(OrderedDict(super().build_network(sizes, num_classes).named_children()))

    # -----------------------------------------------------------------------------------------------------------------


if __name__ == "__main__":
    from gradwatch.examples.run import main

    main(SkipConnections)
