"""The gradients of named parameters, in the form that every transform edits: real, dense and held by this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gradwatch.probe.norms import by_kind, norms_of
from gradwatch.probe.shards import is_partial, local_part, norms_over_shards


def entries(tensor: Tensor) -> Tensor:
    """The numbers of a tensor that this process stores, as a real strided tensor that shares its memory.

    A sparse tensor has to be coalesced. A complex one gets a last dimension for the real and the imaginary part.

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


class Gradients:
    """The gradients that are there, each once, whatever names their parameter has; built without gradient tracking.

    Attributes:
        names, params: of the parameters that have a gradient.
        grads: their gradients; sparse ones are coalesced in place.
        values: the entries of each, see ``entries``. To write to them is to write to the gradient.

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
            # Of the kinds of gradients one is common; this loop is a good part of what a global clip costs.
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
        """Device of the first gradient, where numbers about all are kept."""
        return self.values[0].device

    def norms(self, p: float = 2.0) -> Tensor:
        """The p-norm of each gradient, of all of it where it is sharded: one vector in float64, on ``home``."""
        norms = norms_of(self.values, list(self._kinds.values()), p)
        return norms_over_shards(norms, self.grads, p)

    def total_norm(self, p: float = 2.0) -> Tensor:
        """The p-norm of all gradients as one vector."""
        total: Tensor = torch.linalg.vector_norm(self.norms(p), p)
        return total

    def weight_norms(self) -> Tensor:
        """L2 norm of each parameter."""
        weights = [entries(param) for param in self.params]
        return norms_over_shards(norms_of(weights, by_kind(weights), 2.0), self.params, 2.0)

    def scale_(self, coefficient: Tensor) -> None:
        """Multiply all gradients by one number."""
        for (device, dtype), positions in self._kinds.items():
            batch = self._batch(positions)
            if dtype.itemsize < 4:
                for values in batch:
                    scale_exactly_(values, coefficient.to(device, non_blocking=True))
            else:
                torch._foreach_mul_(batch, coefficient.to(device, dtype, non_blocking=True))

    def scale_each_(self, coefficients: Tensor) -> None:
        """Multiply each gradient by its own number, out of one vector."""
        for values, coefficient in zip(self.values, coefficients.unbind(), strict=True):
            scale_exactly_(values, coefficient.to(values.device, non_blocking=True))

    def _batch(self, positions: Sequence[int]) -> list[Tensor]:
        return self.values if len(positions) == len(self.values) else [self.values[i] for i in positions]


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


def scale_exactly_(values: Tensor, coefficient: Tensor) -> None:
    """Multiply in place, by a coefficient that is not rounded to half precision.

    Example:
        >>> values = torch.tensor([60000.0], dtype=torch.float16)
        >>> scale_exactly_(values, torch.tensor(1e-8))
        >>> values
        tensor([0.0006], dtype=torch.float16)
    """
    # A coefficient rounded to half precision is off by up to 0.4 %, and under 6e-8 it is 0.
    if values.itemsize < 4:
        values.copy_(values.float().mul_(coefficient))
    else:
        values.mul_(coefficient)
