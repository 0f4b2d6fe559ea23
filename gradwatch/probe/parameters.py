"""Reads the gradients and weights of an optimizer's parameters, just before it steps and again just after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from gradwatch.probe.norms import l2_norms, nonfinite_counts, nonzero_counts, stored_values
from gradwatch.probe.scalars import DeviceScalars, batches

Slots = list[int]  # one a parameter; -1 where it has no such number
NONE = -1


class ParameterReading:
    """The numbers of one optimizer's parameters that should learn: those that require a gradient.

    Args:
        params: name -> parameter.
        scalars: takes the numbers.
        scale: what the gradients are still multiplied by, on the device; None where they are as the loss has them.

    Attributes:
        names: their names, with or without a gradient.
        sizes: their numbers of entries.
        grad_norm, nonzero, nonfinite, weight_norm: for each, the slot of the number in ``scalars``, or -1.
        grad_norm_after: the same once the optimizer has stepped; None before :meth:`read_again`.
        total: total gradient norm, a scalar on the device; None where no parameter has a gradient.

    Example:
        >>> layer, scalars = nn.Linear(2, 1, bias=False), DeviceScalars()
        >>> layer.weight.grad = torch.tensor([[3.0, 4.0]])
        >>> reading = ParameterReading(dict(layer.named_parameters()), scalars)
        >>> scalars.to_host()[reading.grad_norm]
        array([5.])
    """

    def __init__(self, params: Mapping[str, nn.Parameter], scalars: DeviceScalars, scale: Tensor | None = None) -> None:
        self.names = list(params)
        self.sizes = [param.numel() for param in params.values()]
        self.grad_norm_after: Slots | None = None
        self._params = list(params.values())
        grads = [param.grad for param in self._params]
        self._seen = _fingerprint(grads)
        self._grad_norms = _norms_over(scale)
        norms = _read(grads, self._grad_norms)
        counts = [(positions, batch, nonfinite_counts(batch, norm)) for positions, batch, norm in norms]
        self.grad_norm = self._keep(norms, scalars)
        self.nonzero = self._keep(_read(grads, nonzero_counts), scalars)
        self.nonfinite = self._keep(counts, scalars)
        self.weight_norm = self._keep(_read(self._params, l2_norms), scalars)
        self.total = _together([norm for _, _, norm in norms])

    def read_again(self, scalars: DeviceScalars) -> None:
        """Read the gradients' norms once more if anything wrote to them (a clip, say); else they are the same.

        What is written through ``.data`` goes unseen, as autograd does not count it.
        """
        grads = [param.grad for param in self._params]
        changed = _fingerprint(grads) != self._seen
        self.grad_norm_after = self._keep(_read(grads, self._grad_norms), scalars) if changed else self.grad_norm

    def _keep(self, results: Sequence[tuple[list[int], list[Tensor], Tensor]], scalars: DeviceScalars) -> Slots:
        slots = [NONE] * len(self.names)
        for positions, _, numbers in results:
            for position, slot in zip(positions, scalars.values(numbers), strict=True):
                slots[position] = slot
        return slots


def _read(
    tensors: Sequence[Tensor | None], measure: Callable[[list[Tensor]], Tensor]
) -> list[tuple[list[int], list[Tensor], Tensor]]:
    """Positions, tensors and measured numbers, in one fused pass for each device and dtype."""
    present = [position for position, tensor in enumerate(tensors) if tensor is not None]
    values = [stored_values(tensor) for tensor in tensors if tensor is not None]
    return [([present[p] for p in positions], batch, measure(batch)) for positions, batch in batches(values)]


def _norms_over(scale: Tensor | None) -> Callable[[list[Tensor]], Tensor]:
    if scale is None:
        return l2_norms
    return lambda tensors: l2_norms(tensors) / scale.to(tensors[0].device, non_blocking=True)


def _fingerprint(grads: Sequence[Tensor | None]) -> list[tuple[int, int]]:
    # The version counter that autograd keeps tells whether a tensor was written to, without reading it: it saves the
    # second pass over all gradients on every step that clips nothing.
    return [(id(grad), 0 if grad is None else grad._version) for grad in grads]


def _together(norms: Sequence[Tensor]) -> Tensor | None:
    parts: list[Tensor] = [torch.linalg.vector_norm(norm) for norm in norms]
    if len(parts) < 2:
        return parts[0] if parts else None
    total: Tensor = torch.linalg.vector_norm(torch.stack([p.to(parts[0].device, non_blocking=True) for p in parts]))
    return total


def total_gradient_norm(params: Sequence[nn.Parameter], scale: Tensor | None = None) -> Tensor | None:
    """Total L2 norm of the gradients, a float64 scalar left on the device; None where there is none.

    Args:
        params: those to read.
        scale: what their gradients are multiplied by, on the device.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2)); weight.grad = torch.tensor([3.0, 4.0])
        >>> total_gradient_norm([weight])
        tensor(5., dtype=torch.float64)
    """
    return _together([norm for _, _, norm in _read([param.grad for param in params], _norms_over(scale))])
