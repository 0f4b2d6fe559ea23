"""A plain loop under watch(): the measured steps and values, no traces, and unchanged training."""

import copy
import inspect
import io
import json
import math
import pickle
import re
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradwatch
from gradwatch import Finding, GradientError, GradientWarning, Snapshot, Watcher, watch

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def train(watcher: Watcher, model: nn.Module, steps: int, lr: float = 0.01) -> list[Snapshot | None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    snapshots = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        snapshots.append(watcher.step(optimizer, loss))
    return snapshots


def hooks_on(model: nn.Module) -> int:
    modules = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())
    return modules + sum(len(param._backward_hooks or ()) for param in model.parameters())


def finds(*steps: int, kind: str = "mine") -> Callable[[Snapshot], Finding | None]:
    def detector(snapshot: Snapshot) -> Finding | None:
        if snapshot.step in steps:
            return Finding(kind, ("0",), snapshot.step, 2.0, 1.0, f"{kind} at {snapshot.step}")
        return None

    return detector


def measured(watcher: Watcher) -> list[int]:
    return [snapshot.step for snapshot in watcher.history]


def test_the_first_twenty_steps_are_measured_and_then_every_fiftieth() -> None:
    model = network()
    with watch(model) as watcher:
        snapshots = train(watcher, model, 160)
    assert measured(watcher) == [*range(20), 50, 100, 150]
    assert [snapshot.step for snapshot in snapshots if snapshot] == measured(watcher)
    assert watcher.steps == 160


@pytest.mark.parametrize(
    ("every", "dense", "expected"), [(1, 0, [0, 1, 2, 3, 4, 5, 6]), (3, 0, [0, 3, 6]), (5, 2, [0, 1, 5]), (9, 0, [0])]
)
def test_the_schedule_is_what_was_asked_for(every: int, dense: int, expected: list[int]) -> None:
    model = network()
    with watch(model, every_n_steps=every, dense_steps=dense) as watcher:
        train(watcher, model, 7)
    assert measured(watcher) == expected


def test_hooks_are_there_for_a_measured_step_only() -> None:
    model, seen = network(), []
    with watch(model, every_n_steps=4, dense_steps=2) as watcher:
        for _ in range(10):
            seen.append((hooks_on(model) > 0, watcher.is_measuring))
            train(watcher, model, 1)
    assert seen == [(step in (0, 1, 4, 8),) * 2 for step in range(10)]
    assert hooks_on(model) == 0


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


@pytest.mark.parametrize("detector", [finds(50, 51, 52), finds(*range(50, 99))], ids=["passing", "lasting"])
def test_what_looks_odd_is_looked_at_again_for_a_while(detector: Callable) -> None:
    class Patient:
        patience = 1000

        def __call__(self, snapshot: Snapshot) -> Finding | None:
            return detector(snapshot)

    model = network()
    with watch(model, detectors=[Patient()]) as watcher:
        train(watcher, model, 120)
    again = [step for step in measured(watcher) if 50 <= step < 100]
    assert again == ([50, 51, 52, 53] if detector(Snapshot(60, ())) is None else list(range(50, 61)))
    assert measured(watcher)[-1] == 100


def test_a_finding_that_opens_makes_the_next_step_measured() -> None:
    model = network()
    with watch(model, detectors=[finds(50)], on_finding=lambda finding: None) as watcher:
        train(watcher, model, 101)
    assert measured(watcher)[20:] == [50, 51, 100]


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
            model(X).sum().backward()
            watcher.step(optimizer, loss)
    assert [snapshot.loss for snapshot in watcher.history] == pytest.approx([2.5, 2.5, math.nan], nan_ok=True)


def test_a_step_without_any_gradient_counts_but_is_not_measured() -> None:
    model = network()
    with watch(model) as watcher:
        assert watcher.step(torch.optim.SGD(model.parameters(), lr=0.1)) is None
        assert train(watcher, model, 1)[0].step == 1


