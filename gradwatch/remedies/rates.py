"""By how much a learning rate that is too high should be lowered, by the size of the first step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import SGD, Optimizer

from gradwatch.records import Array, Snapshot
from gradwatch.remedies.optimizer_remedy import optimizers_of

# Of the weights, in the layer of the median. The healthy small networks of tests/benchmarks/detection start with 0.6 %
# to 9 %, large ones with about 0.1 % (A. Karpathy, Neural networks: zero to hero, 2022).
GOOD_STEP = 0.02
USUAL_STEP = 1e-3
_LEAST, _MOST, _OTHERWISE = 1e-4, 0.3, 0.1


def rate_factor(module: nn.Module, history: Sequence[Snapshot] = ()) -> float:
    """The factor that brings the first step to 2 % of the weights; a tenth where its size is not known.

    Example:
        >>> rate_factor(nn.Linear(1, 1))
        0.1
    """
    return min(max(_factor_to(GOOD_STEP, first_step(module, history), _OTHERWISE), _LEAST), _MOST)


def raising_factor(module: nn.Module, history: Sequence[Snapshot] = ()) -> float:
    """The factor that brings a first step that is too small to 0.1 % of the weights; 100 where its size is not known.

    Example:
        >>> raising_factor(nn.Linear(1, 1))
        100.0
    """
    return max(_factor_to(USUAL_STEP, first_step(module, history), 100.0), 10.0)


def _factor_to(good: float, step: float, otherwise: float) -> float:
    return float(f"{good / step:.0e}") if math.isfinite(step) and step > 0 else otherwise


def first_step(module: nn.Module, history: Sequence[Snapshot] = ()) -> float:
    """Size of the first step over that of the weights, in the layer of the median; NaN where it is not known."""
    optimizers = optimizers_of(module)
    if not optimizers:
        return _recorded(history)
    first = optimizers[0]
    return _of_sgd(first, history) if isinstance(first, SGD) else _of_adaptive(first)


def _recorded(history: Sequence[Snapshot]) -> float:
    return _median(np.asarray(getattr(history[0], "step_to_weight", []), np.float64)) if history else math.nan


def _of_sgd(optimizer: Optimizer, history: Sequence[Snapshot]) -> float:
    """Rate times gradient, which momentum adds up."""
    if not history:
        return math.nan
    group = optimizer.param_groups[0]
    momentum = float(group.get("momentum", 0.0))
    return float(group["lr"]) * _median(history[0].grad_to_weight_ratio) / max(1 - momentum, 1e-3)


def _of_adaptive(optimizer: Optimizer) -> float:
    """Each entry moves by about the rate, whatever its gradient."""
    weights = [p for group in optimizer.param_groups for p in group["params"] if not is_lazy(p) and p.dim() > 1]
    sizes = np.array([weight.detach().float().square().mean().sqrt().item() for weight in weights])
    rate = float(optimizer.param_groups[0]["lr"])
    return _median(rate / np.where(sizes > 0, sizes, np.nan))


def _median(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan
