"""Gradient ascent, which does not cure vanishing gradients.

- Symptom: the gradient shrinks layer by layer towards the input, as in ``baseline.py``.
- Idea: none that holds: ``maximize=True`` turns the step round, and the loss goes up.
- Paper: none; ``torch.optim.SGD`` has the option for objectives that are to grow, such as a reward.
- The change: ``configure_optimizers``.
- Measured: TBD
  ``python examples/gradient_ascent.py --dataset fashion-mnist --data-dir DIR --model.init_std 0.05``
- When not to use it: against vanishing gradients, or for any loss.
"""

from __future__ import annotations

import torch

from gradwatch.examples.baseline import Baseline


class GradientAscent(Baseline):
    """The baseline, trained to a larger loss; takes the same arguments."""

    # --- the remedy --------------------------------------------------------------------------------------------------
    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD that climbs."""
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, maximize=True)

    # -----------------------------------------------------------------------------------------------------------------


if __name__ == "__main__":
    from gradwatch.examples.run import main

    main(GradientAscent)
