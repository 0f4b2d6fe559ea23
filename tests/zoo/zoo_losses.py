"""Losses that are no use to the model, and steps that end with an error."""

from __future__ import annotations

from torch import Tensor, nn
from zoo import loss_of, mean_square


@loss_of()
def loss_that_ignores_the_model(model: nn.Module, batch: Tensor) -> Tensor:
    model(batch)
    return sum(param.square().sum() for param in model.parameters())


@loss_of()
def loss_of_zero(model: nn.Module, batch: Tensor) -> Tensor:
    return mean_square(model, batch) * 0


@loss_of()
def loss_that_is_no_number(model: nn.Module, batch: Tensor) -> Tensor:
    return mean_square(model, batch) * float("nan")


@loss_of(error="does not require grad")
def loss_without_a_gradient(model: nn.Module, batch: Tensor) -> Tensor:
    return mean_square(model, batch).detach()


@loss_of(error="modified by an inplace operation")
def tensor_changed_that_the_backward_pass_needs(model: nn.Module, batch: Tensor) -> Tensor:
    states = model[:2](batch)
    loss = model[2:](states).square().mean() + states.square().mean()
    states.detach().add_(1)
    return loss


@loss_of(error="mat1 and mat2 shapes cannot be multiplied")
def error_in_the_forward_pass(model: nn.Module, batch: Tensor) -> Tensor:
    model(batch).square().mean()
    return model(batch[:, 1:])


@loss_of()
def error_in_the_forward_pass_that_is_caught(model: nn.Module, batch: Tensor) -> Tensor:
    try:
        model(batch[:, 1:])
    except RuntimeError:
        return mean_square(model, batch)
    raise AssertionError("no error")
