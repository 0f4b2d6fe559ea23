"""Shared and unusual parameters, and modules that are called many times or never."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from zoo import UNCALLED, WIDTH, Scale, has_columns, in_step, loss_of, mean_square, mlp, module, part, rows, sgd

COLUMNS = has_columns("grad_norm", "grad_output_norm", "output_rms")


@module()
class TiedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, WIDTH), nn.Linear(WIDTH, 10, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x.abs().long().clamp(max=9)).mean(1))


@module()
def layer_that_stands_at_two_places() -> nn.Module:
    shared = nn.Linear(WIDTH, WIDTH)
    return nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Sequential(shared, nn.Linear(WIDTH, 2)))


@module()
def activation_that_stands_everywhere() -> nn.Module:
    act = nn.ReLU(inplace=True)
    return nn.Sequential(nn.Linear(WIDTH, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 2), act)


@part(expect=COLUMNS)
class CalledManyTimes(Scale):
    def forward(self, x: Tensor, left: int = 9) -> Tensor:
        x = (x * self.weight).tanh()
        return self(x, left - 1) if left else x


@module()
class CellCalledManyTimes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros_like(x)
        for _ in range(int(torch.randint(1, 9, ()))):
            state = self.cell(x, state)
        return self.head(state)


@part(expect=has_columns("grad_norm", layer="last"))
class LayersThatAreNeverCalled(Scale):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.LSTM(2, 2))


@module()
class LayersLeftOutAtRandom(nn.Module):
    """Stochastic depth: which layers run differs from step to step, and none may."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4)), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu() if torch.rand(()) < 0.5 else x
        return self.head(x)


@module()
class HoldsItselfInAList(nn.Module):
    """Part and whole hold each other, out of sight of ``modules()``."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Scale()
        self.inner.owner, self.me = [self], weakref.ref(self)

    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("holds itself")

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * len(self.inner.owner)


@module()
class HoldsALock(nn.Module):
    """Can be neither copied nor pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.lock, self.lines = mlp(), threading.Lock(), (line for line in "ab")

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.net(x)


def of(dtype: torch.dtype) -> Any:
    """A network and batches of a kind of number."""
    return {"batch": lambda: rows().to(dtype), "loss": lambda model, x: model(x).abs().square().mean()}


@module(**of(torch.float64))
def parameters_in_double() -> nn.Module:
    return mlp().double()


@module(**of(torch.bfloat16))
def parameters_in_bfloat16() -> nn.Module:
    return mlp().bfloat16()


@module(**of(torch.float16))
def parameters_in_half() -> nn.Module:
    return mlp().half()


@module(**of(torch.complex64))
def parameters_that_are_complex() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2)).to(torch.complex64)


@part()
class ParametersOfManyKinds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        kinds = (torch.float64, torch.bfloat16, torch.float16, torch.complex64)
        self.scales = nn.ParameterList([torch.ones(WIDTH, dtype=kind) for kind in kinds])
        self.counts = nn.Parameter(torch.arange(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        for scale in self.scales:
            x = (x * scale).real.float() if scale.is_complex() else (x * scale).float()
        return x


@part()
class ScalarAndEmptyParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.none = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.zeros(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.none.sum()


@part(expect=has_columns("grad_norm", layer="last"))
class PartsOnTheMetaDevice(Scale):
    def __init__(self) -> None:
        super().__init__()
        self.shadow = [nn.Linear(WIDTH, WIDTH, device="meta")]

    def forward(self, x: Tensor) -> Tensor:
        assert self.shadow[0](x.to("meta")).is_meta
        return x * self.weight


@module(optimizer=lambda model: sgd(model.first))
class ModelPartlyOnTheMetaDevice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.shadow = nn.Linear(WIDTH, 2), [nn.Linear(2, 2, device="meta")]

    def forward(self, x: Tensor) -> Tensor:
        out = self.first(x)
        self.shadow[0](out.to("meta"))
        return out


@module()
class StatesThatGrow(nn.Module):
    """A buffer that is longer at each step, and one that is no tensor at first."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(0, WIDTH))
        self.register_buffer("late", None)
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        self.seen, self.late = torch.cat([self.seen, x.detach()]), x.detach().mean(0)
        return self.net(x) + self.seen.mean()


@loss_of()
def gradients_that_are_not_contiguous(model: nn.Module, batch: Tensor) -> Tensor:
    for param in model.parameters():
        if not param._backward_hooks:
            param.register_hook(
                lambda grad: grad.t().contiguous().t() if grad.dim() == 2 else grad.mean().expand_as(grad)
            )
    return mean_square(model, batch)


@module(
    batch=lambda: torch.randn(4, 3, 4, 4).to(memory_format=torch.channels_last),
    expect=has_columns("grad_norm", "grad_output_norm", "output_rms", layer="1"),
)
def channels_last() -> nn.Module:
    layers = [
        nn.Identity(),
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(32, 2),
    ]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


@in_step()
def average_kept_beside(model: nn.Module, batch: Tensor) -> None:
    if not hasattr(model, "average"):
        model.average = [AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))]
    model.average[0].update_parameters(model)
    with torch.no_grad():
        model.average[0](batch)


@in_step(lambda: nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)))
def statistics_taken_anew(model: nn.Module, batch: Tensor) -> None:
    update_bn([batch, batch * 2], model)


@in_step()
def gradients_set_to_nothing_by_hand(model: nn.Module, batch: Tensor) -> None:
    model[0].weight.grad = None
    model[2].requires_grad_(not model[2].weight.requires_grad)


@loss_of()
def weights_changed_through_data(model: nn.Module, batch: Tensor) -> Tensor:
    loss = mean_square(model, batch)
    model[0].weight.data.mul_(0.99)
    return loss


@loss_of()
def weights_exchanged_through_data(model: nn.Module, batch: Tensor) -> Tensor:
    model[0].weight.data = model[0].weight.data.clone() * 0.99
    return mean_square(model, batch)


@loss_of()
def parameter_replaced_by_another(model: nn.Module, batch: Tensor) -> Tensor:
    model[0].bias = nn.Parameter(model[0].bias.detach() + 0.1)
    return mean_square(model, batch)


@module(says=UNCALLED)
def model_without_a_layer_that_is_called() -> nn.Module:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ParameterDict({"a": torch.ones(WIDTH), "b": torch.ones(WIDTH)})

        def forward(self, x: Tensor) -> Tensor:
            return x * self.parts["a"] + self.parts["b"]

    return Root()


@module()
def single_layer() -> nn.Module:
    return nn.Linear(WIDTH, 2)


def of_nothing(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)


@module(optimizer=of_nothing, loss=lambda model, x: model(x).sum().requires_grad_())
def model_without_parameters() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Identity())


@module(optimizer=lambda model: sgd(nn.Linear(1, 1)))
def optimizer_of_other_parameters() -> nn.Module:
    return mlp()


@module(optimizer=lambda model: torch.optim.SGD([{"params": []}, {"params": [*model.parameters()], "lr": 0.1}], lr=0.0))
def optimizer_with_an_empty_group() -> nn.Module:
    return mlp()
