"""Reads the gradients and weights of an optimizer's parameters, just before it steps and again just after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from gradwatch.probe.norms import l2_norms, nonfinite_counts, nonzero_counts, stored_values
from gradwatch.probe.scalars import DeviceScalars

_MAX_ELEMENTS = 1 << 24  # bounds the one temporary copy that counting non-finite entries makes off the CPU


def batches(tensors: Sequence[Tensor]) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Split tensors into batches of one device and dtype, each with the positions it came from.

    Example:
        >>> tensors = [torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(3)]
        >>> [positions for positions, _ in batches(tensors)]
        [[1], [0, 2]]
    """
    open_batches: dict[tuple[torch.device, torch.dtype], tuple[list[int], list[Tensor], int]] = {}
    for position, tensor in enumerate(tensors):
        kind = (tensor.device, tensor.dtype)
        positions, batch, elements = open_batches.pop(kind, ([], [], 0))
        if batch and elements + tensor.numel() > _MAX_ELEMENTS:
            yield positions, batch
            positions, batch, elements = [], [], 0
        positions.append(position)
        batch.append(tensor)
        open_batches[kind] = (positions, batch, elements + tensor.numel())
    for positions, batch, _ in open_batches.values():
        yield positions, batch


class ParameterReading:
    """The numbers of one optimizer's parameters that should learn: those that require a gradient.

    Attributes:
        params: name -> parameter, with or without a gradient.
        grad_norm, nonzero, nonfinite, weight_norm: name -> slot of the number in ``scalars``.
        total: total gradient norm, a scalar on the device; None where no parameter has a gradient.

    Example:
        >>> layer, scalars = nn.Linear(2, 1, bias=False), DeviceScalars()
        >>> layer.weight.grad = torch.tensor([[3.0, 4.0]])
        >>> reading = ParameterReading(dict(layer.named_parameters()), scalars)
        >>> scalars.to_host()[reading.grad_norm["weight"]]
        np.float64(5.0)
    """

    def __init__(self, params: Mapping[str, nn.Parameter], scalars: DeviceScalars) -> None:
        self.params = dict(params)
        self.grad_norm: dict[str, int] = {}
        self.grad_norm_after: dict[str, int] = {}
        self.nonzero: dict[str, int] = {}
        self.nonfinite: dict[str, int] = {}
        self.weight_norm: dict[str, int] = {}
        self.total: Tensor | None = None
        self._read_gradients(scalars)
        self._read_weights(scalars)

    def _gradients(self) -> tuple[list[str], list[Tensor]]:
        present = {name: param.grad for name, param in self.params.items() if param.grad is not None}
        return list(present), list(present.values())

    def _read_gradients(self, scalars: DeviceScalars) -> None:
        names, grads = self._gradients()
        self._seen = _fingerprint(grads)
        totals = []
        for positions, batch in batches([stored_values(grad) for grad in grads]):
            norms = l2_norms(batch)
            here = [names[position] for position in positions]
            self.grad_norm.update(zip(here, scalars.values(norms), strict=True))
            self.nonzero.update(zip(here, scalars.values(nonzero_counts(batch)), strict=True))
            self.nonfinite.update(zip(here, scalars.values(nonfinite_counts(batch, norms)), strict=True))
            totals.append(torch.linalg.vector_norm(norms))
        if totals:
            home = totals[0].device
            self.total = torch.linalg.vector_norm(torch.stack([t.to(home, non_blocking=True) for t in totals]))

    def _read_weights(self, scalars: DeviceScalars) -> None:
        names = list(self.params)
        for positions, batch in batches([stored_values(param) for param in self.params.values()]):
            slots = scalars.values(l2_norms(batch))
            self.weight_norm.update(zip((names[position] for position in positions), slots, strict=True))

    def read_again(self, scalars: DeviceScalars) -> None:
        """Read the gradients' norms once more if anything wrote to them (a clip, say); else they are the same."""
        names, grads = self._gradients()
        if _fingerprint(grads) == self._seen:
            self.grad_norm_after = self.grad_norm
            return
        for positions, batch in batches([stored_values(grad) for grad in grads]):
            slots = scalars.values(l2_norms(batch))
            self.grad_norm_after.update(zip((names[position] for position in positions), slots, strict=True))


def _fingerprint(grads: Sequence[Tensor]) -> list[tuple[int, int]]:
    # The version counter that autograd keeps tells whether a tensor was written to, without reading it: it saves the
    # second pass over all gradients on every step that clips nothing.
    return [(id(grad), grad._version) for grad in grads]


def total_gradient_norm(params: Sequence[nn.Parameter]) -> Tensor | None:
    """Total L2 norm of the gradients, a float64 scalar left on the device; None where there is none.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2)); weight.grad = torch.tensor([3.0, 4.0])
        >>> total_gradient_norm([weight])
        tensor(5., dtype=torch.float64)
    """
    grads = [stored_values(param.grad) for param in params if param.grad is not None]
    norms = [torch.linalg.vector_norm(l2_norms(batch)) for _, batch in batches(grads)]
    if not norms:
        return None
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device, non_blocking=True) for norm in norms]))
