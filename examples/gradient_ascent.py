"""Gradient ascent, which does not cure vanishing gradients.

- Symptom: the gradient shrinks layer by layer towards the input, as in ``baseline.py``.
- Idea: none that works: ``maximize=True`` reverses the step, and the loss goes up.
- Paper: none; ``torch.optim.SGD`` has the option for objectives to maximize, such as a reward.
- The change: ``configure_optimizers``.
- Measured: test accuracy 0.1000 on Fashion-MNIST (baseline: 0.1000); 0.100 ± 0.000 on digits, mean and deviation of
  three seeds (baseline: 0.102 ± 0.002). At the first step the first Linear's gradient has 4e-6 times the norm of the
  head's (baseline: 4e-6).
  ``python examples/gradient_ascent.py --dataset fashion-mnist --data-dir DIR --model.init_std 0.05``
- When not to use it: against vanishing gradients, or for any loss.
"""

from __future__ import annotations

import torch

from gradwatch.examples.baseline import Baseline


class GradientAscent(Baseline):
    """The baseline, trained to increase the loss; takes the same arguments."""

    # --- the remedy --------------------------------------------------------------------------------------------------
    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD that climbs."""
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, maximize=True)

    # -----------------------------------------------------------------------------------------------------------------


if __name__ == "__main__":
    from gradwatch.examples.run import main

    main(GradientAscent)
