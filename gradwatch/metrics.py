"""The norm of gradients as a torchmetrics metric."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from gradwatch.probe.layers import check_patterns, plain_name
from gradwatch.probe.parameters import total_gradient_norm

_DTYPE = torch.float32 if torch.backends.mps.is_available() else torch.float64  # MPS has no float64


class GradientNorm(Metric):
    r"""Mean over its updates of the L2 norm of a module's gradients.

    .. math:: \frac{1}{T} \sum_{t=1}^{T} \sqrt{\sum_p \lVert g_{p,t} \rVert_2^2}

    Update it between ``loss.backward()`` and ``optimizer.zero_grad()``. In a LightningModule, do so in
    ``on_before_optimizer_step``, where gradients are unscaled and accumulated. Called like a function, it updates and
    returns the norm of this one step. With several ranks it is the mean over all updates of all ranks.

    Args:
        pattern: shell pattern of parameter names, as ``named_parameters()`` gives them (``encoder.*``); ``*`` matches
            all. Parameters without a gradient (a frozen layer) do not count.
        **kwargs: arguments of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: when the pattern is no string, or an update gets anything but a module.
        ValueError: on update, when the pattern matches no parameter, or none that matches has a gradient.

    Non-finite gradients: the norm, and the mean until ``reset``, is ``inf`` or ``nan``. Finite gradients don't
    overflow, as the sum is float64 (float32 on a machine with an MPS device). Before the first update the mean is
    ``nan``.

    Cost: each update is one fused pass over the gradients, without a transfer to the host.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> norm = GradientNorm()
        >>> for gradient in ([[3.0, 4.0]], [[0.0, 1.0]]):
        ...     model.weight.grad = torch.tensor(gradient)
        ...     norm.update(model)
        >>> norm.compute()
        tensor(3., dtype=torch.float64)

        In a LightningModule, with ``self.encoder_norm = GradientNorm("encoder.*")``::

            def on_before_optimizer_step(self, optimizer):
                self.encoder_norm(self)
                self.log("encoder_norm", self.encoder_norm, on_step=True, on_epoch=True)
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None
    plot_lower_bound = 0.0

    count: Tensor

    def __init__(self, pattern: str = "*", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(pattern, str):
            raise TypeError(f"pattern is a {type(pattern).__name__}; expected one shell pattern, such as 'encoder.*'")
        self.pattern = pattern
        # A MetricCollection merges metrics whose states have the same names and, at the first update, values within
        # 1e-8 of each other. Vanished gradients of two layers do, so the pattern must be part of the name.
        self._sum = f"sum of {pattern}"
        self.add_state(self._sum, torch.zeros((), dtype=_DTYPE), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, module: nn.Module) -> None:
        """Add the norm of a module's current gradients.

        Args:
            module: any module after its backward pass.
        """
        norm = total_gradient_norm(self._parameters_of(module))
        if norm is None:
            raise ValueError(
                f"no parameter of {type(module).__name__} that matches {self.pattern!r} has a gradient; "
                f"update GradientNorm after loss.backward() and before optimizer.zero_grad()"
            )
        total: Tensor = getattr(self, self._sum)
        setattr(self, self._sum, total + norm.to(total, non_blocking=True))
        self.count = self.count + 1

    def _parameters_of(self, module: nn.Module) -> list[nn.Parameter]:
        if not isinstance(module, nn.Module):
            raise TypeError(f"GradientNorm was updated with a {type(module).__name__}; expected a torch.nn.Module")
        params = {plain_name(name): param for name, param in module.named_parameters()}
        check_patterns([self.pattern], params, "parameter")
        return [param for name, param in params.items() if fnmatchcase(name, self.pattern)]

    def compute(self) -> Tensor:
        """Return the mean norm of all updates since the last reset."""
        total: Tensor = getattr(self, self._sum)
        return total / self.count

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Draw one value, or a sequence of them as a curve over steps; needs the ``report`` extra (matplotlib).

        Args:
            val: a result of ``compute`` or ``forward``, or a list of them; None draws ``compute()``.
            ax: matplotlib axes to draw on; None makes a figure.

        Returns:
            The figure and the axes.

        Example:
            >>> model, norm = nn.Linear(2, 1), GradientNorm()
            >>> norms = []
            >>> for _ in range(3):
            ...     model(torch.ones(1, 2)).sum().backward()
            ...     norms.append(norm(model))
            >>> figure, axes = norm.plot(norms)
        """
        return self._plot(val, ax)
