"""torch.func and forward-mode derivatives in the loss."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from zoo import UNCALLED, WIDTH, has_columns, loss_of, mean_square, mlp, module, rows


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2))


def params_of(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


@loss_of(says=UNCALLED)
def vmap_over_rows(model: nn.Module, batch: Tensor) -> Tensor:
    return vmap(model)(batch).square().mean()


@loss_of(says=UNCALLED)
def vmap_in_chunks(model: nn.Module, batch: Tensor) -> Tensor:
    return vmap(model, chunk_size=3)(batch).square().mean()


@loss_of(lambda: nn.Sequential(nn.Linear(WIDTH, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2)), says=UNCALLED)
def vmap_with_randomness(model: nn.Module, batch: Tensor) -> Tensor:
    return vmap(model, randomness="different")(batch).square().mean()


@loss_of(expect=has_columns("grad_norm", "output_rms", layer="0"))
def vmap_beside_an_ordinary_call(model: nn.Module, batch: Tensor) -> Tensor:
    return mean_square(model, batch) + vmap(model)(batch).square().mean()


@loss_of(smooth)
def gradient_at_the_input(model: nn.Module, batch: Tensor) -> Tensor:
    return grad(lambda x: model(x).sum())(batch).square().mean() + mean_square(model, batch)


@loss_of(smooth)
def gradients_of_single_samples(model: nn.Module, batch: Tensor) -> Tensor:
    def loss(params: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(model, params, (row[None],)).square().mean()

    grads = vmap(grad(loss), (None, 0))(params_of(model), batch)
    return mean_square(model, batch) + sum(g.square().mean() for g in grads.values())


@loss_of(smooth)
def jacobian_in_reverse(model: nn.Module, batch: Tensor) -> Tensor:
    return vmap(jacrev(model))(batch).square().mean() + mean_square(model, batch)


@loss_of(smooth)
def jacobian_forward(model: nn.Module, batch: Tensor) -> Tensor:
    return vmap(jacfwd(model))(batch).square().mean() + mean_square(model, batch)


@loss_of(smooth, says=UNCALLED)
def jacobian_vector_product(model: nn.Module, batch: Tensor) -> Tensor:
    out, tangent = jvp(model, (batch,), (torch.ones_like(batch),))
    return out.square().mean() + tangent.square().mean()


@loss_of(smooth, says=UNCALLED)
def vector_jacobian_product(model: nn.Module, batch: Tensor) -> Tensor:
    out, pull = vjp(model, batch)
    return out.square().mean() + pull(torch.ones_like(out))[0].square().mean()


@loss_of(smooth)
def hessian_of_a_row(model: nn.Module, batch: Tensor) -> Tensor:
    return hessian(lambda x: model(x).sum())(batch[0]).square().mean() + mean_square(model, batch)


@loss_of(smooth, says=UNCALLED)
def residual_of_a_differential_equation(model: nn.Module, batch: Tensor) -> Tensor:
    """As in a physics-informed network: u, its first and its second derivative in the loss."""

    def u(x: Tensor) -> Tensor:
        return model(x).sum()

    def laplacian(x: Tensor) -> Tensor:
        return jacfwd(grad(u))(x).diagonal().sum()

    return (vmap(laplacian)(batch) + vmap(grad(u))(batch).sum(-1) - batch[:, 0].sin()).square().mean()


@loss_of(smooth)
def only_functional_calls(model: nn.Module, batch: Tensor) -> Tensor:
    doubled = {name: param * 2 for name, param in params_of(model).items()}
    return functional_call(model, doubled, (batch,)).square().mean()


@loss_of(smooth)
def functional_call_of_detached_parameters(model: nn.Module, batch: Tensor) -> Tensor:
    target = functional_call(model, {name: p.detach() for name, p in params_of(model).items()}, (batch,))
    return (model(batch) - 0.9 * target).square().mean()


@loss_of(smooth)
def step_of_an_inner_loop(model: nn.Module, batch: Tensor) -> Tensor:
    """As in MAML: the loss after a step of gradient descent, differentiated through the step."""
    params = params_of(model)
    inner = grad(lambda p: functional_call(model, p, (batch,)).square().mean())(params)
    moved = {name: param - 0.1 * inner[name] for name, param in params.items()}
    return functional_call(model, moved, (batch,)).square().mean()


@module(says=UNCALLED)
class Ensemble(nn.Module):
    """Three networks whose stacked parameters are the ensemble's own."""

    def __init__(self) -> None:
        super().__init__()
        models = [smooth() for _ in range(3)]
        stacked, _ = stack_module_state(models)
        self.skeleton = [copy.deepcopy(models[0]).to("meta")]  # in a list: not one of the modules
        self.names = list(stacked)
        self.stacked = nn.ParameterList([nn.Parameter(value.detach()) for value in stacked.values()])

    def forward(self, x: Tensor) -> Tensor:
        params = dict(zip(self.names, self.stacked, strict=True))
        return vmap(lambda p: functional_call(self.skeleton[0], p, (x,)))(params).mean(0)


@module()
class VmapInsideOfForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = mlp(), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(vmap(self.inner)(x))


@module(says=UNCALLED)
class GradInsideOfForward(nn.Module):
    """Puts out the gradient of an energy, as networks of forces do."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = smooth()

    def forward(self, x: Tensor) -> Tensor:
        return vmap(grad(lambda row: self.energy(row).sum()))(x)


@loss_of(smooth)
def forward_mode_derivative(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(batch, torch.ones_like(batch))
        out, tangent = torch.autograd.forward_ad.unpack_dual(model(dual))
        return out.square().mean() + tangent.square().mean()


@loss_of(smooth)
def forward_over_reverse(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.autograd.forward_ad.dual_level():
        x = batch.clone().requires_grad_()
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(batch))
        (slope,) = torch.autograd.grad(model(dual).sum(), x, create_graph=True)
        return slope.square().mean() + mean_square(model, batch)


@loss_of(smooth)
def functional_jacobian_of_autograd(model: nn.Module, batch: Tensor) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(model, batch[:2], create_graph=True)
    return jacobian.square().mean() + mean_square(model, batch)


@loss_of(smooth)
def functional_hessian_vector_product(model: nn.Module, batch: Tensor) -> Tensor:
    _, product = torch.autograd.functional.hvp(lambda x: model(x).sum(), batch, torch.ones_like(batch), True)
    return product.square().mean() + mean_square(model, batch)


@loss_of(smooth)
def batched_gradients_of_autograd(model: nn.Module, batch: Tensor) -> Tensor:
    batch = batch.requires_grad_()
    out = model(batch)
    basis = torch.eye(2).unsqueeze(1).expand(2, len(batch), 2)
    (slopes,) = torch.autograd.grad(out, batch, basis, is_grads_batched=True, create_graph=True)
    return slopes.square().mean() + out.square().mean()


@loss_of(smooth, says=UNCALLED)
def functionalized(model: nn.Module, batch: Tensor) -> Tensor:
    return torch.func.functionalize(model)(batch).square().mean()


@loss_of(smooth, batch=lambda: rows(4), says=UNCALLED)
def neural_tangent_kernel(model: nn.Module, batch: Tensor) -> Tensor:
    jacobians = vmap(jacrev(lambda p, row: functional_call(model, p, (row,))), (None, 0))(params_of(model), batch)
    return sum((j.flatten(2) @ j.flatten(2).mT).square().mean() for j in jacobians.values()) * 1e-3
