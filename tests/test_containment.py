"""An error of the watching switches off what failed, is said once, and never reaches the training."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from torch import Tensor, nn

from gradwatch import Finding, GradientError, Snapshot, watch
from gradwatch.containment import Containment, OutOfService, SettingError, say


def train(model: nn.Module, steps: int = 4, **options: object) -> object:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, every_n_steps=1, **{"on_error": "warn", **options}) as watcher:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(torch.ones(4, 3)).square().mean()
            loss.backward()
            watcher.step(optimizer, loss)
    return watcher


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def weights(model: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in model.parameters()]


def bare(steps: int = 4) -> list[Tensor]:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()
    return weights(model)


def test_what_has_failed_is_not_called_again() -> None:
    containment, calls = Containment("warn"), []

    def fails() -> None:
        calls.append(1)
        raise RuntimeError("no\n  storage")

    containment.step = 7
    with pytest.warns(UserWarning, match="part one: not watched since step 7"):
        assert containment.run("part one", fails) is None
    containment.run("part one", fails)
    assert containment.run("part two", lambda: 3) == 3
    assert containment.failures == [OutOfService("part one", 7, "RuntimeError: no storage")]
    assert len(calls) == 1


def test_what_is_raised_on_purpose_and_interrupts_go_through() -> None:
    containment = Containment("warn")
    for error in (SettingError("bad"), KeyboardInterrupt()):
        with pytest.raises(type(error)), containment.guard("part"):
            raise error
    assert containment.failures == []


def test_on_error_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADWATCH_ON_ERROR", "warn")
    assert Containment().on_error == "warn"
    monkeypatch.setenv("GRADWATCH_ON_ERROR", "loud")
    with pytest.raises(ValueError, match="on_error is 'loud'"):
        Containment()


def test_a_warning_never_raises(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        say("the disk is full")
    assert capsys.readouterr().err == "gradwatch: the disk is full\n"


class Breaks:
    """Fails at the third call."""

    def __init__(self, name: str) -> None:
        self.__name__, self.calls = name, 0

    def __call__(self, *args: object) -> None:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError(f"{self.__name__} broke")


def test_a_detector_that_raises_is_switched_off_alone() -> None:
    model, odd, seen = net(), Breaks("odd"), []
    with pytest.warns(
        UserWarning, match=r"detector 0 odd: not watched since step 2 \(RuntimeError: odd broke\)"
    ) as said:
        watcher = train(model, detectors=[odd, seen.append])
    assert len(said) == 1
    assert odd.calls == 3
    assert [snapshot.step for snapshot in seen] == [0, 1, 2, 3]
    assert [failure.part for failure in watcher.out_of_service] == ["detector 0 odd"]
    assert all(torch.equal(a, b) for a, b in zip(weights(model), bare(), strict=True))


def test_a_hook_that_fails_takes_only_its_layer_away(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = sys.modules["gradwatch.probe.hooks"]
    monkeypatch.setattr(hooks, "saturated_share", Breaks("share"))
    model = net()
    with pytest.warns(UserWarning, match="layer 1: not watched since step 2") as said:
        watcher = train(model)
    assert len(said) == 1
    rms = {snapshot.step: dict(zip(snapshot.layers, snapshot.output_rms, strict=True)) for snapshot in watcher.history}
    assert rms[1]["1"] > 0
    assert rms[2]["1"] != rms[2]["1"]
    assert rms[3]["1"] != rms[3]["1"]
    assert rms[3]["0"] > 0
    assert all(torch.equal(a, b) for a, b in zip(weights(model), bare(), strict=True))


def test_a_reading_that_fails_ends_the_measuring_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["gradwatch.probe.probe"], "ParameterReading", Breaks("reading"))
    model = net()
    with pytest.warns(UserWarning, match="the measured steps: not watched since step 0") as said:
        watcher = train(model)
    assert len(said) == 1
    assert watcher.steps == 4
    assert not watcher.is_measuring
    assert all(torch.equal(a, b) for a, b in zip(weights(model), bare(), strict=True))


def test_errors_can_be_asked_for() -> None:
    with pytest.raises(RuntimeError, match="odd broke"):
        train(net(), detectors=[Breaks("odd")], on_error="raise")


def always(snapshot: Snapshot) -> Finding:
    return Finding("always", ("0",), snapshot.step, 1.0, 0.0, "always")


def test_what_the_user_does_about_a_finding_is_theirs() -> None:
    def refuse(finding: Finding) -> None:
        raise LookupError("the user's own")

    for on_finding, error in ((refuse, LookupError), ("raise", GradientError)):
        with pytest.raises(error):
            train(net(), detectors=[always], on_finding=on_finding)
