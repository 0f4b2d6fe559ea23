"""A remedy that adds skip connections around blocks whose output has the shape of their input."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch.layer_kinds import (
    is_activation,
    is_convolution,
    is_dropout,
    is_gated_linear,
    is_normalization,
    is_weighted,
)
from gradwatch.remedies.remedy import ModelRemedy, NotApplicable, Setup, copy_of
from gradwatch.remedies.surgery import is_inside, path_of, replace_module
from gradwatch.remedies.tracing import inputs_of_parts
from gradwatch.short_runs.sandbox import kept_randomness


class Skip(nn.Module):
    """Adds a part's input to its output, so that the gradient also bypasses the part.

    Example:
        >>> Skip(nn.Identity())(Tensor([2.0])).item()
        4.0
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        """Return the input plus the part's output."""
        output: Tensor = x + self.part(x)
        return output


@dataclass(frozen=True)
class AddSkips(ModelRemedy):
    """Add a skip connection around each hidden block whose output has the shape of its input.

    A block is a Sequential of one or more layers and an activation, or such a row within a flat Sequential; with a
    batch also each of several parts of one class of your own, such as the blocks of a transformer. Past each
    block a gradient then has a path of gain 1. The signal grows with every block: with many of them, insert
    normalization layers too. The function that the network computes changes, so train it from the start.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> print(AddSkips().code(network))
        from gradwatch.remedies import Skip
        model[2], model[3] = Skip(nn.Sequential(model[2], model[3])), nn.Identity()

    References: He, Zhang, Ren, Sun, Deep residual learning, 2015, https://arxiv.org/abs/1512.03385.
    """

    def change(self, setup: Setup) -> Setup:
        """Wrap the blocks."""
        root = setup.module
        blocks, rows = self._blocks(setup)
        for name in blocks:
            replace_module(root, name, Skip(root.get_submodule(name)))
        for owner, start, end in rows:
            sequence: Any = root.get_submodule(owner)
            inner = nn.Sequential(*sequence[start : end + 1]).train(sequence.training)
            sequence[start] = Skip(inner).train(sequence.training)
            # Identities keep the index, and so the name, of every later layer.
            for index in range(start + 1, end + 1):
                sequence[index] = nn.Identity().train(sequence.training)
        return setup

    def patch(self, setup: Setup) -> str:
        """Return one line a block."""
        blocks, rows = self._blocks(setup)
        lines = ["from gradwatch.remedies import Skip"]
        for name in blocks:
            lines.append(f"{path_of(setup.module, name)} = Skip({path_of(setup.module, name)})")
        for owner, start, end in rows:
            parts = [f"{path_of(setup.module, owner)}[{index}]" for index in range(start, end + 1)]
            rest = ", nn.Identity()" * (end - start)
            lines.append(f"{', '.join(parts)} = Skip(nn.Sequential({', '.join(parts)})){rest}")
        return "\n".join(lines)

    def _blocks(self, setup: Setup) -> tuple[list[str], list[tuple[str, int, int]]]:
        blocks, rows = _find_blocks(setup)
        if not blocks and not rows:
            raise NotApplicable(
                f"{type(setup.module).__name__} has no block whose output has the shape of its input (a Sequential of "
                "a Linear or convolution and an activation); write x = x + block(x) in forward"
            )
        return blocks, rows


def possible_skips(setup: Setup) -> list[tuple[str, ...]]:
    """Return the names of the parts that each possible skip connection would go around.

    Example:
        >>> possible_skips(Setup(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())))
        [('2', '3')]
    """
    blocks, rows = _find_blocks(setup)
    within = [tuple(f"{owner}.{i}".removeprefix(".") for i in range(start, end + 1)) for owner, start, end in rows]
    return [*((name,) for name in blocks), *within]


def _find_blocks(setup: Setup) -> tuple[list[str], list[tuple[str, int, int]]]:
    """Return the names of blocks, and rows within flat Sequentials as (name, first index, last index)."""
    root, own = setup.module, _own_parts(setup)
    if own:
        return own, []
    sequences = {
        name: part
        for name, part in root.named_modules()
        if isinstance(part, nn.Sequential) and not is_inside(root, name, (Skip,))
    }
    blocks = [name for name, part in sequences.items() if name and _rows(part) == [(0, len(part) - 1)]]
    rows = [(name, *row) for name, part in sequences.items() if name not in blocks for row in _rows(part)]
    return blocks, rows


def _own_parts(setup: Setup) -> list[str]:
    """Return the names of parts of the user's own, several of a class in a row, that nothing goes around."""
    rows = [part for part in setup.module.modules() if isinstance(part, (nn.Sequential, nn.ModuleList))]
    kinds = [Counter(map(type, row)) for row in rows]
    repeated = {part for row, count in zip(rows, kinds, strict=True) for part in row if count[type(part)] > 1}
    users = {part for part in repeated if not type(part).__module__.startswith("torch.")}
    own = {name: part for name, part in setup.module.named_modules() if part in users}
    calls = inputs_of_parts(setup, own) if own and setup.batch is not None else {}
    return [name for name, (given, made) in calls.items() if given.shape == made.shape and _stops(own[name], given)]


def _stops(part: nn.Module, given: Tensor) -> bool:
    """Return True if a part without its weights gives the same for any input: no path goes around them."""
    if not given.is_floating_point():
        return False
    with suppress(Exception), torch.no_grad(), kept_randomness():  # the part is the user's code
        bare = copy_of(part).eval()
        for weight in [param for param in bare.parameters() if param.dim() > 1]:
            weight.zero_()
        return bool(torch.equal(bare(given), bare(1 - 2 * given)))
    return False


def _rows(sequence: nn.Sequential) -> list[tuple[int, int]]:
    """Return the ranges from a weighted layer to the last activation before the next one that keep the shape."""
    parts = list(sequence)
    starts = [index for index, part in enumerate(parts) if any(map(is_weighted, part.modules()))]
    rows = []
    for start, end in pairwise([*starts, len(parts)]):
        ends = [index for index in range(start, end) if is_activation(parts[index])]
        if ends and all(_keeps_shape(part) for part in parts[start : ends[-1] + 1]):
            rows.append((start, ends[-1]))
    return rows


def _keeps_shape(part: Any) -> bool:
    if isinstance(part, nn.Linear):
        return part.in_features == part.out_features
    if is_convolution(part):
        return part.in_channels == part.out_channels and not part.transposed and _keeps_extent(part)
    if isinstance(part, nn.Sequential):
        return all(_keeps_shape(inner) for inner in part)
    is_keeping = is_normalization(part) or is_dropout(part) or isinstance(part, nn.Identity)
    return is_keeping or (is_activation(part) and not is_gated_linear(part))


def _keeps_extent(conv: Any) -> bool:
    if any(step != 1 for step in conv.stride):
        return False
    if isinstance(conv.padding, str):
        return conv.padding == "same"
    sizes = zip(conv.kernel_size, conv.dilation, conv.padding, strict=True)
    return all(2 * padding == dilation * (kernel - 1) for kernel, dilation, padding in sizes)
