"""BackwardTransform: the gradient at chosen layers' outputs is edited, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from small_fits import Regression, close_weights, fit, fit_until, same_weights
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradwatch.callbacks.backward import BackwardTransform
from gradwatch.nn import GradientNormalization
from gradwatch.transforms import (
    AdaptiveClip,
    ClipByNorm,
    NormalizeByNorm,
    PercentileClip,
    ScaleByTrustRatio,
    SkipNonFinite,
    Standardize,
    When,
)


def plain(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.Sigmoid(), nn.Linear(16, 16), *between, nn.Tanh(), nn.Linear(16, 1))


def sgd(net=plain) -> Regression:
    return Regression(net=net, optimizer=torch.optim.SGD, lr=0.01)


def test_it_does_what_the_module_in_the_model_does() -> None:
    ours = fit(BackwardTransform(Standardize(eps=1e-6), layers=["net.2"]), model=sgd())
    theirs = fit(model=sgd(lambda: plain(GradientNormalization())))
    close_weights(ours, theirs)
    assert not same_weights(ours, fit(model=sgd()))


def test_layers_behind_the_chosen_one_keep_their_gradient() -> None:
    ours = fit(BackwardTransform(ClipByNorm(1e-9), layers=["net.2"]), model=sgd(), max_steps=1)
    bare = fit(model=sgd(), max_steps=1)
    assert torch.equal(ours.net[4].weight, bare.net[4].weight)
    assert not torch.equal(ours.net[2].weight, bare.net[2].weight)


@pytest.mark.parametrize("reentrant", [True, False])
def test_once_under_gradient_checkpointing(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8)), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.body, x.requires_grad_(), use_reentrant=reentrant))

    calls: list[str] = []
    fit(
        BackwardTransform(lambda params, _: calls.extend(params), layers=["net.body.*"]), sgd(Checkpointed), max_steps=2
    )
    assert sorted(calls) == ["net.body.0"] * 2 + ["net.body.1"] * 2 + ["net.body.2"] * 2


def test_a_compiled_model_is_transformed_too() -> None:
    def compiled() -> nn.Module:
        return torch.compile(plain(), backend="aot_eager")

    callback = BackwardTransform(NormalizeByNorm(), layers=["*2"])
    close_weights(fit(callback, sgd(compiled), max_steps=3), fit(_callback_for("net.2"), sgd(), max_steps=3))


def _callback_for(layer: str) -> BackwardTransform:
    return BackwardTransform(NormalizeByNorm(), layers=[layer])


def test_under_fp16_the_transform_sees_unscaled_gradients() -> None:
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    norms: list[float] = []

    def note(params, context) -> None:
        norms.extend(param.grad.norm().item() for param in params.values())

    scaled = fit(BackwardTransform([note, NormalizeByNorm()], layers=["net.2"]), sgd(), max_steps=5, plugins=[plugin])
    whole = fit(_callback_for("net.2"), sgd(), max_steps=5)
    assert max(norms) < 10
    close_weights(scaled, whole, rtol=0.05, atol=0.01)


def test_each_layer_has_its_history_and_it_resumes(tmp_path: Path) -> None:
    def callback() -> BackwardTransform:
        return BackwardTransform(PercentileClip(50, history=5), layers=["net.0", "net.2"])

    whole, resumed = callback(), callback()
    expected = fit(whole, sgd(), max_steps=30)
    got = fit(resumed, sgd(), max_steps=30, ckpt_path=fit_until(17, tmp_path, callback(), sgd()))
    assert same_weights(got, expected)
    assert set(whole.state_dict()) == {"net.0", "net.2"}


def test_hooks_are_gone_after_the_fit_and_after_an_exception() -> None:
    class Broken(Regression):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            raise RuntimeError("broken")

    for model in (sgd(), Broken()):
        try:
            fit(BackwardTransform(ClipByNorm(1.0), layers=["net.0"]), model, max_steps=1)
        except RuntimeError as error:
            assert str(error) == "broken"  # noqa: PT017
        assert not model.net[0]._forward_hooks


@pytest.mark.parametrize(
    "transform", [AdaptiveClip(), ScaleByTrustRatio(), SkipNonFinite(), When("dead", Standardize())]
)
def test_what_can_not_act_there_is_refused(transform) -> None:
    with pytest.raises(ValueError, match=r"can't act in the backward pass.*give it to GradientTransform"):
        BackwardTransform([transform], layers=["net"])


def test_patterns_are_checked() -> None:
    with pytest.raises(ValueError, match="layers is empty"):
        BackwardTransform(Standardize(), layers=[])
    with pytest.raises(ValueError, match=r"'encoder.\*' matches no layer"):
        fit(BackwardTransform(Standardize(), layers=["encoder.*"]))


def test_a_layer_that_no_gradient_reaches_is_named() -> None:
    model = sgd()
    model.net[0].requires_grad_(False)
    with pytest.warns(UserWarning, match=r"no gradient reached the output of net.0, so nothing"):
        fit(BackwardTransform(Standardize(), layers=["net.0", "net.2"]), model, max_steps=2)


class Halves(nn.Linear):
    """Puts out two tensors."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return super().forward(x).view(-1, 2, 4).unbind(1)


class FirstHalf(nn.Module):
    """The loss does not depend on one of a layer's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.halves, self.head = Halves(4, 8), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.halves(x)[0])


def test_an_output_that_no_gradient_comes_back_to_is_left_alone() -> None:
    ours = fit(BackwardTransform(ClipByNorm(1e-9), layers=["net.halves"]), sgd(FirstHalf), max_steps=1)
    bare = fit(model=sgd(FirstHalf), max_steps=1)
    assert torch.equal(ours.net.head.weight, bare.net.head.weight)
    assert not torch.equal(ours.net.halves.weight, bare.net.halves.weight)
