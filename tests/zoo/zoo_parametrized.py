"""Weights that are computed, random, normalized, pruned, exchanged."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from zoo import WIDTH, Between, Expect, Scale, has_columns, in_step, loss_of, mean_square, mlp, module, part, sgd

COLUMNS = has_columns("grad_norm", "grad_output_norm", "output_rms")
AROUND: Expect = has_columns("grad_norm", "grad_output_norm", "output_rms", layer="last")


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


@part(expect=AROUND)
def spectral_norm() -> nn.Module:
    return parametrizations.spectral_norm(linear())


@part(expect=AROUND)
def weight_norm() -> nn.Module:
    return parametrizations.weight_norm(linear())


@part(expect=AROUND)
def orthogonal() -> nn.Module:
    return parametrizations.orthogonal(linear())


def old_style(function: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(linear())


@part(expect=COLUMNS)
def old_style_spectral_norm() -> nn.Module:
    return old_style(nn.utils.spectral_norm)


@part(expect=COLUMNS)
def old_style_weight_norm() -> nn.Module:
    return old_style(nn.utils.weight_norm)


@part()
def spectral_norm_of_a_convolution() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, WIDTH)), old_style_convolution(), nn.Flatten())


def old_style_convolution() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.spectral_norm(nn.Conv1d(1, 1, 3, padding=1))


@part(expect=COLUMNS)
def pruned_by_size() -> nn.Module:
    return prune.l1_unstructured(linear(), "weight", amount=0.5)


@part()
def pruned_of_everything() -> nn.Module:
    return prune.custom_from_mask(linear(), "weight", torch.zeros(WIDTH, WIDTH))


class Exp(nn.Module):
    """Weights that are above zero."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.exp()


class Noisy(nn.Module):
    """Weights that are drawn anew each time they are read."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 0.1 * torch.randn_like(weight)


class Counted(nn.Module):
    """Weights that change each time they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("reads", torch.zeros(()))

    def forward(self, weight: Tensor) -> Tensor:
        self.reads += 1
        return weight * (1 + 0.01 * self.reads)


def parametrized(*parts: nn.Module) -> nn.Module:
    layer = linear()
    for each in parts:
        parametrize.register_parametrization(layer, "weight", each)
    return layer


@part(expect=AROUND)
def parametrized_by_a_function() -> nn.Module:
    return parametrized(Exp())


@part(expect=AROUND)
def parametrized_by_noise() -> nn.Module:
    return parametrized(Noisy())


@part(expect=AROUND)
def parametrized_by_a_count_of_reads() -> nn.Module:
    return parametrized(Counted())


@part(expect=AROUND)
def parametrized_twice() -> nn.Module:
    return parametrized(Exp(), Noisy())


def cached(model: nn.Module, batch: Tensor) -> Tensor:
    with parametrize.cached():
        return mean_square(model, batch)


@part(loss=cached, expect=AROUND)
def parametrized_and_cached() -> nn.Module:
    return parametrized(Noisy(), Counted())


@module(loss=cached)
class SharesAParametrizedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = parametrized(Counted())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


@part(expect=AROUND)
class WeightIsAPropertyThatComputes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.register_buffer("reads", torch.zeros(()))

    @property
    def weight(self) -> Tensor:
        self.reads += 1
        return self.raw * (1 + 0.01 * self.reads)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Computed(nn.Linear):
    """A Linear whose weight is a property of the class."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.in_features = self.out_features = WIDTH
        self.raw, self.bias = nn.Parameter(torch.eye(WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        self.register_buffer("reads", torch.zeros(()))

    @property
    def weight(self) -> Tensor:
        self.reads += 1
        return self.raw + 0.1 * torch.randn(WIDTH, WIDTH)


@part(expect=AROUND)
def linear_whose_weight_is_drawn() -> nn.Module:
    return Computed()


@part(expect=AROUND)
class LinearWhoseWeightRaises(Computed):
    @property
    def weight(self) -> Tensor:
        raise RuntimeError("there is no weight outside of forward")

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.raw + self.bias


@part(expect=AROUND)
class LinearWhoseWeightIsAMethod(Computed):
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.raw

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight() + self.bias


class BiasIsAProperty(Scale):
    """Its bias is drawn anew each time."""

    @property
    def bias(self) -> Tensor:
        return torch.randn(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


@part(expect=COLUMNS)
def bias_that_is_drawn() -> nn.Module:
    return BiasIsAProperty()


def at(step: int, model: nn.Module) -> bool:
    """Return True in the given step of a run."""
    model.at = getattr(model, "at", -1) + 1
    return model.at == step


@in_step(expect=has_columns("grad_norm", layer="4"))
def parametrization_registered_during_a_run(model: nn.Module, batch: Tensor) -> None:
    if at(1, model):
        parametrize.register_parametrization(model[0], "weight", Exp())


@in_step(lambda: nn.Sequential(parametrized(Exp()), nn.ReLU(), nn.Linear(WIDTH, 2)))
def parametrization_removed_during_a_run(model: nn.Module, batch: Tensor) -> None:
    if at(1, model):
        parametrize.remove_parametrizations(model[0], "weight")


@in_step()
def pruned_during_a_run(model: nn.Module, batch: Tensor) -> None:
    if at(1, model):
        prune.random_unstructured(model[0], "weight", amount=0.5)


@in_step(lambda: nn.Sequential(pruned_by_size(), nn.ReLU(), nn.Linear(WIDTH, 2)))
def pruning_made_permanent_during_a_run(model: nn.Module, batch: Tensor) -> None:
    if at(1, model):
        prune.remove(model[0], "weight")


def with_owner(model: nn.Module) -> torch.optim.Optimizer:
    model.owner = [sgd(model)]
    return model.owner[0]


@in_step(optimizer=with_owner)
def head_replaced_during_a_run(model: nn.Module, batch: Tensor) -> None:
    if at(1, model):
        model[4] = nn.Linear(WIDTH, 2)
        model.owner[0].add_param_group({"params": list(model[4].parameters())})


@in_step(optimizer=with_owner)
def layer_added_during_a_run(model: nn.Module, batch: Tensor) -> None:
    if at(1, model):
        model.append(nn.Linear(2, 2))
        model.owner[0].add_param_group({"params": list(model[5].parameters())})


@in_step()
def layer_removed_during_a_run(model: nn.Module, batch: Tensor) -> None:
    if at(1, model):
        del model[2]


@in_step()
def parameter_removed_during_a_run(model: nn.Module, batch: Tensor) -> None:
    if at(1, model):
        model[0].bias = None


@in_step()
def frozen_and_thawed_during_a_run(model: nn.Module, batch: Tensor) -> None:
    model[0].requires_grad_(not at(1, model))


@loss_of(lambda: Between(linear(), lambda out: out))
def frozen_throughout(model: nn.Module, batch: Tensor) -> Tensor:
    model.first.requires_grad_(False)
    return mean_square(model, batch)


@module()
def weights_skipped_at_the_start() -> nn.Module:
    layer = nn.utils.skip_init(nn.Linear, WIDTH, WIDTH)
    nn.init.eye_(layer.weight), nn.init.zeros_(layer.bias)
    return nn.Sequential(layer, mlp())
