"""Remedies for an end that cannot give the targets, and for normalization layers that start near zero."""

import pytest
import torch
from torch import nn

from gradwatch.detectors import Vanishing
from gradwatch.diagnosis import diagnose
from gradwatch.records import Snapshot
from gradwatch.remedies import FixHead, NotApplicable, RemoveLastActivation, ResetNormalization, Setup


class Regression(nn.Module):
    """A regression that trains itself, with an end of its own or a function."""

    def __init__(self, end: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.end = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.body(x)) if self.end is not None else torch.sigmoid(self.body(x))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])


def batch_of(low: float, high: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(32, 3), torch.empty(32, 1).uniform_(low, high)


@pytest.mark.parametrize("end", [nn.Sigmoid(), nn.ReLU(), nn.Tanh(), nn.Softplus(), None])
def test_an_end_that_cannot_give_the_targets_is_removed(end: nn.Module | None) -> None:
    setup = Setup(Regression(end), batch=batch_of(-3, 3))
    changed = RemoveLastActivation().apply(setup).module
    x = setup.batch[0]
    assert torch.equal(changed(x), changed.body(x))
    assert not torch.equal(setup.module(x), setup.module.body(x))
    assert (
        "igmoid" in RemoveLastActivation().patch(setup)
        if end is None
        else "Identity" in (RemoveLastActivation().patch(setup))
    )


def test_an_end_that_can_give_the_targets_stays() -> None:
    with pytest.raises(NotApplicable, match="go beyond"):
        RemoveLastActivation().apply(Setup(Regression(nn.Sigmoid()), batch=batch_of(0.1, 0.9)))


def trained(**columns: object) -> list[Snapshot]:
    losses = {"trace_loss": [1.0, 0.9, *[0.8] * 18], "trace_step": range(20)}
    return [Snapshot(0, ("end",), kinds=("Sigmoid",), loss=1.0, **columns), Snapshot(19, ("end",), **losses)]


def test_the_monitor_names_targets_out_of_reach_only_where_they_make_up_the_loss() -> None:
    found = diagnose([], trained(last_activation="Sigmoid", out_of_reach=0.6, least_error=0.7))
    assert found[0].cause == "unscaled target"
    assert "remove the activation at the end" in found[0].remedies[0]
    assert diagnose([], trained(last_activation="Sigmoid", out_of_reach=0.6, least_error=0.01)) == []


def norms(weight: float, losses: list[float]) -> list[Snapshot]:
    names = ("a.weight", "a.bias", "b.weight", "b.bias")
    kinds = ("BatchNorm1d", "BatchNorm1d")
    sizes = {"param_size": [4, 4, 4, 4], "param_weight_norm": [2 * weight, 0, 2 * weight, 0]}
    grads = {"param_grad_norm": [1.0, 1.0, 1.0, 1.0]}
    trace = {"trace_loss": losses, "trace_step": range(len(losses))}
    return [Snapshot(0, ("a", "b"), kinds=kinds, params=names, **sizes, **grads, **trace)]


def test_small_norms_are_named_where_the_run_does_not_learn() -> None:
    found = diagnose([], norms(0.02, [1.0] * 20))
    assert found[0].cause == "initialization too small"
    assert "normalization" in found[0].remedies[0]
    learns = [1.0, 0.9, 0.5, 0.3, *[0.1] * 16]
    assert diagnose([], norms(0.02, learns)) == []
    assert not any(each.cause == "initialization too small" for each in diagnose([], norms(1.0, [1.0] * 20)))
    # a layer that multiplies by 1 + weight starts at zero and passes all
    assert not any(each.cause == "initialization too small" for each in diagnose([], norms(0.0, [1.0] * 20)))


def test_norms_of_one_stay() -> None:
    with pytest.raises(NotApplicable):
        ResetNormalization().apply(nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4)))


def test_a_norm_over_one_unit_is_removed() -> None:
    changed = FixHead().apply(nn.Sequential(nn.Linear(2, 1), nn.LayerNorm(1)))
    assert isinstance(changed[1], nn.Identity)


def test_the_threshold_of_gates_is_told() -> None:
    calls = {"rnn": [1e-8, *[1.0] * 9]}
    (finding,) = Vanishing()(Snapshot(0, ("rnn",), kinds=("GRU",), calls=calls))
    assert finding.threshold == pytest.approx(1e-6)
    assert "above 1e-06" in finding.message
