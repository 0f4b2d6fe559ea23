"""The scale of what the first layer gets, and of what the loss compares the output with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch.diagnosis.evidence import Evidence
from gradwatch.layer_kinds import is_normalization
from gradwatch.preflight.loss_head import Head, params_of, read_head
from gradwatch.probe.call_log import tensors_in
from gradwatch.probe.layers import find_layers, plain_name
from gradwatch.probe.module_hooks import ModuleHook
from gradwatch.short_runs.run import Run
from gradwatch.theory import Spread, spreads

# Initializations keep the size of inputs of unit variance (LeCun et al., Efficient BackProp, 1998, 4.3: inputs of mean
# 0 and about equal covariance). Ten times that is more than standardized, 0-to-1 or embedded data ever shows; pixels
# of 0 to 255 have 100 and more.
LARGE = 10.0


@dataclass(frozen=True)
class Scale:
    """The size of the values of a batch.

    Attributes:
        rms, mean: root mean square and mean of the finite values.
        deviations: smallest and largest standard deviation of a feature, of those that vary; NaN where there are no
            features (not two dimensions) or none varies.
        constant: features that do not vary.
        nonfinite: values that are NaN or Inf.
        outlier: the largest RMS of a sample over the median one.

    Example:
        >>> measure(torch.tensor([[0.0, 100.0], [1.0, 100.0], [0.0, 100.0], [1.0, 100.0]])).constant
        1
    """

    rms: float
    mean: float
    deviations: tuple[float, float] = (math.nan, math.nan)
    constant: int = 0
    nonfinite: int = 0
    outlier: float = 1.0

    @property
    def is_large(self) -> bool:
        """Return True if the values are larger than a network's initialization is made for."""
        return self.rms > LARGE

    def __str__(self) -> str:
        parts = [f"root mean square {self.rms:.3g}, mean {self.mean:.3g}"]
        if not math.isnan(self.deviations[0]):
            parts.append("the features' standard deviations {:.2g} to {:.2g}".format(*self.deviations))
        if self.constant:
            parts.append(f"{self.constant} features constant")
        if self.nonfinite:
            parts.append(f"{self.nonfinite} values NaN or Inf")
        if self.outlier > 10:
            parts.append(f"the largest sample {self.outlier:.3g} times the median one")
        return ", ".join(parts)


def measure(values: Tensor) -> Scale:
    """The scale of a batch, whose samples are along the first dimension.

    Example:
        >>> print(measure(torch.tensor([3.0, -3.0])))
        root mean square 3, mean 0
    """
    values = values.detach().double()
    finite = torch.isfinite(values)
    clean = torch.where(finite, values, 0.0)
    count = max(int(finite.sum()), 1)
    rms, mean = float((clean.square().sum() / count).sqrt()), float(clean.sum() / count)
    return Scale(rms, mean, *_features(clean), nonfinite=int((~finite).sum()), outlier=_outlier(clean))


def _features(values: Tensor) -> tuple[tuple[float, float], int]:
    if values.dim() != 2 or len(values) < 2:
        return (math.nan, math.nan), 0
    deviations = values.std(0)
    varying = deviations[deviations > 0]
    span = (float(varying.min()), float(varying.max())) if len(varying) else (math.nan, math.nan)
    return span, len(deviations) - len(varying)


def _outlier(values: Tensor) -> float:
    if values.dim() < 1 or len(values) < 4 or not values.numel():
        return 1.0
    sizes = values.flatten(1).square().mean(1).sqrt() if values.dim() > 1 else values.abs()
    median = float(sizes.median())
    return float(sizes.max()) / median if median > 0 else 1.0


_CLOSED = 1e-2  # LayerScale starts at 1e-4 to 1e-6 (Touvron et al., Going deeper with Image Transformers, 2021)
_MOST_ROWS = 4096  # a pair of equal rows shows in fewer; an embedding may have millions


