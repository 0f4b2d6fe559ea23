"""By what trainings are compared."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from gradwatch.records import Snapshot

TRAIN_LOSS = "train loss"
_ACCURACY = re.compile(r"^val\w*?[_/. -]?(acc|accuracy)\b|^val.*acc", re.IGNORECASE)
_LOSS = re.compile(r"^val.*loss", re.IGNORECASE)
_HIGHER = re.compile(r"acc|auroc|auc|f1|precision|recall|r2|iou|dice|psnr|ssim|bleu|map\b", re.IGNORECASE)


def choose_metric(names: Sequence[str]) -> str:
    """A validation accuracy, which has the same unit whatever the loss; else a validation loss, else the train loss.

    Example:
        >>> choose_metric(["val_loss", "val_acc"]), choose_metric(["val/loss"]), choose_metric(["test_loss"])
        ('val_acc', 'val/loss', 'train loss')
    """
    for pattern in (_ACCURACY, _LOSS):
        found = [name for name in names if pattern.search(name)]
        if found:
            return found[0]
    return TRAIN_LOSS


def is_better_higher(metric: str) -> bool:
    """Whether more of it is better, by its name.

    Example:
        >>> is_better_higher("val_f1"), is_better_higher("val_loss"), is_better_higher("train loss")
        (True, False, False)
    """
    return "loss" not in metric and bool(_HIGHER.search(metric))


def first_and_last(history: Sequence[Snapshot]) -> tuple[float, float]:
    """Norms of the gradients of the first and the last layer with weights, norms left out, at the last measured step.

    Example:
        >>> first_and_last([Snapshot(0, ("a", "b"), grad_norm=[0.1, 2.0], weight_norm=[1.0, 1.0])])
        (0.1, 2.0)
    """
    for snapshot in reversed(history):
        no_norm = np.array(["Norm" not in kind for kind in snapshot.kinds], bool)
        norms = snapshot.grad_norm[no_norm & (snapshot.weight_norm >= 0)]
        if len(norms):
            return float(norms[0]), float(norms[-1])
    return float("nan"), float("nan")
