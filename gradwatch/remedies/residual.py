"""Skip connections around parts that put out what fits their input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor, nn

from gradwatch.layer_kinds import (
    is_activation,
    is_convolution,
    is_dropout,
    is_gated_linear,
    is_normalization,
    is_weighted,
)
from gradwatch.remedies.remedy import ModelRemedy, NotApplicable, Setup
from gradwatch.remedies.surgery import is_inside, path_of, replace_module


class Skip(nn.Module):
    """Adds a part's input to its output: the gradient has a way past it.

    Example:
        >>> Skip(nn.Identity())(Tensor([2.0])).item()
        4.0
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        """The input plus what the part makes of it."""
        output: Tensor = x + self.part(x)
        return output


@dataclass(frozen=True)
class AddSkips(ModelRemedy):
    """Put a skip connection around each hidden block whose output has the shape of its input.

    A block is a Sequential of one or more layers and an activation, or such a row within a flat Sequential. The
    gradient of each then has a part of gain 1, whatever the block does. With many blocks signals add up: put
    normalization layers in, too.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> print(AddSkips().code(network))
        from gradwatch.remedies import Skip
        model[2], model[3] = Skip(nn.Sequential(model[2], model[3])), nn.Identity()

    References: He, Zhang, Ren, Sun, Deep residual learning, 2015, https://arxiv.org/abs/1512.03385.
    """

    fits: ClassVar[Mapping[str, float]] = {
        "missing normalization or skip": 1.0,
        "saturating activation": 0.6,
        "initialization too small": 0.6,
    }

    def change(self, setup: Setup) -> Setup:
        """Wrap the blocks."""
        root = setup.module
        blocks, rows = _places(root)
        for name in blocks:
            replace_module(root, name, Skip(root.get_submodule(name)))
        for owner, start, end in rows:
            sequence: Any = root.get_submodule(owner)
            inner = nn.Sequential(*sequence[start : end + 1]).train(sequence.training)
            sequence[start] = Skip(inner).train(sequence.training)
            for index in range(start + 1, end + 1):
                sequence[index] = nn.Identity().train(sequence.training)
        return setup

    def patch(self, setup: Setup) -> str:
        """One line a block."""
        blocks, rows = _places(setup.module)
        lines = ["from gradwatch.remedies import Skip"]
        for name in blocks:
            lines.append(f"{path_of(setup.module, name)} = Skip({path_of(setup.module, name)})")
        for owner, start, end in rows:
            parts = [f"{path_of(setup.module, owner)}[{index}]" for index in range(start, end + 1)]
            rest = ", nn.Identity()" * (end - start)
            lines.append(f"{', '.join(parts)} = Skip(nn.Sequential({', '.join(parts)})){rest}")
        return "\n".join(lines)


def count_skips(root: nn.Module) -> int:
    """How many blocks a skip connection could go around.

    Example:
        >>> count_skips(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh()))
        1
    """
    try:
        blocks, rows = _places(root)
    except NotApplicable:
        return 0
    return len(blocks) + len(rows)


def _places(root: nn.Module) -> tuple[list[str], list[tuple[str, int, int]]]:
    """Names of the blocks, and rows of flat Sequentials as (name, first, last)."""
    sequences = {
        name: part
        for name, part in root.named_modules()
        if isinstance(part, nn.Sequential) and not is_inside(root, name, (Skip,))
    }
    blocks = [name for name, part in sequences.items() if name and _is_block(part)]
    rows = [(name, *row) for name, part in sequences.items() if name not in blocks for row in _rows(part)]
    if not blocks and not rows:
        raise NotApplicable(
            f"{type(root).__name__} has no block whose output has the shape of its input (a Sequential of a Linear or "
            "convolution and an activation); write x = x + block(x) in forward"
        )
    return blocks, rows


def _is_block(part: nn.Sequential) -> bool:
    """One row from end to end."""
    return _rows(part) == [(0, len(part) - 1)]


def _rows(sequence: nn.Sequential) -> list[tuple[int, int]]:
    """Stretches from a weighted layer to the last activation before the next one, where the shape is kept."""
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
