"""GradientTransform in every training setup; where Lightning can clip too, its own clip is the reference."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from small_fits import Regression, close_weights, fit, same_weights, small_net, weights
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from gradwatch.callbacks.transform import GradientTransform
from gradwatch.transforms import ClipByGlobalNorm, ClipByNorm, Only, SkipNonFinite


class Calls:
    """A transform that only notes the parameters that it is called with."""

    def __init__(self) -> None:
        self.names: list[list[str]] = []

    def __call__(self, params, context) -> None:
        self.names.append(list(params))


def clip(bound: float = 0.3) -> GradientTransform:
    return GradientTransform(ClipByGlobalNorm(bound))


def as_lightning_clips(model: type = Regression, **kwargs) -> None:
    """One fit with the transform, one with the Trainer's own clip, one with none: the first two agree."""
    make = kwargs.pop("make", model)
    ours = fit(clip(), model=make(), **kwargs)
    theirs = fit(model=make(), gradient_clip_val=0.3, **kwargs)
    close_weights(ours, theirs)
    assert not same_weights(ours, fit(model=make(), **kwargs))


def sgd(**kwargs) -> Regression:
    return Regression(optimizer=torch.optim.SGD, lr=0.1, **kwargs)


def test_plain() -> None:
    as_lightning_clips(make=sgd)


@pytest.mark.parametrize("accumulate", [3, 4])
def test_accumulation_with_an_incomplete_last_window(accumulate: int) -> None:
    calls = Calls()
    model = fit(GradientTransform(calls), max_steps=-1, max_epochs=2, accumulate_grad_batches=accumulate)
    assert len(calls.names) == model.trainer.global_step == 2 * -(-10 // accumulate)
    as_lightning_clips(make=sgd, max_steps=-1, max_epochs=2, accumulate_grad_batches=accumulate)


def fp16() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))


def test_fp16_sees_unscaled_gradients() -> None:
    ours = fit(clip(), model=sgd(), plugins=[fp16()])
    close_weights(ours, fit(model=sgd(), plugins=[fp16()], gradient_clip_val=0.3))
    close_weights(ours, fit(clip(), model=sgd()), rtol=0.05, atol=0.02)


def test_fp16_overflow_is_left_to_the_scaler() -> None:
    plugins = [fp16(), fp16()]
    for plugin in plugins:
        plugin.scaler._init_scale = 2.0**40
    ours = fit([clip()], model=sgd(), plugins=[plugins[0]], max_steps=40)
    close_weights(ours, fit(model=sgd(), plugins=[plugins[1]], max_steps=40, gradient_clip_val=0.3))
    assert all(param.isfinite().all() for param in ours.parameters())
    assert plugins[0].scaler.get_scale() < 2.0**40


def test_fp16_with_a_skipped_step() -> None:
    skip, plugin = SkipNonFinite(), fp16()
    model = fit(GradientTransform(skip), sgd(net=_no_batch_norm, bad_batches=(5,)), plugins=[plugin], max_steps=10)
    assert all(param.isfinite().all() for param in model.parameters())
    assert skip.skipped >= 1
    assert plugin.scaler.get_scale() == 2.0 ** (16 - skip.skipped)  # it saw the same steps: the bad one, and overflows


def test_fp16_with_an_optimizer_that_unscales_is_refused() -> None:
    with pytest.raises(ValueError, match=r"AdamW\(fused=True\) undoes the loss scale.*fused=False"):
        fit(clip(), model=Regression(fused=True), plugins=[fp16()])


def test_bf16() -> None:
    as_lightning_clips(make=sgd, precision="bf16-mixed")


