"""The suggestions for a cause, and their predicted effects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from every_remedy import (
    Classifier,
    LastStep,
    Sums,
    Transformer,
    Unguarded,
    bounded,
    convolutions,
    faint_norms,
    forgetful,
    frozen,
    labelled,
    mlp,
    of,
    regression,
    sick_mlp,
)
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradwatch
from gradwatch import Snapshot
from gradwatch.causes import STEPS
from gradwatch.remedies import (
    AddSkips,
    Advice,
    Clip,
    Combination,
    InitializeAgain,
    InsertNormalization,
    LowerLearningRate,
    NotApplicable,
    OrthogonalRecurrence,
    Remedy,
    RemoveLastActivation,
    ReplaceActivations,
    RescaleInputs,
    RescaleTargets,
    ResetNormalization,
    ScaleBranches,
    Setup,
    TrainAll,
    WarmUp,
)
from gradwatch.remedies.optimizer import optimizers_of
from gradwatch.trial import suggest
from gradwatch.trial.prediction import Flow, predicted_flow


@dataclass(frozen=True)
class Cause:
    """The part of a diagnosis that suggestions read."""

    cause: str
    score: float = 0.9


def half() -> Setup:
    return sick_mlp(precision="16-mixed")


EXPECTED = {
    "saturating activation": (sick_mlp, "ReplaceActivations"),
    "initialization too small": (lambda: of(mlp(nn.ReLU), 8), "InitializeAgain"),
    "initialization too large": (lambda: of(mlp(nn.ReLU), 8), "InitializeAgain"),
    "learning rate too high": (sick_mlp, "LowerLearningRate"),
    "dead ReLU": (lambda: of(mlp(nn.ReLU), 8), "ReplaceActivations"),
    "zero-gradient head": (lambda: of(mlp(nn.ReLU, nn.Softmax(dim=1)), 8), "FixHead"),
    "unscaled input": (sick_mlp, "RescaleInputs"),
    "unscaled target": (regression, "RescaleTargets"),
    "recurrent depth": (lambda: of(LastStep(nn.RNN(2, 8, batch_first=True)), 6, 2), "ReplaceRecurrence"),
    "missing normalization or skip": (sick_mlp, "AddSkips"),
    "missing warm-up": (lambda: of(Transformer(), 5, 8), "WarmUp"),
    "outlier batch": (sick_mlp, "ClipOutliers"),
    "unguarded operation": (lambda: of(Unguarded(), 8), "GuardOperations"),
    "frozen or detached part": (frozen, "UnfreezeAll"),
    "learning rate too low": (sick_mlp, "RaiseLearningRate"),
    "precision underflow": (half, "UseBfloat16"),
    "clipping too hard": (lambda: sick_mlp(gradient_clip_val=1e-5), "RemoveClip"),
}


def test_what_no_optimizer_was_given_is_given_to_it_and_learns() -> None:
    setup = TrainAll().apply(forgetful())
    before = [param.clone() for param in setup.module.parameters()]
    (optimizer,) = optimizers_of(setup.module)
    assert len(optimizer.param_groups[0]["params"]) == len(before)
    trainer = Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
    )
    trainer.fit(setup.module, DataLoader(TensorDataset(*setup.batch), batch_size=len(setup.batch[0])))
    assert all((old != new).any() for old, new in zip(before, setup.module.parameters(), strict=True))
    assert suggest([Cause("frozen or detached part")], forgetful())[0] == TrainAll()


@pytest.mark.parametrize("cause", EXPECTED)
def test_the_first_suggestion_removes_the_cause_and_applies(cause: str) -> None:
    make, name = EXPECTED[cause]
    setup = make()
    found = suggest([Cause(cause)], setup)
    assert type(found[0]).__name__ == name
    assert cause in found[0].treats
    for remedy in found:
        if not isinstance(remedy, Advice):
            remedy.apply(setup)


@pytest.mark.parametrize("cause", EXPECTED)
def test_the_first_suggestion_is_what_is_printed_first(cause: Any) -> None:
    """Of several steps with the highest fit the case of the cause, or what the network has, decides."""
    by_remedy = [step for step in STEPS[cause] if step.remedy]
    first = [step.remedy.partition(" ")[0] for step in by_remedy if step.fit == by_remedy[0].fit]
    assert EXPECTED[cause][1] in first


def test_nothing_is_suggested_without_a_cause() -> None:
    assert suggest([], nn.Linear(1, 1)) == []
    assert suggest([Cause("not known")], sick_mlp()) == []


def test_what_the_set_up_shows_is_told_without_a_cause() -> None:
    assert suggest([], bounded()) == [RemoveLastActivation()]
    assert suggest([], faint_norms()) == [ResetNormalization()]
    assert RemoveLastActivation() in suggest([Cause("learning rate too high")], bounded())


def test_weights_of_norms_at_zero_are_left_without_a_cause() -> None:
    setup = faint_norms()
    nn.init.zeros_(setup.module.network[1].weight)
    assert suggest([], setup) == []


def test_gates_of_a_long_sequence_come_with_a_clip() -> None:
    setup = of(LastStep(nn.LSTM(2, 8, batch_first=True)), 30, 2)
    assert suggest([Cause("recurrent depth")], setup)[0] == Combination((OrthogonalRecurrence(), Clip()))
    clipped = Setup(setup.module, options={"gradient_clip_val": 1.0}, batch=setup.batch)
    assert suggest([Cause("recurrent depth")], clipped)[0] == OrthogonalRecurrence()
    assert suggest([Cause("recurrent depth")], setup.module.network, batch=setup.batch)[0] == OrthogonalRecurrence()


def test_a_rate_that_no_warm_up_makes_small_is_lowered() -> None:
    setup = of(Transformer(), 5, 8)
    assert isinstance(suggest([Cause("missing warm-up")], setup)[0], WarmUp)
    setup.module.configure_optimizers = lambda: torch.optim.Adam(setup.module.parameters(), lr=1.0)
    assert isinstance(suggest([Cause("missing warm-up")], setup)[0], LowerLearningRate)


def test_sums_that_grow_are_scaled_before_weights_are_drawn_again() -> None:
    assert isinstance(suggest([Cause("initialization too large")], of(Sums(), 8))[0], ScaleBranches)


def test_the_likelier_cause_comes_first() -> None:
    found = suggest([Cause("learning rate too high", 0.9), Cause("saturating activation", 0.3)], sick_mlp())
    assert isinstance(found[0], LowerLearningRate)


def test_a_plain_module_gets_the_line_to_write() -> None:
    found = suggest([Cause("learning rate too high")], mlp(nn.ReLU))
    assert not any(isinstance(remedy, LowerLearningRate) for remedy in found)
    advice = next(remedy for remedy in found if isinstance(remedy, Advice))
    assert "optimizer = torch.optim" in advice.code(mlp())


def test_settings_come_from_the_history() -> None:
    history = [Snapshot(i, ("a",), total_norm=0.1, loss=90_000.0) for i in range(10)]
    setup = Setup(Classifier(mlp(nn.ReLU)))
    clips = [remedy for remedy in suggest([Cause("outlier batch")], setup, history) if isinstance(remedy, Clip)]
    assert clips == [Clip(0.2)]
    assert RescaleTargets(0.0, 300.0) in suggest([Cause("unscaled target")], setup, history)


def test_a_narrow_network_is_better_off_without_random_relus() -> None:
    deep = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()) for _ in range(20)], nn.Linear(4, 2))
    first = next(found for found in suggest([Cause("saturating activation")], deep) if "Activations" in repr(found))
    assert first == ReplaceActivations("SELU")


def measured_flow(network: nn.Module) -> float:
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    with gradwatch.watch(network, on_finding=lambda finding: None) as watcher:
        nn.functional.cross_entropy(network(torch.randn(256, 64)), torch.arange(256) % 3).backward()
        watcher.step(optimizer)
    return Flow(network, watcher.history).measured


@pytest.mark.parametrize("kind", [nn.Sigmoid, nn.Tanh, nn.ReLU])
@pytest.mark.parametrize(
    "remedy",
    [InitializeAgain(), ReplaceActivations(), InsertNormalization(), InsertNormalization("batch"), AddSkips()],
    ids=lambda remedy: f"{type(remedy).__name__}-{getattr(remedy, 'kind', '')}",
)
def test_the_prediction_is_near_what_is_measured_afterwards(remedy: Remedy, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(64, 64), kind()) for _ in range(8)]
    network = nn.Sequential(*blocks, nn.Linear(64, 3))
    try:
        treated = remedy.apply(network)
    except NotApplicable:
        pytest.skip("nothing to change")
    assert predicted_flow(remedy, Flow(network)) == pytest.approx(measured_flow(treated), abs=1.2)


def test_a_batch_of_few_samples_gets_no_batch_norm() -> None:
    few = Setup(Classifier(convolutions()), batch=labelled(1, 4, 4, samples=4))
    with pytest.raises(NotApplicable):
        InsertNormalization("batch").apply(few)
    assert "GroupNorm" in str(InsertNormalization().apply(few).module)


class TestHeads:
    """Softmaxes that stop the gradient, and those that belong there."""

    def test_one_unit_is_for_the_user_to_change(self) -> None:
        setup = of(nn.Sequential(nn.Linear(8, 1), nn.Softmax(dim=1)), 8)
        found = suggest([Cause("zero-gradient head")], setup)
        assert isinstance(found[0], Advice)
        assert "binary_cross_entropy_with_logits" in found[0].text

    def test_attention_keeps_its_softmax(self) -> None:
        class Attending(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.score, self.weigh, self.head = nn.Linear(8, 5), nn.Softmax(dim=-1), nn.Linear(5, 3)

            def forward(self, x: Tensor) -> Tensor:
                logits: Tensor = self.head(self.weigh(self.score(x)))
                return logits

        assert not any(not isinstance(r, Advice) for r in suggest([Cause("zero-gradient head")], of(Attending(), 8)))


def test_inputs_far_from_zero_are_brought_there() -> None:
    inputs = labelled(8)[0] * 100 + 5000
    setup = Setup(Classifier(mlp(nn.ReLU)), batch=(inputs, torch.arange(16) % 3))
    treated = RescaleInputs().apply(setup).module
    seen: list[Any] = []
    treated.network[0][0][1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    treated(inputs)
    assert torch.allclose(seen[0].mean(0), torch.zeros(8), atol=1e-2)
    assert torch.allclose(seen[0].std(0, correction=0), torch.ones(8), atol=1e-2)


def test_rescaled_targets_leave_the_loss_of_standardized_ones() -> None:
    setup = regression()
    treated: Any = RescaleTargets().apply(setup).module
    inputs, targets = setup.batch
    result = treated.training_step(setup.batch, 0)
    logits = setup.module(inputs).squeeze(-1)
    standardized = (targets - targets.mean()) / targets.std(correction=0)
    assert result["loss"].item() == pytest.approx((logits - standardized).square().mean().item(), rel=1e-3)
    assert treated(inputs).mean().item() == pytest.approx(targets.mean().item(), rel=0.5)


class Exp(nn.Module):
    """An activation of the user's own, in float32 infinite from 89 on."""

    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


class Swish(nn.Module):
    """One that grows no faster than its argument."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


def test_an_own_activation_that_grows_fast_is_replaced_before_its_nan_is_skipped() -> None:
    assert suggest([Cause("unguarded operation")], of(mlp(Exp), 8))[0] == ReplaceActivations(kinds=("Exp",))
    assert ReplaceActivations(kinds=("Swish",)) not in suggest([Cause("unguarded operation")], of(mlp(Swish), 8))
