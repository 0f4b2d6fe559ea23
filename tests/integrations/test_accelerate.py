"""Loops of Accelerate: steps are counted whole, and clips by the Accelerator are seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from gradwatch import Watcher, watch

accelerate = pytest.importorskip("accelerate")
STEPS, ACCUMULATED, BOUND = 6, 3, 0.1


@dataclass
class Loop:
    """What a loop saw: the weights at its end, and by step the norm that the Accelerator told, and the mean loss."""

    weights: list[torch.Tensor] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    watcher: Watcher | None = None


def train(precision: str = "no", *, watched: bool = True, clips: bool = True, poison: int = -1) -> Loop:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    plugin = accelerate.utils.GradientAccumulationPlugin(num_steps=ACCUMULATED, sync_with_dataloader=False)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_plugin=plugin)
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    model, optimizer = accelerator.prepare(bare, torch.optim.AdamW(bare.parameters(), lr=0.01))
    loop, shares = Loop(), []
    if watched:
        loop.watcher = watch(accelerator.unwrap_model(model), detectors=[])
        loop.watcher.begin()
    for batch in range(STEPS * ACCUMULATED):
        inputs = torch.randn(16, 4)
        with accelerator.accumulate(model):
            loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            accelerator.backward(loss)
            shares.append(loss.item())
            if accelerator.sync_gradients:
                if batch // ACCUMULATED == poison:
                    bare[2].weight.grad[0, 0] = math.nan
                if clips:
                    loop.norms.append(accelerator.clip_grad_norm_(model.parameters(), BOUND).item())
                loop.losses.append(sum(shares) / ACCUMULATED)
                shares.clear()
            loop.watcher.step(optimizer, loss) if loop.watcher else optimizer.step()
            optimizer.zero_grad()
    if loop.watcher:
        loop.watcher.close()
    loop.weights = [param.detach() for param in bare.parameters()]
    return loop


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_steps_are_counted_whole_and_nothing_is_changed(precision: str) -> None:
    bare, seen = train(precision, watched=False), train(precision)
    assert all(map(torch.equal, bare.weights, seen.weights))
    assert seen.watcher is not None
    assert seen.watcher.steps == STEPS
    assert [snapshot.step for snapshot in seen.watcher.history] == list(range(STEPS))
    assert [float(snapshot.loss) for snapshot in seen.watcher.history] == pytest.approx(seen.losses, rel=1e-6)


def test_a_clip_by_the_accelerator_is_seen_and_norms_are_those_before_it() -> None:
    loop, unclipped = train(), train(clips=False)
    assert loop.watcher is not None
    assert unclipped.watcher is not None
    for snapshot, norm in zip(loop.watcher.history, loop.norms, strict=True):
        assert (snapshot.clip, snapshot.clip_max_norm) == ("norm", BOUND)
        assert snapshot.total_norm == pytest.approx(norm, rel=1e-6)
        assert snapshot.total_norm_after == pytest.approx(BOUND, rel=1e-4)
        assert snapshot.total_norm == pytest.approx(math.sqrt((snapshot.param_grad_norm**2).sum()), rel=1e-5)
    first, plain = loop.watcher.history[0], unclipped.watcher.history[0]
    assert first.grad_norm == pytest.approx(plain.grad_norm, rel=1e-4, nan_ok=True)


def test_a_nan_is_seen_where_it_is_and_not_all_over_as_after_the_clip() -> None:
    loop = train(poison=3)
    assert loop.watcher is not None
    snapshot = loop.watcher.history[3]
    assert dict(zip(snapshot.layers, snapshot.nonfinite.tolist(), strict=True))["0"] == 0
    assert dict(zip(snapshot.layers, snapshot.nonfinite.tolist(), strict=True))["2"] == 1


@pytest.mark.parametrize("clips", [True, False])
def test_a_loss_scaler_in_the_optimizer_is_taken_out_of_the_numbers(clips: bool) -> None:
    """Accelerate refuses fp16 on a CPU, so the optimizer gets a scaler of torch's by hand."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.Accelerator(cpu=True)
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = accelerate.optimizer.AcceleratedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), scaler=scaler)
    expected = []
    with watch(model, detectors=[]) as watcher:
        for step in range(4):
            loss = model(torch.randn(8, 4)).square().mean()
            grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            expected.append(math.sqrt(sum(float(grad.square().sum()) for grad in grads)))
            scaler.scale(loss).backward()
            if step == 2:
                model.weight.grad.fill_(math.inf)
            if clips:
                scaler.unscale_(optimizer.optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            watcher.step(optimizer, loss)
            optimizer.zero_grad()
    found = watcher.history
    assert [snapshot.skipped for snapshot in found] == [False, False, True, False]
    for step in (0, 1, 3):
        assert found[step].total_norm == pytest.approx(expected[step], rel=1e-5)
        assert found[step].total_norm_after == pytest.approx(0.01 if clips else expected[step], rel=1e-3)
    assert found[0].loss_scale == 1024
    assert found[3].loss_scale == 512
