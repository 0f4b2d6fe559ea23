"""Modules to put in a model that change the gradient flowing through them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch.checks import require_number


class GradientNormalization(nn.Module):
    r"""Return the input unchanged, and standardize the gradient in the backward pass.

    .. math:: g \leftarrow \frac{g - \operatorname{mean}(g)}{\operatorname{std}(g) + \epsilon}

    Put it between layers where gradients vanish or explode over depth: all layers before it get a gradient with a
    standard deviation of ``scale``. The result is no longer the gradient of the loss: it loses its size, and with
    ``center`` its direction too. The gradient of a batch is not the mean over its samples either, so lower the learning
    rate. It undoes a loss scaler: under fp16, set ``scale`` to the scaler's scale, or use bf16.

    A gradient of one entry has no deviation and is not changed. A constant gradient becomes 0. With ``center=False``
    both only get a new size. Neither gives NaN.

    Shapes: any; the same shape, dtype and device in forward and backward.

    Args:
        per_sample: compute the statistics of each sample (dimension 0) alone, so that samples stay independent.
        center: subtract the mean; False only divides by the root mean square and keeps the direction.
        eps: added to the standard deviation, positive. Gradients far below it stay small.
        scale: the new standard deviation, positive.

    Raises:
        ValueError: when ``eps`` or ``scale`` is not a positive number.

    Non-finite gradients: pass unchanged; with ``per_sample`` only those of the samples that contain them.
    Cost: three small operations on the gradient; nothing in the forward pass. No state.

    Example:
        >>> x = torch.zeros(4, requires_grad=True)
        >>> (GradientNormalization()(x) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
        >>> x.grad
        tensor([-1.3416, -0.4472,  0.4472,  1.3416])

    References: Yun, ZNorm, 2024, https://arxiv.org/abs/2408.01215, which standardizes the gradients of parameters; for
    these see ``gradwatch.transforms.Standardize``.
    """

    def __init__(self, per_sample: bool = False, *, center: bool = True, eps: float = 1e-6, scale: float = 1.0) -> None:
        super().__init__()
        require_number(self, above=0, eps=eps, scale=scale)
        self.per_sample, self.center, self.eps, self.scale = per_sample, center, eps, scale

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, with the backward pass changed."""
        settings = (self.per_sample, self.center, self.eps, self.scale)
        result: Tensor = _NormalizedBackward.apply(x, settings)  # type: ignore[no-untyped-call]
        return result

    def extra_repr(self) -> str:
        """Return the settings, for the repr."""
        return f"per_sample={self.per_sample}, center={self.center}, eps={self.eps}, scale={self.scale}"


class _NormalizedBackward(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, settings: tuple[bool, bool, float, float]) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[bool, bool, float, float]], output: Tensor) -> None:
        ctx.settings = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return normalized(grad, *ctx.settings), None


def normalized(grad: Tensor, per_sample: bool, center: bool, eps: float, scale: float) -> Tensor:
    """Return a gradient scaled to the standard deviation ``scale``, or to this root mean square if not centered.

    Example:
        >>> normalized(torch.tensor([3.0, 5.0]), False, True, 1e-6, 1.0)
        tensor([-1.0000,  1.0000])
    """
    size = math.prod(grad.shape[1:] if per_sample else grad.shape)
    if grad.numel() == 0 or (size == 1 and center):
        return grad
    groups = grad.reshape(len(grad) if per_sample else 1, size)
    groups = groups.float() if grad.itemsize < 4 else groups
    largest = groups.abs().amax(1, keepdim=True)
    tiny = torch.finfo(largest.dtype).tiny
    # In units of the largest entry, squares neither overflow nor underflow.
    scaled = groups / largest.clamp(min=tiny)
    if center:
        scaled = scaled - scaled.mean(1, keepdim=True)
    spread = scaled.abs().square().mean(1, keepdim=True).sqrt() + eps / largest.clamp(min=tiny)
    result = torch.where(largest.isfinite(), scaled * scale / spread.clamp(min=tiny), groups)
    return result.reshape(grad.shape).to(grad.dtype)
