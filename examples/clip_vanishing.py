"""Clipping, which does not cure vanishing gradients.

- Symptom: the gradient shrinks layer by layer towards the input, as in ``baseline.py``.
- Idea: none that works: clipping never makes a gradient larger.
- Paper: R. Pascanu, T. Mikolov and Y. Bengio, On the difficulty of training recurrent neural networks, 2013,
  https://arxiv.org/abs/1211.5063, where it cures only explosion; see ``clip_rnn.py``.
- The change: ``configure_callbacks``.
- Measured: test accuracy 0.1000 on Fashion-MNIST (baseline: 0.1000); 0.102 ± 0.002 on digits, mean and deviation of
  three seeds (baseline: 0.102 ± 0.002). At the first step the first Linear's gradient has 4e-6 times the norm of the
  head's (baseline: 4e-6).
  ``python examples/clip_vanishing.py --dataset fashion-mnist --data-dir DIR --model.init_std 0.05``
- When not to use it: against vanishing gradients; it is made against explosion.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback

from gradwatch import GradientTransform
from gradwatch.examples.baseline import Baseline
from gradwatch.transforms import ClipByGlobalNorm


class Clipping(Baseline):
    """The baseline with its gradients clipped to a total norm of ``max_norm``."""

    # --- the remedy --------------------------------------------------------------------------------------------------
    def __init__(self, *args: Any, max_norm: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def configure_callbacks(self) -> list[Callback]:
        """Clip by the global norm."""
        return [GradientTransform(ClipByGlobalNorm(self.hparams.max_norm))]

    # -----------------------------------------------------------------------------------------------------------------


if __name__ == "__main__":
    from gradwatch.examples.run import main

    main(Clipping)
