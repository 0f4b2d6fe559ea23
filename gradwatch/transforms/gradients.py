"""Gradients of named parameters in the form that transforms edit: real, dense, and local to this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from gradwatch.probe.norms import by_kind, norms_of
from gradwatch.probe.shards import is_partial, local_part, norms_over_shards, over_shards
from gradwatch.torch_internals import foreach_mul_


class Gradients:
    """The gradients of some parameters. A shared parameter counts once. Build it without gradient tracking.

    Attributes:
        names, params: the parameters with a gradient.
        grads: their gradients; sparse ones are coalesced in place.
        values: their local entries, real and dense. Writing to them writes to the gradient.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> layer.weight.grad = torch.tensor([[3.0, 4.0]])
        >>> gradients = Gradients(dict(layer.named_parameters()))
        >>> gradients.names, gradients.norms()
        (['weight'], tensor([5.], dtype=torch.float64))
    """

    def __init__(self, params: Mapping[str, nn.Parameter]) -> None:
        self.names: list[str] = []
        self.params: list[nn.Parameter] = []
        self.grads: list[Tensor] = []
        self.values: list[Tensor] = []
        self._kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        seen = set()
        for name, param in params.items():
            grad = param.grad
            if grad is None or id(param) in seen:
                continue
            seen.add(id(param))
            dtype = grad.dtype
            # A shortcut for plain dense gradients: this loop is a large part of the cost of a global clip.
            plain = type(grad) is Tensor and grad.layout is torch.strided and not dtype.is_complex
            if not plain:
                grad = _usable_gradient(name, param)
                dtype = dtype.to_real()
            self._kinds.setdefault((grad.device, dtype), []).append(len(self.names))
            self.names.append(name)
            self.params.append(param)
            self.grads.append(grad)
            self.values.append(grad if plain else entries(grad))

    @property
    def home(self) -> torch.device:
        """Device of the first gradient, which holds the statistics of all."""
        return self.values[0].device

    def norms(self, p: float = 2.0) -> Tensor:
        """Return the p-norm of each gradient over all its shards, as one float64 vector on ``home``."""
        norms = norms_of(self.values, list(self._kinds.values()), p)
        return norms_over_shards(norms, self.grads, p)

    def total_norm(self, p: float = 2.0) -> Tensor:
        """Return the p-norm of all gradients as one vector."""
        total: Tensor = torch.linalg.vector_norm(self.norms(p), p)
        return total

    def weight_norms(self) -> Tensor:
        """Return the L2 norm of each parameter over all its shards."""
        weights = [entries(param) for param in self.params]
        return norms_over_shards(norms_of(weights, by_kind(weights), 2.0), self.params, 2.0)

    def scale_(self, coefficient: Tensor) -> None:
        """Multiply all gradients by one coefficient."""
        for (device, dtype), positions in self._kinds.items():
            is_all = len(positions) == len(self.values)
            batch = self.values if is_all else [self.values[i] for i in positions]
            if dtype.itemsize < 4:
                for values in batch:
                    apply_exactly_(Tensor.mul_, values, coefficient.to(device, non_blocking=True))
            else:
                foreach_mul_(batch, coefficient.to(device, dtype, non_blocking=True))

    def scale_each_(self, coefficients: Tensor) -> None:
        """Multiply each gradient by its own coefficient, given as one vector."""
        for values, coefficient in zip(self.values, coefficients.unbind(), strict=True):
            apply_exactly_(Tensor.mul_, values, coefficient.to(values.device, non_blocking=True))

    def any_over_shards(self, flags: Sequence[Tensor]) -> Tensor:
        """Return True if a flag is set, given a scalar for each gradient, on any process that holds a shard of it."""
        # uint8: not every backend can reduce a bool.
        on_home = [flag.to(self.home, torch.uint8, non_blocking=True) for flag in flags]
        return (over_shards(torch.stack(on_home), self.grads, "max") > 0).any()


def entries(tensor: Tensor) -> Tensor:
    """Return a tensor's entries on this process, as a real strided tensor that shares its memory.

    A sparse tensor must be coalesced. A complex one gets a last dimension for the real and the imaginary part.

    Example:
        >>> tensor = torch.tensor([3 + 4j])
        >>> entries(tensor).zero_()
        tensor([[0., 0.]])
        >>> tensor
        tensor([0.+0.j])
    """
    tensor = local_part(tensor).detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.values()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def apply_exactly_(operation: Callable[[Tensor, Tensor], Tensor], values: Tensor, operand: Tensor) -> None:
    """Apply an in-place operation such as ``Tensor.mul_``, in float32 where the values have half precision.

    Example:
        >>> values = torch.tensor([60000.0], dtype=torch.float16)
        >>> apply_exactly_(Tensor.mul_, values, torch.tensor(1e-8))
        >>> values
        tensor([0.0006], dtype=torch.float16)
    """
    # Rounded to half precision, a coefficient is off by up to 0.4 %, and one below 6e-8 is 0.
    if values.itemsize < 4:
        values.copy_(operation(values.float(), operand))
    else:
        operation(values, operand)


def wide_dtype(values: Tensor) -> torch.dtype:
    """Return the dtype to sum in: float64, or float32 on MPS, which has no float64."""
    return torch.float64 if values.device.type != "mps" else torch.float32


def _usable_gradient(name: str, param: nn.Parameter) -> Tensor:
    grad = param.grad
    assert grad is not None
    if is_partial(grad):
        raise ValueError(
            f"the gradient of {name!r} is a DTensor with placements {grad.placements}: "  # type: ignore[attr-defined]
            "it is not yet summed over the ranks; redistribute it before transforms run"
        )
    if grad.is_sparse and not grad.is_coalesced():
        grad = param.grad = grad.coalesce()
    return grad
