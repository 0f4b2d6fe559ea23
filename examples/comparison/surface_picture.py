"""Gradient descent in front of a cliff, with and without clipping: the simplest recurrent network that has one.

One unit is fed back to itself, ``x <- w sigmoid(x) + b``, for 50 steps from 0.5, and ``sigmoid(x)`` should then be 0.7.
Where it goes to is decided by ``w`` and ``b``; between those that lead it up and those that lead it down is a wall, and
from ``START`` SGD runs into it.

References: R. Pascanu, T. Mikolov and Y. Bengio, On the difficulty of training recurrent neural networks, 2013,
https://arxiv.org/abs/1211.5063, whose figure 6 shows this surface.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from gradwatch.examples.comparison.figures import new_figure, plain
from gradwatch.transforms import ClipByGlobalNorm

STEPS_IN_TIME, TARGET = 50, 0.7
START, LR, MAX_NORM, STEPS = (4.6, -1.4), 1.0, 0.15, 60
W_RANGE, B_RANGE = (3.0, 5.4), (-2.7, -0.9)
PATH, GOAL = "#D55E00", "#009E73"


def output(w: Tensor, b: Tensor) -> Tensor:
    """Return the unit's last output."""
    x = torch.full_like(w, 0.5)
    for _ in range(STEPS_IN_TIME):
        x = w * x.sigmoid() + b
    return x.sigmoid()


def error(w: Tensor, b: Tensor) -> Tensor:
    """Return the squared distance of the last output from its target.

    Example:
        >>> error(torch.tensor(0.0), torch.tensor(0.0))  # sigmoid(0) is 0.5
        tensor(0.0400)
    """
    return (output(w, b) - TARGET) ** 2


@dataclass(frozen=True)
class Path:
    """The path of SGD: its points, with the error and the norm of the unclipped gradient at each."""

    points: list[tuple[float, float]] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)


def descend(clip: ClipByGlobalNorm | None, start: tuple[float, float] = START) -> Path:
    """Return the path of plain SGD on the surface.

    Example:
        >>> descend(None).errors[-1] > 0.05 > 0.01 > descend(ClipByGlobalNorm(MAX_NORM)).errors[-1]
        True
    """
    w, b = (nn.Parameter(torch.tensor(value)) for value in start)
    optimizer = torch.optim.SGD([w, b], lr=LR)
    path = Path()
    for _ in range(STEPS + 1):
        optimizer.zero_grad()
        loss = error(w, b)
        loss.backward()  # type: ignore[no-untyped-call]
        path.points.append((w.item(), b.item()))
        path.errors.append(loss.item())
        path.norms.append(torch.hypot(_gradient(w), _gradient(b)).item())
        if clip is not None:
            clip({"w": w, "b": b})
        optimizer.step()
    return path


def draw() -> Figure:
    """Draw both paths, over the error and the steps that SGD would take elsewhere."""
    figure: Figure = new_figure(14, 6.4)
    left, right = figure.subplots(1, 2, sharey=True)
    clip = ClipByGlobalNorm(MAX_NORM)
    _draw_panel(left, "without clipping", None)
    _draw_panel(right, str(clip), clip)
    left.set_ylabel("b")
    text = "SGD on the error of a recurrent unit (lighter: smaller), and the steps it would take elsewhere (arrows)"
    figure.suptitle(text, x=0.01, ha="left", fontsize=12)
    return figure


def _draw_panel(axes: Axes, title: str, clip: ClipByGlobalNorm | None) -> None:
    plain(axes)
    path = descend(clip)
    w, b = _grid(600, 600)
    axes.contourf(w, b, error(w, b), levels=0.4 * np.linspace(0, 1, 17) ** 2, cmap="Blues", vmax=0.8)
    goal = axes.contour(w, b, output(w, b), levels=[TARGET], colors=GOAL, linestyles="dashed", linewidths=1.2)
    axes.clabel(goal, fmt="no error", fontsize=9, manual=[(3.25, -1.45)])
    _draw_arrows(axes, clip)
    axes.plot(*zip(*path.points, strict=True), "o-", color=PATH, markersize=3, linewidth=1.2)
    axes.set(xlim=W_RANGE, ylim=B_RANGE, xlabel="w")
    axes.set_title(f"{title}: error {path.errors[-1]:.4f} after {STEPS} steps", fontsize=11, loc="left")
    _annotate(axes, path, "" if clip is None else f", clipped to {clip.max_norm}")


def _grid(columns: int, rows: int) -> tuple[Tensor, Tensor]:
    w, b = torch.meshgrid(torch.linspace(*W_RANGE, columns), torch.linspace(*B_RANGE, rows), indexing="xy")
    return w, b


def _draw_arrows(axes: Axes, clip: ClipByGlobalNorm | None) -> None:
    w, b = (each[1:-1, 1:-1].flatten() for each in _grid(18, 12))
    points = nn.Parameter(torch.stack([w, b], -1))
    error(*points.unbind(-1)).sum().backward()  # type: ignore[no-untyped-call]
    gradients = [_gradient(points)] if clip is None else [_clipped(each, clip) for each in _gradient(points)]
    steps = -LR * torch.vstack(gradients)
    look: dict[str, Any] = {"color": "0.35", "angles": "xy", "scale_units": "xy", "width": 0.002, "headwidth": 4}
    axes.quiver(w, b, steps[:, 0], steps[:, 1], scale=1, **look)


def _clipped(gradient: Tensor, clip: ClipByGlobalNorm) -> Tensor:
    param = nn.Parameter(torch.zeros_like(gradient))
    param.grad = gradient.clone()
    clip({"point": param})
    return _gradient(param)


def _gradient(param: nn.Parameter) -> Tensor:
    return torch.zeros_like(param) if param.grad is None else param.grad


def _annotate(axes: Axes, path: Path, clipped: str) -> None:
    steepest = int(np.argmax(path.norms))
    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    note: dict[str, Any] = {"textcoords": "offset points", "fontsize": 9, "bbox": box}
    dotted = {"arrowstyle": "-", "color": "0.5", "linestyle": "dotted"}
    axes.annotate("start", path.points[0], (10, 6), **note)
    text = f"step {steepest}: at the wall the gradient is {path.norms[steepest]:.1f}{clipped}"
    axes.annotate(text, path.points[steepest], (-190, -140), arrowprops=dotted, **note)
    w, b = path.points[-1]
    if not (W_RANGE[0] < w < W_RANGE[1] and B_RANGE[0] < b < B_RANGE[1]):
        text = (
            f"one step later it is at w={w:.1f}, b={b:.1f};\nthere the gradient is {path.norms[-1]:.0e}, and it stays"
        )
        axes.annotate(text, (1, 1), (-10, -24), xycoords="axes fraction", ha="right", va="top", **note)
