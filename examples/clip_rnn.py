"""Gradient clipping on a recurrent network that explodes: by norm, by value, adaptive, or not at all.

- Symptom: the loss jumps by powers of ten or becomes NaN; gradwatch reports ``exploding``, ``nonfinite`` or ``spike``.
- Idea: at a cliff of the loss surface one huge gradient moves the weights far away. A bound makes that step
  short; a bound on the norm of all gradients together keeps its direction too. Under Adam, which divides by the size of
  past gradients, it is all later steps that one huge gradient spoils: they become tiny.
- Paper: R. Pascanu, T. Mikolov and Y. Bengio, On the difficulty of training recurrent neural networks, 2013,
  https://arxiv.org/abs/1211.5063; adaptive: A. Brock, S. De, S. Smith and K. Simonyan, High-performance large-scale
  image recognition without normalization, 2021, https://arxiv.org/abs/2102.06171. The network that explodes, ReLU with
  the identity as recurrent weights: Q. Le, N. Jaitly and G. Hinton, 2015, https://arxiv.org/abs/1504.00941.
- The change: ``configure_callbacks``, and in ``__init__`` the settings of that network.
- Measured: for the seeds 42, 0 and 1, after 1,000 steps (a text: 560).

  ========================  ===================  =================  ================
  test loss                 adding, Adam         adding, SGD        text, SGD
  ========================  ===================  =================  ================
  ``none``                  0.171 0.164 0.164    3e13 NaN NaN       NaN NaN NaN
  ``l2`` (norm)             0.012 0.016 0.034    0.179 0.164 0.166  2.07 2.06 2.09
  ``l1`` (norm)             0.011 0.009 0.008                       2.25 2.23 2.22
  ``inf`` (norm)            0.028 0.056 0.010                       2.05 2.12 2.08
  ``value``                 0.184 0.178 0.173                       2.13 2.15 2.09
  ``adaptive``              0.033 0.085 0.045                       2.13 2.14 2.09
  ========================  ===================  =================  ================

  Predicting the mean has 0.167 on the adding problem: bounded by norm or by unit it is learned, by value it is not, and
  under SGD it stays finite but is not learned by then. NaN came at step 1 or 2 there, at step 3 to 8 on the text.
  ``python examples/clip_rnn.py --model.clip l2``
  ``python examples/clip_rnn.py --model.clip l2 --model.optimizer sgd --model.lr 0.01``
  ``python examples/clip_rnn.py --model.clip l2 --model.optimizer sgd --model.lr 3 --model.width 128
  --model.identity false --dataset text --data-dir DIR``
- When not to use it: against vanishing gradients, see ``clip_vanishing.py``. If it acts on most steps, lower the
  learning rate first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from lightning.pytorch import Callback

from gradwatch import GradientTransform
from gradwatch.examples.recurrent import Recurrent
from gradwatch.transforms import AdaptiveClip, ClipByGlobalNorm, ClipByValue, Transform

Clip = Literal["none", "l1", "l2", "inf", "value", "adaptive"]

CLIPS: dict[str, tuple[Callable[[float], Transform], float]] = {  # each with a bound that suits both data sets
    "l1": (partial(ClipByGlobalNorm, p=1), 10.0),
    "l2": (ClipByGlobalNorm, 1.0),
    "inf": (partial(ClipByGlobalNorm, p=math.inf), 0.1),
    "value": (ClipByValue, 0.01),
    "adaptive": (AdaptiveClip, 0.01),
}


class ClippedRNN(Recurrent):
    """The baseline with ReLU and, at the start, the identity as recurrent weights; its gradients are clipped.

    Args:
        *args: the baseline's, as are all others that are not explained here.
        clip: what is bounded: the norm of all gradients together (``"l1"``, ``"l2"``, ``"inf"``), each entry
            (``"value"``), each unit's gradient by its weights (``"adaptive"``), or nothing (``"none"``).
        bound: the bound; None takes that of ``CLIPS``.
    """

    # --- the remedy --------------------------------------------------------------------------------------------------
    def __init__(
        self,
        *args: Any,
        lr: float = 1e-3,
        activation: Literal["tanh", "relu"] = "relu",
        identity: bool = True,
        clip: Clip = "l2",
        bound: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, lr=lr, activation=activation, identity=identity, **kwargs)

    def configure_callbacks(self) -> list[Callback]:
        """The chosen clip."""
        if self.hparams.clip == "none":
            return []
        make, bound = CLIPS[self.hparams.clip]
        return [GradientTransform(make(bound if self.hparams.bound is None else self.hparams.bound))]

    # -----------------------------------------------------------------------------------------------------------------


if __name__ == "__main__":
    from gradwatch.examples.run_sequences import main

    main(ClippedRNN)