def test_a_model_without_parameters_is_no_trouble() -> None:
    with watch(nn.ReLU()) as watcher:
        assert watcher.step(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)) is None


@pytest.mark.parametrize("size", [2, 3, 10, 31])
def test_the_history_is_bounded_and_covers_the_run(size: int) -> None:
    model = nn.Linear(6, 1)
    with watch(model, every_n_steps=1, history_size=size, detectors=[]) as watcher:
        for _ in range(4):
            train(watcher, model, 60)
            assert len(watcher.history) <= size
    steps = measured(watcher)
    assert steps == sorted(set(steps))
    assert steps[0] == 0
    assert steps[-1] == 239
    assert max(np.diff(steps)) <= 4 * 240 / size


def test_a_warning_comes_once_and_names_the_finding() -> None:
    model = network()
    with (
        watch(model, detectors=[finds(1, 2, 3)]) as watcher,
        pytest.warns(GradientWarning, match="mine at 1") as caught,
    ):
        train(watcher, model, 6)
    assert len(caught) == 1
    assert not watcher.should_stop


def test_stop_warns_and_asks_to_stop() -> None:
    model = network()
    with watch(model, detectors=[finds(1)], on_finding="stop") as watcher:
        train(watcher, model, 1)
        assert not watcher.should_stop
        with pytest.warns(GradientWarning):
            train(watcher, model, 1)
        assert watcher.should_stop


def test_raise_carries_the_finding_and_the_snapshot_is_kept() -> None:
    model = network()
    with (
        pytest.raises(GradientError, match="mine at 1") as caught,
        watch(model, detectors=[finds(1)], on_finding="raise") as watcher,
    ):
        train(watcher, model, 6)
    assert caught.value.finding is watcher.findings[0]
    assert measured(watcher) == [0, 1]
    assert hooks_on(model) == 0


def test_a_function_is_called_with_each_finding_that_opens() -> None:
    model, calls = network(), []
    with watch(model, detectors=[finds(1, 2), finds(4)], on_finding=calls.append) as watcher:
        train(watcher, model, 6)
    assert calls == [finds(1)(Snapshot(1, ())), finds(4)(Snapshot(4, ()))]


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


def test_a_detector_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="detectors: 'vanishing' is a str; expected"):
        watch(network(), detectors=["vanishing"])


class Lopsided:
    """The first layer's gradient is ten times any other's."""

    patience = 2

    def __call__(self, snapshot: Snapshot) -> Finding | None:
        first, *others = snapshot.grad_norm[~np.isnan(snapshot.grad_norm)]
        if first > 10 * max(others):
            message = f"lopsided: {first:.1e} in the first layer. Try a normalization layer."
            return Finding("lopsided", (snapshot.layers[0],), snapshot.step, first, 10 * max(others), message)
        return None


def test_a_detector_of_your_own_takes_a_few_lines() -> None:
    assert len(inspect.getsource(Lopsided).splitlines()) < 15
    model = network()
    nn.init.constant_(model[0].weight, 1e-3)
    with watch(model, detectors=[Lopsided()]) as watcher, warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientWarning)
        train(watcher, model, 4)
    assert all(finding.kind == "lopsided" for finding in watcher.findings)
    assert Lopsided()(Snapshot(0, ("a", "b"), grad_norm=[99.0, 1.0])).layers == ("a",)


def test_a_resumed_watcher_goes_on_counting_and_keeps_its_findings() -> None:
    model = network()
    with watch(model, detectors=[finds(18, 19)], on_finding=lambda finding: None) as first:
        train(first, model, 20)
    second = watch(model, detectors=[finds(20)])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    with second:
        train(second, model, 31)
    assert measured(second) == [*range(20), 50]
    assert second.findings == first.findings


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
        watcher = gradwatch.watch(model, every_n_steps=1, on_finding=lambda finding: None)
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
