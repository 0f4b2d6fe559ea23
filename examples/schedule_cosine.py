"""Adam with a warm-up and a cosine.

- Symptom: the gradient shrinks layer by layer towards the input, as in ``baseline.py``.
- Idea: small steps first, while Adam's estimates are poor, then large ones, then down to 0 to settle.
- Paper: I. Loshchilov and F. Hutter, SGDR: stochastic gradient descent with warm restarts, 2017,
  https://arxiv.org/abs/1608.03983; for the warm-up P. Goyal et al., Accurate, large minibatch SGD, 2017,
  https://arxiv.org/abs/1706.02677.
- The change: ``configure_optimizers``.
- Measured: test accuracy 0.8363 on Fashion-MNIST (baseline: 0.1000); 0.197 ± 0.010 on digits, mean and deviation of
  three seeds (baseline: 0.102 ± 0.002). At the first step the first Linear's gradient has 4e-6 times the norm of the
  head's (baseline: 4e-6).
  ``python examples/schedule_cosine.py --dataset fashion-mnist --data-dir DIR --model.init_std 0.05 --model.lr 1e-3``
- When not to use it: when it is not known how long the training will be: the cosine needs the number of steps.
"""

from __future__ import annotations

from typing import Any

import torch

from gradwatch.examples.baseline import Baseline


class WarmupCosine(Baseline):
    """The baseline with Adam, whose learning rate rises for a share ``warmup`` of the steps, then falls to 0."""

    # --- the remedy --------------------------------------------------------------------------------------------------
    def __init__(self, *args: Any, warmup: float = 0.05, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def configure_optimizers(self) -> Any:
        """Adam, with a new learning rate each step."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = max(1, round(self.hparams.warmup * steps))
        up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=warmup)
        down = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, steps - warmup))
        scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [up, down], milestones=[warmup])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # -----------------------------------------------------------------------------------------------------------------


if __name__ == "__main__":
    from gradwatch.examples.run import main

    main(WarmupCosine)
