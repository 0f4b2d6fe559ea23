"""A clip by norm is seen wherever it runs, and changes nothing."""

from __future__ import annotations

import copy
import gc
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad
from torch.nn.utils import clip_grad_norm_ as imported_by_name
from watched_loops import X, network

from gradwatch import GradientMonitor, Snapshot, watch

pytestmark = pytest.mark.skipif(not hasattr(clip_grad, "_clip_grads_with_norm_"), reason="older torch: no clip is seen")
ORIGINAL = getattr(clip_grad, "_clip_grads_with_norm_", None)
Clip = Callable[[nn.Module], object]


def at(bound: float) -> Clip:
    return lambda model: imported_by_name(model.parameters(), bound)


def run(
    early: Clip | None = None, late: Clip | None = None, *, reads: bool = False, steps: int = 4, **options: Any
) -> tuple[list[Snapshot], Any, nn.Module]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model, on_finding=lambda _: None, on_error="raise", **options) as watcher:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(X).square().mean()
            if early:
                early(model)
            loss.backward()
            if reads:
                watcher.read(optimizer)
            if late:
                late(model)
            watcher.step(optimizer, loss)
    return watcher.history, watcher, model


@pytest.fixture(autouse=True)
def torch_has_its_own_function_back() -> Any:
    yield
    assert clip_grad._clip_grads_with_norm_ is ORIGINAL


@pytest.mark.parametrize("reads", [True, False])
def test_a_clip_after_backward_is_seen_with_the_norm_before_it(reads: bool) -> None:
    plain = run()[0]
    history, watcher, _ = run(late=at(1e-3), reads=reads)
    assert [(s.clip, s.clip_max_norm) for s in history] == [("norm", 1e-3)] * 4
    assert history[0].total_norm == pytest.approx(plain[0].total_norm)
    assert history[0].total_norm_after == pytest.approx(1e-3, rel=1e-2)
    assert watcher.findings == []
    assert plain[0].clip == ""
    assert math.isnan(plain[0].clip_max_norm)


def test_a_clip_before_backward_is_a_finding_with_its_cause() -> None:
    history, watcher, _ = run(early=at(1.0))
    assert {s.clip for s in history} == {"before backward"}
    assert [(f.kind, f.step, f.value) for f in watcher.findings] == [("idle-clip", 0, 1.0)]
    assert watcher.diagnosis()[0].cause == "clip without effect"


def test_a_clip_of_a_copy_is_a_finding() -> None:
    twin = network()
    history, watcher, _ = run(late=lambda _: imported_by_name(twin.parameters(), 1.0))
    assert {s.clip for s in history} == {"no gradients"}
    assert [f.kind for f in watcher.findings] == ["idle-clip"]


@pytest.mark.parametrize("bound", [math.inf, torch.tensor(1.0)])
def test_what_is_no_clip_or_cannot_be_read_says_nothing(bound: Any) -> None:
    assert {s.clip for s in run(early=lambda m: imported_by_name(m.parameters(), bound))[0]} == {""}


def test_a_clip_of_another_model_says_nothing() -> None:
    other = nn.Linear(2, 2)
    other(torch.ones(1, 2)).sum().backward()
    clip: Clip = lambda _: imported_by_name(other.parameters(), 1.0)  # noqa: E731
    assert {s.clip for s in run(clip, clip)[0]} == {""}


def test_a_clip_in_both_places_is_a_clip() -> None:
    assert {s.clip for s in run(at(1.0), at(1.0))[0]} == {"norm"}


def test_the_first_of_two_backward_passes_may_be_of_layers_that_are_not_watched() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model, include=["0"], on_error="raise") as watcher:
        for _ in range(3):
            optimizer.zero_grad()
            model[2](torch.ones(1, 8)).sum().backward()
            imported_by_name(model[2].parameters(), 0.1)
            watcher.step(optimizer)
    assert {s.clip for s in watcher.history} == {"norm"}


def test_weights_are_bit_for_bit_the_same() -> None:
    bare = network()
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.01)
    for _ in range(4):
        optimizer.zero_grad()
        bare(X).square().mean().backward()
        imported_by_name(bare.parameters(), 0.1)
        optimizer.step()
    watched = run(late=at(0.1))[2]
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), watched.parameters(), strict=True))


def test_watchers_beside_each_other_copies_and_dropped_ones() -> None:
    first, second = network(), network()
    with watch(first, dense_steps=2) as one:
        with watch(second, dense_steps=2) as two:
            assert clip_grad._clip_grads_with_norm_ is not ORIGINAL
            copies = copy.copy(one), pickle.loads(pickle.dumps(two))
            first(X).sum().backward()
            imported_by_name(first.parameters(), 1.0)
            optimizer = torch.optim.SGD(first.parameters(), lr=0.0)
            snapshot = one.step(optimizer)
        assert snapshot is not None
        assert snapshot.clip == "norm"
        assert len(copies) == 2
        assert clip_grad._clip_grads_with_norm_ is not ORIGINAL


def test_an_error_of_the_noting_never_reaches_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradwatch.pipeline import clips

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(clips, "_mark", fail)
    model = network()
    with pytest.warns(UserWarning, match="the clips: not watched"), watch(model, on_error="warn") as watcher:  # noqa: PT031
        model(X).sum().backward()
        imported_by_name(model.parameters(), 1.0)
        watcher.step(torch.optim.SGD(model.parameters(), lr=0.0))
    assert len(watcher.history) == 1


def test_an_exception_in_the_step_puts_the_function_back() -> None:
    with pytest.raises(KeyError), watch(network()):
        raise KeyError
    gc.collect()


def test_compiled_clips_run_without_a_word() -> None:
    compiled = torch.compile(lambda params: imported_by_name(params, 0.1), backend="eager")

    def clip(model: nn.Module) -> Tensor:
        norm: Tensor = compiled(list(model.parameters()))
        return norm

    history, watcher, _ = run(late=clip, dense_steps=2)
    assert {s.clip for s in history} <= {"", "norm"}
    assert watcher.out_of_service == []
    assert watcher.findings == []


def lightning_run(place: str, bound: float) -> GradientMonitor:
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.automatic_optimization = place == "automatic"

        def training_step(self, batch: list[Tensor]) -> Any:
            loss = self.net(batch[0]).square().mean()
            if self.automatic_optimization:
                return loss
            optimizer = self.optimizers()
            optimizer.zero_grad()
            if place == "early":
                imported_by_name(self.parameters(), bound)
            self.manual_backward(loss)
            if place == "torch":
                imported_by_name(self.parameters(), bound)
            if place == "lightning":
                self.clip_gradients(optimizer, gradient_clip_val=bound, gradient_clip_algorithm="norm")
            optimizer.step()
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    monitor = GradientMonitor(on_finding=lambda _: None, on_error="raise", summary=False, record_path=False)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X), batch_size=8)
    options = {"gradient_clip_val": bound} if place == "automatic" else {}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    lightning.Trainer(max_steps=4, callbacks=[monitor], enable_model_summary=False, **quiet, **options).fit(
        Module(), data
    )
    return monitor


@pytest.mark.parametrize("place", ["automatic", "torch", "lightning"])
def test_a_clip_in_lightning_is_seen(place: str) -> None:
    history = lightning_run(place, 1e-3).history
    assert {(s.clip, s.clip_max_norm) for s in history} == {("norm", 1e-3)}
    assert all(s.clip_coefficient < 0.5 for s in history)


def test_a_clip_before_manual_backward_is_found() -> None:
    assert [f.case for f in lightning_run("early", 1.0).findings] == ["before backward"]