class Recorder:
    """Records the first pass of a module; its hooks stay on that module, which is a copy that is thrown away.

    Attributes:
        first: name of the first layer with weights, and the floating-point tensor it got; None where it got none (an
            embedding), or normalizes.
        spreads: layer -> how wide its weights are drawn.
        called: the layers with weights that were called.
        zeros: parameters that are all zero, or gates that are constant and tiny (LayerScale), and get a gradient: the
            first steps move them.
        stuck: weights that are all zero, and so are their gradients.
        foreign: shapes of parameters that the loss depends on and that no module has, kept in a plain list, say.
        copies: weights whose rows are all equal, and so are their gradients.
        largest, tiny: the largest gradient, and the share of the others that float16 would make zero.

    Example:
        >>> model, recorder = nn.Linear(2, 1), Recorder()
        >>> recorder.listen(model)
        >>> recorder.before_backward(model(torch.ones(4, 2)).sum())
        >>> recorder.first[0], recorder.first[1].shape
        ('(root)', torch.Size([4, 2]))
    """

    def __init__(self) -> None:
        self.first: tuple[str, Tensor] | None = None
        self.head = Head()
        self.spreads: dict[str, Spread] = {}
        self.called: set[str] = set()
        self.zeros: list[str] = []
        self.stuck: list[str] = []
        self.copies: list[str] = []
        self.foreign: list[tuple[int, ...]] = []
        self.largest, self.tiny = 0.0, 0.0
        self._reached: dict[int, tuple[int, ...]] = {}
        self._is_done = False

    def listen(self, module: nn.Module) -> None:
        """Put hooks in front of the layers."""
        layers = find_layers(module)
        self.spreads = spreads(layers)
        for name, layer in layers.items():
            if any(True for _ in layer.parameters(recurse=False)):
                # A hook of gradwatch's, which changes nothing in place: so the time steps of an LSTM are still read.
                layer.register_forward_pre_hook(ModuleHook(self._note, name), with_kwargs=True)

    def _note(self, name: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
        if not self.called and not is_normalization(layer):
            given = [tensor for tensor in tensors_in((args, kwargs)) if tensor.is_floating_point()]
            self.first = (name, given[0].detach().clone()) if given else None
        self.called.add(name)

    def before_backward(self, loss: Tensor) -> None:
        """Look at the graph of a loss."""
        if loss.grad_fn is not None and not self._is_done:
            self.head = read_head(loss)
            self._reached = {id(param): tuple(param.shape) for param in params_of(loss)}

    def after_backward(self, module: nn.Module) -> None:
        """Look at the gradients."""
        if self._is_done:
            return
        self._is_done = True
        own = {id(param) for param in module.parameters()}
        self.foreign = [shape for number, shape in self._reached.items() if number not in own]
        held = [(name, param, param.grad) for name, param in module.named_parameters()]
        named = [(plain_name(name), param.detach(), grad.detach()) for name, param, grad in held if grad is not None]
        self.zeros = [name for name, param, grad in named if _starts_closed(param) and grad.any()]
        self.stuck = [name for name, param, grad in named if param.dim() > 1 and not (param.any() or grad.any())]
        self.copies = [name for name, param, grad in named if _is_copied(param, grad)]
        self.largest, self.tiny = _range(grad for _, _, grad in named)


def _starts_closed(param: Tensor) -> bool:
    """Return True if a parameter starts at zero, or is a gate that starts near it."""
    if not param.any():
        return True
    is_gate = param.numel() == max(param.shape, default=1) and bool((param == param.flatten()[0]).all())
    return is_gate and float(param.abs().max()) <= _CLOSED


def _is_copied(param: Tensor, grad: Tensor) -> bool:
    if param.dim() < 2 or param.shape[0] < 2 or param.shape[1] < 2 or grad.is_sparse:
        return False
    weight, grad = (values.flatten(1)[:_MOST_ROWS] for values in (param, grad))
    moves = bool(grad.any()) and bool(weight.any())
    return moves and bool((weight == weight[0]).all()) and torch.allclose(grad, grad[:1].expand_as(grad), rtol=1e-4)


def _range(grads: Iterable[Tensor]) -> tuple[float, float]:
    smallest = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps
    largest, tiny, count = 0.0, 0, 0
    for grad in grads:
        sizes = (grad.coalesce().values() if grad.is_sparse else grad).abs()
        largest = max(largest, float(sizes.max()) if sizes.numel() else 0.0)
        tiny += int(((sizes > 0) & (sizes < smallest / 2)).sum())
        count += int((sizes > 0).sum())
    return largest, tiny / max(count, 1)


class FirstPass(Evidence):
    """The evidence of one pass, or of a short training, with what was recorded of its first pass."""

    def __init__(self, run: Run, recorder: Recorder, batch: Any) -> None:
        super().__init__(run.findings, run.history)
        self.run, self.recorder, self.batch = run, recorder, batch

    @cached_property
    def inputs(self) -> Scale | None:
        """The scale of the input of the first layer with weights; None where there is none to measure."""
        return None if self.recorder.first is None else measure(self.recorder.first[1])

    @cached_property
    def target(self) -> Tensor | None:
        """The target of a loss that measures a distance, or the second half of a batch, if it is no label."""
        if self.recorder.head.distance is not None:
            return self.recorder.head.distance[1]
        pair = self.batch if isinstance(self.batch, (tuple, list)) and len(self.batch) == 2 else (None, None)
        is_score = isinstance(pair[1], Tensor) and pair[1].is_floating_point() and self.recorder.head.binary is None
        return pair[1] if is_score else None

    @property
    def input_in_words(self) -> str:
        """The input of the first layer, in a sentence."""
        return f"The input of {self.recorder.first[0]}: {self.inputs}." if self.recorder.first else ""
