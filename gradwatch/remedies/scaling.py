"""Layers that bring data to mean 0 and deviation 1, and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_ALIKE, _LEAST = 0.5, 0.25


class Standardize(nn.Module):
    """Subtracts a mean and divides by a deviation, both fixed.

    Args:
        mean, std: numbers, or tensors that broadcast with the input.

    Example:
        >>> Standardize(10.0, 2.0)(torch.tensor([8.0, 14.0]))
        tensor([-1.,  2.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor | float, std: Tensor | float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).clone())
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).clone())

    @classmethod
    def of(cls, data: Tensor, dim: int = -1) -> Standardize:
        """By the statistics of data, each feature (entry along ``dim``) with its own; a constant one is only shifted.

        A feature that hardly varies in these data, or not at all, may do so in others (a pixel at the edge). Where all
        are of one unit, so that most reach as far as the largest does, no deviation counts as less than a quarter of
        the usual one.

        Example:
            >>> Standardize.of(torch.tensor([[0.0, 500.0], [4.0, 500.0]])).std
            tensor([2., 1.])
        """
        others = [axis for axis in range(data.dim()) if axis != dim % data.dim()]
        values = data.detach().double()
        mean, std = values.mean(others, keepdim=True), values.std(others, correction=0, keepdim=True)
        largest = values.abs().amax(others, keepdim=True)
        if largest.median() > _ALIKE * largest.max():
            std = std.clamp(min=_LEAST * std.square().mean().sqrt())
        std = torch.where(std > 1e-6 * mean.abs().clamp(min=1e-30), std, 1.0)
        shape = [size for axis, size in enumerate(mean.shape) if axis >= dim % data.dim()]
        return cls(mean.reshape(shape), std.reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        """The standardized data."""
        return (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)


class Rescale(Standardize):
    """The way back: multiplies by a deviation and adds a mean.

    Example:
        >>> Rescale(10.0, 2.0)(torch.tensor([-1.0, 2.0]))
        tensor([ 8., 14.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """The data in their own unit."""
        return x * self.std.to(x.dtype) + self.mean.to(x.dtype)
