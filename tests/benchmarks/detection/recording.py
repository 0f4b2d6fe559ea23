"""The numbers that published rules read: kernels' gradients, activations and updates of every step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

KERNEL = 2  # dimensions at least; biases and norms' scales are no kernels


@dataclass
class Step:
    """One optimizer step, as numbers by parameter or module, in the network's order.

    Attributes:
        index: of the step.
        loss: of the step.
        total_norm: L2 norm of all gradients.
        grad_norm, grad_mean, grad_zeros: norm, mean of the absolute values and share of zeros of kernels' gradients.
        weight_variance, update: variance of each kernel, and the mean absolute update over the mean absolute weight.
        idle: module -> share of a ReLU's units that are active for less than 1 % of the samples.
        below: module -> share of an activation's outputs that are not above zero.
        beyond_5, beyond_9: module -> share of a bounded activation's inputs beyond 5, and beyond 9.5.
        spread: module -> deviation of an activation's output.
    """

    index: int
    loss: float = 0.0
    total_norm: float = 0.0
    grad_norm: dict[str, float] = field(default_factory=dict)
    grad_mean: dict[str, float] = field(default_factory=dict)
    grad_zeros: dict[str, float] = field(default_factory=dict)
    weight_variance: dict[str, float] = field(default_factory=dict)
    update: dict[str, float] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)
    below: dict[str, float] = field(default_factory=dict)
    beyond_5: dict[str, float] = field(default_factory=dict)
    beyond_9: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)


BOUNDED = (nn.Sigmoid, nn.Tanh, nn.Hardsigmoid)
ACTIVATIONS = (*BOUNDED, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.SELU, nn.GELU, nn.ELU)


class Recording:
    """An observer that reads every step and hands it on.

    Args:
        network: to train.
        on_step: is called with each Step.
    """

    def __init__(self, network: nn.Module, on_step: Any) -> None:
        self.kernels = {name: p for name, p in network.named_parameters() if p.dim() >= KERNEL and p.requires_grad}
        self.on_step, self.step, self._before = on_step, Step(-1), dict[str, Tensor]()
        self._hooks = [
            module.register_forward_hook(self._activation(name))
            for name, module in network.named_modules()
            if isinstance(module, ACTIVATIONS)
        ]

    def _activation(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not module.training or name in self.step.spread:  # only the first call of a step is read
                return
            out, before = output.detach().float(), inputs[0].detach().float()
            self.step.spread[name] = float(out.std(correction=0))
            self.step.below[name] = float((out <= 0).float().mean())
            if isinstance(module, nn.ReLU):
                self.step.idle[name] = float(((out > 0).float().mean(0) < 0.01).float().mean())
            if isinstance(module, BOUNDED):
                self.step.beyond_5[name] = float((before.abs() > 5).float().mean())
                self.step.beyond_9[name] = float((before.abs() > 9.5).float().mean())

        return hook

    def begin(self) -> None:
        self.step = Step(self.step.index + 1)

    def read(self, optimizer: Optimizer) -> None:
        step, squares = self.step, 0.0
        for group in optimizer.param_groups:
            squares += sum(float(_dense(p.grad).square().sum()) for p in group["params"] if p.grad is not None)
        step.total_norm = squares**0.5
        for name, param in self.kernels.items():
            if param.grad is not None:
                grad = _dense(param.grad)
                step.grad_norm[name] = float(grad.norm())
                step.grad_mean[name] = float(grad.abs().mean())
                step.grad_zeros[name] = float((grad == 0).float().mean())
            step.weight_variance[name] = float(param.detach().var(correction=0))
        self._before = {name: param.detach().clone() for name, param in self.kernels.items()}

    def end(self, loss: float, *, skipped: bool) -> None:
        self.step.loss = loss
        for name, param in self.kernels.items():
            size = float(self._before[name].abs().mean())
            change = float((param.detach() - self._before[name]).abs().mean())
            self.step.update[name] = change / size if size else float("nan")
        self.on_step(self.step)

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()


def _dense(grad: Tensor) -> Tensor:
    return grad.to_dense() if grad.layout == torch.sparse_coo else grad
