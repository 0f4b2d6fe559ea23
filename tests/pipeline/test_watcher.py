"""A plain loop under watch(): the values of a Snapshot, no hooks left behind, and unchanged training."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from watched_loops import X, hooks_on, network, train

from gradwatch import watch


def test_a_snapshot_holds_what_autograd_says() -> None:
    model = network()
    with watch(model) as watcher:
        loss = model(X).square().mean()
        loss.backward()
        expected = [param.grad.double().norm().item() for param in model.parameters()]
        snapshot = watcher.step(torch.optim.SGD(model.parameters(), lr=0.1), loss)
    assert snapshot.layers == ("0", "1", "2")
    assert snapshot.params == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert snapshot.param_grad_norm.tolist() == pytest.approx(expected, rel=1e-5)
    assert snapshot.total_norm == snapshot.total_norm_after == pytest.approx(math.hypot(*expected), rel=1e-5)
    assert snapshot.loss == pytest.approx(loss.item())


def boom(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["forward", "backward", "detector", "between"])
def test_an_exception_leaves_no_hook(where: str) -> None:
    model = network()
    if where == "forward":
        model[1].forward = boom

    def loop() -> None:
        with watch(model, detectors=[boom] if where == "detector" else []) as watcher:
            out = model(X)
            if where == "backward":
                out.register_hook(boom)
            out.sum().backward()
            if where != "between":
                watcher.step(torch.optim.SGD(model.parameters(), lr=0.1))
            boom()

    with pytest.raises(KeyboardInterrupt):
        loop()
    assert hooks_on(model) == 0


def test_a_copy_made_between_two_steps_is_not_watched() -> None:
    model, alone = network(), network()
    with watch(model) as watcher, watch(alone) as other:
        twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        torch.save(model, io.BytesIO())
        for twin in twins:
            twin(X).square().mean().backward()
        snapshot, expected = train(watcher, model, 1)[0], train(other, alone, 1)[0]
    assert snapshot.calls == {}
    assert snapshot.grad_output_norm.tolist() == expected.grad_output_norm.tolist()


def test_accumulated_micro_batches_give_the_norms_of_the_whole_batch() -> None:
    whole, parts = network(), network()
    with watch(whole) as one, watch(parts) as other:
        expected = train(one, whole, 1)[0]
        for part in X.chunk(4):
            (parts(part).square().mean() / 4).backward()
        snapshot = other.step(torch.optim.SGD(parts.parameters(), lr=0.01))
    for column in ("grad_norm", "grad_output_norm"):
        np.testing.assert_allclose(getattr(snapshot, column), getattr(expected, column), rtol=1e-4)
    assert snapshot.total_norm == pytest.approx(expected.total_norm, rel=1e-4)
    assert snapshot.calls == {}
    assert len(other.history) == 1


@pytest.mark.parametrize("max_norm", [0.01, 1e6])
def test_clipping_between_read_and_step_shows_after_the_clip(max_norm: float) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model) as watcher:
        model(X).square().mean().backward()
        watcher.read(optimizer)
        before = nn.utils.clip_grad_norm_(model.parameters(), max_norm).item()
        snapshot = watcher.step(optimizer)
    assert snapshot.total_norm == pytest.approx(before, rel=1e-5)
    assert snapshot.total_norm_after == pytest.approx(min(before, max_norm), rel=1e-3)
    assert snapshot.clip_coefficient == pytest.approx(min(1, max_norm / before), rel=1e-3)


def test_two_optimizers_are_both_read() -> None:
    model = network()
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.01) for part in (model[0], model[2])]
    with watch(model) as watcher:
        model(X).square().mean().backward()
        watcher.read(optimizers[0])
        optimizers[0].step()
        snapshot = watcher.step(optimizers[1])
    assert snapshot.params == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert snapshot.total_norm == pytest.approx(math.hypot(*snapshot.param_grad_norm))


def test_the_loss_of_every_step_is_kept_and_the_total_norm_if_asked_for() -> None:
    for asked in (False, True):
        model = network()
        with watch(model, total_norm_every_step=asked) as watcher:
            train(watcher, model, 51)
        steps, losses, totals = (
            np.concatenate([getattr(s, f"trace_{name}") for s in watcher.history])
            for name in ("step", "loss", "total_norm")
        )
        assert steps.tolist() == list(range(51))
        assert (np.diff(losses) < 0).all()
        assert (totals > 0).all() if asked else np.isnan(totals).all()
        if asked:
            assert totals[50] == pytest.approx(watcher.history[-1].total_norm)


def test_a_loss_may_be_a_number_or_missing() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model) as watcher:
        for loss in (2.5, torch.tensor([2.5]), None):
            optimizer.zero_grad()
            model(X).sum().backward()
            watcher.step(optimizer, loss)
    assert [snapshot.loss for snapshot in watcher.history] == pytest.approx([2.5, 2.5, math.nan], nan_ok=True)


def test_a_step_without_any_gradient_is_measured_and_one_alone_is_no_finding() -> None:
    model = network()
    with watch(model) as watcher:
        empty = watcher.step(torch.optim.SGD(model.parameters(), lr=0.1))
        assert np.isnan(empty.param_grad_norm).all()
        assert empty.params
        assert train(watcher, model, 1)[0].step == 1
    assert watcher.findings == []


def test_a_model_without_parameters_is_no_trouble() -> None:
    with watch(nn.ReLU()) as watcher:
        assert watcher.step(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)) is None


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps is 0; expected a whole number of at least 1"),
        ({"every_n_steps": -1}, "every_n_steps is -1; expected"),
        ({"every_n_steps": 2.5}, "every_n_steps is 2.5; expected"),
        ({"every_n_steps": True}, "every_n_steps is True; expected"),
        ({"every_n_steps": None}, "every_n_steps is None; expected"),
        ({"dense_steps": -1}, "dense_steps is -1; expected a whole number of at least 0"),
        ({"history_size": 1}, "history_size is 1; expected a whole number of at least 2"),
        ({"on_finding": "explode"}, "on_finding is 'explode'; expected 'warn', 'stop', 'raise' or a function"),
        ({"on_finding": None}, "on_finding is None; expected"),
        ({"include": ["encoder.*"]}, "'encoder.*' matches no layer; the nearest of the 3 layers are '0'"),
        ({"exclude": ["3"]}, "'3' matches no layer; the nearest"),
    ],
    ids=str,
)
def test_a_bad_setting_is_refused_when_it_is_given(bad: dict, message: str) -> None:
    model = network()
    with pytest.raises(ValueError, match=re.escape(message)):
        watch(model, **bad)
    assert hooks_on(model) == 0


class DropoutMLP(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))


class ResNet(nn.Module):
    """Two residual blocks with in-place ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.blocks = nn.ModuleList(nn.Sequential(*self.half(), nn.ReLU(inplace=True), *self.half()) for _ in range(2))
        self.head = nn.Linear(4, 3)

    def half(self) -> tuple[nn.Module, nn.Module]:
        return nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x.view(-1, 1, 2, 3)))
        for block in self.blocks:
            x = self.relu(block(x).add_(x))
        return self.head(x.mean((2, 3)))


class LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 8, num_layers=2, dropout=0.2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.view(-1, 3, 2))[0][:, -1])


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(2, 2, 8, batch_first=True), 2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x.view(-1, 3, 2)).flatten(1))


@pytest.mark.parametrize("kind", [DropoutMLP, ResNet, LSTM, Transformer])
def test_watching_changes_no_weight_by_a_bit(kind: type[nn.Module]) -> None:
    def trained(*, watched: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = kind()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        watcher = watch(model, every_n_steps=1, on_finding=lambda finding: None)
        if watched:
            watcher.begin()
        for _ in range(50):
            optimizer.zero_grad()
            loss = model(torch.randn(16, 6)).square().mean()
            loss.backward()
            if watched:
                assert watcher.step(optimizer, loss) is not None
            else:
                optimizer.step()
        watcher.close()
        return model.state_dict()

    bare, watched = trained(watched=False), trained(watched=True)
    assert all(torch.equal(bare[name], watched[name]) for name in bare)
