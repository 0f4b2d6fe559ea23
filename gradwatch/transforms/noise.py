"""A transform that adds noise to the gradient."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gradwatch.checks import require_number, require_whole
from gradwatch.probe.shards import shard_like
from gradwatch.transforms.gradients import Gradients
from gradwatch.transforms.standardize import refuse_sparse
from gradwatch.transforms.transform import GradientEdit


@dataclass(eq=False)
class AddNoise(GradientEdit):
    r"""Add Gaussian noise whose variance decays over the steps.

    .. math:: g \leftarrow g + \mathcal{N}(0, \sigma_t^2), \quad \sigma_t^2 = \frac{\eta}{(1 + t)^\gamma}

    Use it for very deep networks that start badly. Put it after a clip, as the paper does; a clip after it would scale
    the noise too. A zero gradient gets noise as well, so weights that should not move will drift.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept. In a complex gradient, real and imaginary part
    each get noise of this variance.

    Args:
        eta: variance of the first step's noise, positive; the paper tries 0.01, 0.3 and 1.
        gamma: rate of the decay, at least 0.
        seed: the noise depends on it, on the step and on the parameters' names, so that all ranks draw the same.

    Raises:
        ValueError: when a setting is out of its range.
        TypeError: for a sparse gradient, which noise would fill.

    Non-finite gradients: NaN and Inf stay.
    Cost: one random number an entry; a rank draws the noise of the whole parameter, one at a time, and keeps its shard.
    No sync. State: the number of steps.

    Example:
        >>> noise, weight = AddNoise(eta=0.01), torch.nn.Parameter(torch.zeros(1000))
        >>> weight.grad = torch.zeros(1000)
        >>> noise({"weight": weight})
        >>> bool(0.09 < weight.grad.std() < 0.11)
        True

    References: Neelakantan et al., Adding Gradient Noise Improves Learning for Very Deep Networks, 2015,
    https://arxiv.org/abs/1511.06807.
    """

    eta: float = 0.01
    gamma: float = 0.55
    seed: int = 0
    _steps: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        require_number(self, above=0, eta=self.eta)
        require_number(self, least=0, gamma=self.gamma)
        require_whole(self, least=0, seed=self.seed)

    def edit(self, gradients: Gradients) -> None:
        """Draw and add the noise of this step."""
        refuse_sparse(gradients, self)
        deviation = (self.eta / (1 + self._steps) ** self.gamma) ** 0.5
        key = zlib.crc32("\n".join([str(self.seed), str(self._steps), *gradients.names]).encode())
        # Generators of our own: drawing from torch's would change the random numbers of the training.
        generators = {values.device: torch.Generator(values.device).manual_seed(key) for values in gradients.values}
        for values, grad in zip(gradients.values, gradients.grads, strict=True):
            shape = (*grad.shape, 2) if grad.is_complex() else grad.shape
            dtype, device = values.dtype if values.itemsize > 4 else torch.float32, values.device
            noise = torch.randn(shape, generator=generators[device], device=device, dtype=dtype)
            values.add_(shard_like(noise, grad).to(values.dtype), alpha=deviation)
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps with noise."""
        return {"steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the number of steps."""
        self._steps = state["steps"]