class Adversaries(LightningModule):
    """Manual optimization of two networks, as in a GAN."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(2, 3), nn.Linear(3, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        first, second = self.optimizers()
        x = torch.randn(4, 2, generator=torch.Generator().manual_seed(batch_idx))
        for optimizer, sign in ((first, 100.0), (second, -1.0)):
            optimizer.zero_grad()
            self.manual_backward((sign * self.critic(self.generator(x))).mean())
            self.other = self.critic if optimizer is first else self.generator
            self.before = self.other.weight.grad.clone()
            optimizer.step()

    def on_before_optimizer_step(self, optimizer) -> None:
        assert torch.equal(self.other.weight.grad, self.before)  # callbacks run before the module's own hook
        stepping = optimizer.param_groups[0]["params"]
        norm = torch.stack([param.grad.norm() for param in stepping]).norm()
        assert norm <= 1e-3 * (1 + 1e-5)

    def configure_optimizers(self):
        return [torch.optim.SGD(net.parameters(), lr=0.1) for net in (self.generator, self.critic)]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.arange(6))


def test_several_optimizers_only_the_stepping_ones_parameters_change() -> None:
    calls = Calls()
    callback = GradientTransform([calls, ClipByGlobalNorm(1e-3), Only("generator.*", ClipByNorm(1e-3))])
    fit(callback, model=Adversaries(), max_steps=12)
    assert calls.names[:2] == [["generator.weight", "generator.bias"], ["critic.weight", "critic.bias"]]
    assert set(callback.state_dict()) == {"0", "1"}
    assert callback.state_dict()["1"]["steps"] == 6


def test_several_optimizers_have_their_own_history() -> None:
    from gradwatch.transforms import PercentileClip

    callback = GradientTransform([PercentileClip(90), ClipByGlobalNorm(1e-3)])
    model = fit(callback, model=Adversaries(), max_steps=12)
    first, second = (callback.state_dict()[i]["chain"]["0"]["norms"][:6] for i in "01")
    assert first.nanmean() > 5 * second.nanmean()
    assert {"clipped_share/optimizer_0", "clipped_share/optimizer_1"} <= set(model.trainer.callback_metrics)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Sequential(nn.Linear(4, 16), nn.Tanh()), nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x.requires_grad_()
            return self.second(checkpoint(self.first, x, use_reentrant=reentrant))

    as_lightning_clips(make=lambda: sgd(net=Checkpointed))


def test_compiled_modules_keep_their_names() -> None:
    calls = Calls()

    def compiled() -> nn.Module:
        return torch.compile(small_net(), backend="aot_eager")

    callback = GradientTransform([calls, Only("net.0.*", ClipByGlobalNorm(0.3))])
    fit(callback, model=Regression(net=compiled), max_steps=2)
    assert calls.names[0][0] == "net.0.weight"
    as_lightning_clips(make=lambda: sgd(net=compiled), max_steps=5)


def test_shared_and_frozen_parameters() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
            self.second.weight = self.first.weight
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.frozen(self.second(self.first(x).tanh()).tanh())

    as_lightning_clips(make=lambda: sgd(net=Tied))


def test_sparse_embedding_gradients() -> None:
    class Bag(nn.Module):
        def __init__(self, sparse: bool) -> None:
            super().__init__()
            self.embedding, self.out = nn.Embedding(10, 4, sparse=sparse), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.embedding((x[:, 0].abs() * 3).long().clamp(max=9)))

    runs = [fit(clip(), model=sgd(net=lambda sparse=sparse: Bag(sparse))) for sparse in (True, False)]
    close_weights(*runs)


def test_complex_parameters() -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((3, 1), 0.5 + 0.1j, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return (torch.fft.rfft(x) @ self.weight).real

    as_lightning_clips(make=lambda: sgd(net=Spectral))


def test_a_nan_batch_costs_exactly_one_step() -> None:
    skip = SkipNonFinite()
    protected = fit(GradientTransform(skip), model=sgd(net=_no_batch_norm, bad_batches=(150,)), max_steps=200)
    ruined = fit(model=sgd(net=_no_batch_norm, bad_batches=(150,)), max_steps=200)
    clean = fit(model=sgd(net=_no_batch_norm), max_steps=200)
    assert skip.skipped == 1
    assert all(param.isnan().any() for param in ruined.parameters())
    losses = [float(model.trainer.callback_metrics["train_loss"]) for model in (protected, clean)]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)


def _no_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))


def test_a_skipped_step_moves_nothing_even_under_weight_decay() -> None:
    before = fit(GradientTransform(SkipNonFinite()), model=Regression(bad_batches=(10,)), max_steps=10)
    after = fit(GradientTransform(SkipNonFinite()), model=Regression(bad_batches=(10,)), max_steps=11)
    assert same_weights(before, after)
    assert weights(before).keys() == weights(after).keys()
