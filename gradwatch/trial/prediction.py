"""Prediction of how a remedy changes the gradient's size from the last layer to the first, by gains and theory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import numpy as np
from torch import nn

from gradwatch.layer_kinds import is_linear, is_normalization, weight_outputs_first
from gradwatch.records import Snapshot
from gradwatch.remedies.activation import ReplaceActivations
from gradwatch.remedies.branches import ScaleBranches
from gradwatch.remedies.initialization import InitializeAgain
from gradwatch.remedies.normalization import InsertNormalization, ResetNormalization
from gradwatch.remedies.remedy import Setup
from gradwatch.remedies.residual import AddSkips, possible_skips
from gradwatch.remedies.tracing import Event, events_of, hidden_pairs
from gradwatch.theory import critical_gain, finite_width_deviation, gain_at_depth, normalized_gain


class Flow:
    """The hidden layers that the gradient passes on its way to the first one, and how its size changes there.

    Attributes:
        pairs: each hidden layer with the activation behind it.
        bypassed: number of them that each possible skip connection goes around.
        measured: log10 of the gradient at the first hidden layer's output over that at the last one's.
    """

    def __init__(self, module: nn.Module, history: Sequence[Snapshot] = (), batch: Any = None) -> None:
        self.pairs = hidden_pairs(events_of(module, batch))[:-1]
        spans = possible_skips(Setup(module, batch=batch))
        self.bypassed = [sum(_is_in(layer.name, span) for layer, _ in self.pairs) for span in spans]
        self.measured = _measured(history) if history else self._from_weights()

    @property
    def kinds(self) -> list[str]:
        """The hidden activations' classes."""
        return [after.kind if after else "Identity" for _, after in self.pairs]

    def _from_weights(self) -> float:
        pairs = zip(self.kinds, [_sigma(layer) for layer, _ in self.pairs], strict=True)
        return sum(math.log10(max(gain_at_depth(kind, gain, 1), 1e-30)) for kind, gain in pairs if gain > 0)


def _is_in(name: str, parts: Sequence[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _measured(history: Sequence[Snapshot]) -> float:
    """Measure the first Snapshot with a gradient in two hidden layers: training with a remedy starts there again."""
    for snapshot in history:
        is_layer = np.array([not is_normalization(kind) for kind in snapshot.kinds], bool) & (snapshot.weight_norm >= 0)
        # Without the head: it has few outputs, and its gradient is near the loss whatever the depth is.
        norms = snapshot.grad_output_rms[is_layer][:-1]
        norms = norms[(norms > 0) & np.isfinite(norms)]
        if len(norms) > 1:
            return float(np.log10(norms[0] / norms[-1]))
    return 0.0


def _sigma(layer: Event) -> float:
    weight: Any = weight_outputs_first(layer.module)
    if weight is None or weight.dim() < 2 or weight.numel() < 2:
        return 0.0
    return float(weight.detach().float().std()) * math.sqrt(weight[0].numel())


def health(flow: float) -> float:
    """Rate a gradient that changes by ``flow`` powers of ten: 1 trains the first layers well, 0 not at all.

    Example:
        >>> health(0.0), health(-2.0), health(2.0), round(health(-6.0), 1)
        (1.0, 0.5, 0.8, 0.1)
    """
    return 1 / (1 + (flow / (2 if flow < 0 else 4)) ** 2)  # a gradient that grows does less harm


@singledispatch
def predicted_flow(remedy: Any, flow: Flow) -> float:
    """Return the powers of ten by which the gradient changes from the last layer to the first, with the remedy.

    A remedy that does not change the network is expected to change nothing.
    """
    return flow.measured


@predicted_flow.register
def _(remedy: ReplaceActivations, flow: Flow) -> float:
    replaced = sum(kind in remedy.kinds for kind in flow.kinds)
    if not replaced:
        return flow.measured
    left = flow.measured * (1 - replaced / len(flow.kinds))
    gain = gain_at_depth(remedy.to, critical_gain(remedy.to), replaced)
    spread = finite_width_deviation(_widths(flow)) if "ReLU" in remedy.to else 0.0
    return left + replaced * math.log10(gain) - spread


@predicted_flow.register
def _(remedy: InitializeAgain, flow: Flow) -> float:
    kinds = flow.kinds
    gains = [gain_at_depth(kind, critical_gain(kind), len(kinds)) for kind in kinds]
    spread = finite_width_deviation(_widths(flow)) if "ReLU" in kinds and remedy.scheme != "orthogonal" else 0.0
    return sum(map(math.log10, gains)) - spread


@predicted_flow.register
def _(remedy: InsertNormalization, flow: Flow) -> float:
    gains = (
        normalized_gain(kind, centered=_over_batch(remedy, layer))
        for kind, (layer, _) in zip(flow.kinds, flow.pairs, strict=True)
    )
    return sum(map(math.log10, gains))


@predicted_flow.register
def _(remedy: ResetNormalization, flow: Flow) -> float:
    return 0.0  # with weights of 1 a normalization keeps the gradient's size


@predicted_flow.register
def _(remedy: ScaleBranches, flow: Flow) -> float:
    return 0.0  # the sums' branches add a gradient of at most their number times 1 / their number


@predicted_flow.register
def _(remedy: AddSkips, flow: Flow) -> float:
    layers = max(len(flow.pairs) - 1, 1)  # the first hidden layer is not passed: its output is where the way ends
    branch, left = flow.measured / layers, layers - sum(flow.bypassed)
    # A skip adds a gradient of factor 1 to the branch's; independent, their squares add up.
    sums = (0.5 * math.log10(1 + 10 ** (2 * min(branch * count, 6.0))) for count in flow.bypassed)
    return branch * max(left, 0) + sum(sums)


def _over_batch(remedy: InsertNormalization, layer: Event) -> bool:
    return remedy.kind == "batch" or (remedy.kind == "auto" and not is_linear(layer.module))


def _widths(flow: Flow) -> list[int]:
    weights: list[Any] = [weight_outputs_first(layer.module) for layer, _ in flow.pairs]
    return [weight[0].numel() for weight in weights if weight is not None and weight.dim() > 1]
