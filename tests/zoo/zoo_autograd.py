"""The corners of autograd: custom functions, hooks on nodes, in-place changes, second derivatives."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge, register_multi_grad_hook
from zoo import WIDTH, Scale, has_columns, loss_of, mean_square, mlp, module, part

FIRST = has_columns("grad_norm", "grad_output_norm", "output_rms", layer="0")


class Nones(Function):
    """Has no gradient for one of its inputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        return x * 2 + weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * 2, None


class Marked(Function):
    """Its second output is not differentiable, its gradients are not made up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        ranks = x.argsort(-1).to(x.dtype)
        ctx.mark_non_differentiable(ranks)
        ctx.set_materialize_grads(False)
        return ranks, x * 2, x * 3

    @staticmethod
    def backward(ctx: Any, ranks: Any, grad: Any, unused: Any) -> Any:
        assert ranks is None
        return grad * 2 if unused is None else grad * 2 + unused * 3


class Once(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * x.cos()


class Dirty(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


class InPlaceGradient(Function):
    """Changes the gradient that it is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.mul_(0.5)


@part()
class FunctionWithoutAGradientForItsWeight(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return Nones.apply(x, self.weight)


@part(take=lambda out: out[1], expect=has_columns("grad_output_norm", "output_rms"))
class FunctionWhoseFirstOutputHasNoGradient(Scale):
    def forward(self, x: Tensor) -> Any:
        return Marked.apply(x * self.weight)


@part()
class FunctionThatIsDifferentiableOnce(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(x * self.weight)


@part()
class FunctionThatChangesItsInput(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return Dirty.apply(x * self.weight)


@part()
class FunctionThatChangesItsGradient(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return InPlaceGradient.apply(x * self.weight)


@part(take=lambda out: out.mul_(2).add_(1))
class OutputChangedInPlace(Scale):
    pass


def changed_through_a_view(out: Tensor) -> Tensor:
    out[:, :3].zero_()
    return out


@part(take=changed_through_a_view)
class OutputChangedThroughAView(Scale):
    pass


@part()
class InputChangedInPlaceBehindTheLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Scale()

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x + 1)
        out += x
        out.view(-1)[::2].neg_()
        return out


@part()
class OutputDetachedInPlace(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).detach_().requires_grad_()


@part()
class PartsInInferenceMode(Scale):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            scale = torch.ones(WIDTH) * 2
        return x * self.weight + scale.clone()


@module()
class ViewChangedInPlaceWithoutGradients(nn.Module):
    """Autograd refuses to say where such a view comes from."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        with torch.no_grad():
            self.relu(x[:2])
        return self.last(x)


class NoGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.student = mlp(), mlp()

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            target = self.teacher(x)
        return self.student(x) - target.clone()


@module()
def teacher_in_inference_mode() -> nn.Module:
    return NoGrad()


@module()
class OutputIsAnInferenceTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            states = self.frozen(x)
        return self.head(states.clone())


@module()
class GradientsSwitchedOnInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.inner(x)
            with torch.enable_grad():
                return self.head(self.inner(x))


@loss_of(expect=FIRST)
def node_hooks(model: nn.Module, batch: Tensor) -> Tensor:
    out = model(batch)
    out.grad_fn.register_hook(lambda inputs, outputs: None)
    out.grad_fn.register_prehook(lambda outputs: tuple(grad * 0.5 for grad in outputs))
    return out.square().mean()


@loss_of(expect=FIRST)
def hooks_of_many_gradients(model: nn.Module, batch: Tensor) -> Tensor:
    out = model(batch)
    register_multi_grad_hook([out, *model.parameters()], lambda grads: None)
    register_multi_grad_hook([out], lambda grad: None, mode="any")
    return out.square().mean()


@loss_of(expect=FIRST)
def retained_gradients(model: nn.Module, batch: Tensor) -> Tensor:
    out = model[0](batch)
    out.retain_grad()
    last = model[1:](out)
    last.retain_grad()
    loss = last.square().mean()
    loss.backward(retain_graph=True)
    assert out.grad is not None
    return loss * out.grad.norm().detach()


@loss_of(expect=FIRST)
def gradient_hooks_that_replace(model: nn.Module, batch: Tensor) -> Tensor:
    out = model[0](batch)
    out.register_hook(lambda grad: grad * 2)
    out.register_hook(lambda grad: grad.clamp(-0.1, 0.1))
    return model[1:](out).square().mean()


@loss_of(expect=FIRST)
def hooks_on_accumulated_gradients(model: nn.Module, batch: Tensor) -> Tensor:
    def halve(param: Tensor) -> None:
        param.grad.mul_(0.5)

    if not model[0].weight._post_accumulate_grad_hooks:
        model[0].weight.register_post_accumulate_grad_hook(halve)
    return model(batch).square().mean()


@loss_of(expect=FIRST)
def gradients_clipped_in_hooks(model: nn.Module, batch: Tensor) -> Tensor:
    for param in model.parameters():
        if not param._backward_hooks:
            param.register_hook(lambda grad: grad.clamp(-0.01, 0.01))
    return mean_square(model, batch)


@loss_of(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2)), expect=FIRST)
def gradient_penalty(model: nn.Module, batch: Tensor) -> Tensor:
    x = batch.requires_grad_()
    out = model(x)
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return out.square().mean() + (slope.norm(dim=1) - 1).square().mean()


@loss_of(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2)), expect=FIRST)
def penalty_on_the_parameters_gradients(model: nn.Module, batch: Tensor) -> Tensor:
    loss = mean_square(model, batch)
    grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    return loss + sum(grad.square().sum() for grad in grads)


@loss_of(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2)), expect=FIRST)
def backward_pass_that_makes_a_graph(model: nn.Module, batch: Tensor) -> Tensor:
    loss = mean_square(model, batch)
    loss.backward(create_graph=True)
    penalty = sum(param.grad.square().sum() for param in model.parameters())
    model.zero_grad()
    return penalty


@loss_of(expect=FIRST)
def several_backward_passes(model: nn.Module, batch: Tensor) -> Tensor:
    loss = mean_square(model, batch)
    loss.backward(retain_graph=True)
    (loss * 0.5).backward(retain_graph=True)
    return loss


@loss_of()
def backward_pass_into_some_parameters(model: nn.Module, batch: Tensor) -> Tensor:
    loss = mean_square(model, batch)
    loss.backward(inputs=[model[0].weight], retain_graph=True)
    return loss


@loss_of()
def gradients_through_edges(model: nn.Module, batch: Tensor) -> Tensor:
    out = model[0](batch)
    loss = model[1:](out).square().mean()
    torch.autograd.grad(get_gradient_edge(loss), [get_gradient_edge(out)], torch.ones(()), retain_graph=True)
    return loss


@loss_of()
def gradient_of_the_half_network(model: nn.Module, batch: Tensor) -> Tensor:
    """The gradient stops at a tensor in the middle and is put in again behind it."""
    states = model[:2](batch)
    cut = states.detach().requires_grad_()
    loss = model[2:](cut).square().mean()
    loss.backward()
    return (states * cut.grad).sum()


@loss_of()
def backward_pass_in_a_thread(model: nn.Module, batch: Tensor) -> Tensor:
    loss = mean_square(model, batch)
    thread = threading.Thread(target=lambda: loss.backward(retain_graph=True))
    thread.start()
    thread.join()
    return loss


@loss_of()
def backward_pass_inside_of_a_hook(model: nn.Module, batch: Tensor) -> Tensor:
    """A hook of the backward pass runs another backward pass."""
    out = model(batch)

    def again(grad: Tensor) -> None:
        with torch.enable_grad():
            model[0](batch.detach()).sum().backward()

    out.register_hook(again)
    return out.square().mean()


@loss_of()
def backward_passes_in_one_thread(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.autograd.set_multithreading_enabled(False):
        mean_square(model, batch).backward()
    return mean_square(model, batch)


@loss_of()
def input_that_requires_a_gradient(model: nn.Module, batch: Tensor) -> Tensor:
    batch.requires_grad_()
    loss = mean_square(model, batch)
    loss.backward(retain_graph=True)
    return loss * batch.grad.norm().detach()


class Modern(Function):
    """Has its context set up apart from its forward pass, and a rule for vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].cos()


@part()
class FunctionThatCanBeMapped(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(Modern.apply)(x * self.weight) + Modern.apply(x)
