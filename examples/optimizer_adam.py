"""Adam instead of SGD.

- Symptom: the gradient shrinks layer by layer towards the input, as in ``baseline.py``.
- Idea: each parameter's step is divided by the size of its own gradients, so a tiny gradient still gives a full step.
- Paper: D. Kingma and J. Ba, Adam: a method for stochastic optimization, 2015, https://arxiv.org/abs/1412.6980.
- The change: ``configure_optimizers``.
- Measured: test accuracy 0.8533 on Fashion-MNIST (baseline: 0.1000); 0.200 ± 0.007 on digits, mean and deviation of
  three seeds (baseline: 0.102 ± 0.002). At the first step the first Linear's gradient has 4e-6 times the norm of the
  head's (baseline: 4e-6).
  ``python examples/optimizer_adam.py --dataset fashion-mnist --data-dir DIR --model.init_std 0.05 --model.lr 1e-3``
- When not to use it: as the cure: the gradient is as small as before, and falls below Adam's eps of 1e-8, or out of
  fp16's range, in a deeper network.
"""

from __future__ import annotations

import torch

from gradwatch.examples.baseline import Baseline


class Adam(Baseline):
    """The baseline with Adam; takes the same arguments."""

    # --- the remedy --------------------------------------------------------------------------------------------------
    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)

    # -----------------------------------------------------------------------------------------------------------------


if __name__ == "__main__":
    from gradwatch.examples.run import main

    main(Adam)
