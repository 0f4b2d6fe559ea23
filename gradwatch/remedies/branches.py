"""A remedy that scales the branches of residual sums, and the search for them in a forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradwatch.layer_kinds import is_normalization
from gradwatch.remedies.remedy import ModelRemedy, NotApplicable, NothingToChange, Setup, copy_of
from gradwatch.remedies.surgery import path_of, replace_module
from gradwatch.remedies.tracing import outcome_of

_SUMS = {"add", "add_", "__add__", "__iadd__", "__radd__"}
_MANY = 4  # sums from which branches of full size add up to much: each doubles the variance (by judgement)
_FAR = 10_000  # nodes of autograd's graph that are looked at for one sum


class ScaledBranch(nn.Module):
    """Multiplies a part's output by a fixed factor, or the first output of several.

    Example:
        >>> ScaledBranch(nn.Identity(), 0.5)(torch.tensor([2.0])).item()
        1.0
    """

    def __init__(self, part: nn.Module, factor: float) -> None:
        super().__init__()
        self.part, self.factor = part, factor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the part's output times the factor."""
        output = self.part(*args, **kwargs)
        return (self.factor * output[0], *output[1:]) if isinstance(output, tuple) else self.factor * output

    def extra_repr(self) -> str:
        """Return the factor."""
        return f"factor={self.factor}"


@dataclass(frozen=True)
class ScaleBranches(ModelRemedy):
    """Multiply each branch of ``n`` residual sums by one over the root of ``n``, in a network without normalization.

    Each sum with a branch of full size doubles the variance of the signal and of the gradient. With the factor they
    grow by at most e over all sums together.

    Example:
        >>> class Sums(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
        ...     def forward(self, x):
        ...         for block in self.blocks:
        ...             x = x + block(x)
        ...         return x
        >>> setup = Setup(Sums(), batch=torch.ones(1, 2))
        >>> ScaleBranches().apply(setup).module.blocks[3].factor
        0.5
        >>> print(ScaleBranches().patch(setup).splitlines()[1])
        model.blocks[0] = ScaledBranch(model.blocks[0], 0.5)

    References: Zhang, Dauphin, Ma, Fixup initialization, 2019, https://arxiv.org/abs/1901.09321; De and Smith, Batch
    normalization biases residual blocks towards the identity function, 2020, https://arxiv.org/abs/2002.10444.
    """

    def change(self, setup: Setup) -> Setup:
        """Wrap the branches."""
        names = self._branches(setup)
        for name in names:
            replace_module(setup.module, name, ScaledBranch(setup.module.get_submodule(name), _factor(names)))
        return setup

    def patch(self, setup: Setup) -> str:
        """Return one line a branch."""
        names = self._branches(setup)
        paths = [path_of(setup.module, name) for name in names]
        lines = [f"{path} = ScaledBranch({path}, {_factor(names)})" for path in paths]
        return "\n".join(["from gradwatch.remedies import ScaledBranch", *lines])

    def code(self, module: nn.Module) -> str:
        """Return what to write, as only a pass shows the sums."""
        return "# x = x + n ** -0.5 * block(x)  # with n such sums"

    def _branches(self, setup: Setup) -> list[str]:
        if setup.batch is None:
            raise NotApplicable("only a pass shows the residual sums; give a batch: Setup(module, batch=batch)")
        found = [] if any(map(is_normalization, setup.module.modules())) else residual_branches(setup)
        if len(found) < _MANY:
            raise NothingToChange(f"{type(setup.module).__name__} has no {_MANY} residual sums without normalization")
        return found


def _factor(names: list[str]) -> float:
    return float(f"{len(names) ** -0.5:.3g}")


def residual_branches(setup: Setup) -> list[str]:
    """Return the names of the parts whose output is added to what they got, or to what comes before it.

    Example:
        >>> from gradwatch.remedies import Skip
        >>> residual_branches(Setup(nn.Sequential(nn.Linear(2, 2), Skip(nn.Linear(2, 2))), batch=torch.ones(1, 2)))
        ['1.part']
    """
    module = copy_of(setup.module)
    sums = _Sums()
    for name, part in module.named_modules():
        if name:
            part.register_forward_hook(sums.outputs_of(name))
    with torch.enable_grad(), sums:
        outcome_of(module, setup.batch)
    return list(dict.fromkeys(sums.branches))


class _Sums(TorchFunctionMode):
    """Records the sums of a part's output with what that part was computed from."""

    def __init__(self) -> None:
        super().__init__()
        self.branches: list[str] = []
        # The output is kept too, so that its id stays its own.
        self._made: dict[int, tuple[str, Tensor, tuple[Any, ...]]] = {}

    def outputs_of(self, name: str) -> Any:
        """Return a hook that keeps a part's output; the outermost part of those with the same output comes last."""

        def keep(part: nn.Module, args: Any, output: Any) -> None:
            made = output[0] if isinstance(output, tuple) and output else output
            if isinstance(made, Tensor) and any(True for _ in part.parameters()):
                self._made[id(made)] = name, made, args

        return keep

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function; of a sum, keep the branch."""
        if getattr(func, "__name__", "") in _SUMS and len(args) > 1 and all(isinstance(a, Tensor) for a in args[:2]):
            for branch, other in (args[:2], args[1::-1]):
                name, _, given = self._made.get(id(branch), ("", branch, ()))
                is_one = bool(name) and branch.shape == other.shape
                if is_one and (any(arg is other for arg in given) or _comes_from(branch, other)):
                    self.branches.append(name)
                    break
        return func(*args, **(kwargs or {}))


def _comes_from(branch: Tensor, other: Tensor) -> bool:
    """Return True if a tensor was computed from another one, by autograd's graph."""
    wanted, waiting, seen = other.grad_fn, [branch.grad_fn], set[Any]()
    while wanted is not None and waiting and len(seen) < _FAR:
        node = waiting.pop()
        if node is wanted:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [inner for inner, _ in node.next_functions]
    return False
