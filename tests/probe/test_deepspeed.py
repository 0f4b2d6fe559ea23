"""DeepSpeed keeps the gradients to itself: it is refused wherever it comes in, and never called stalled.

The classes here have the names of DeepSpeed's and do with gradients what its own do. Tried with DeepSpeed 0.19.8 on a
CPU: in stages 1 to 3 of ZeRO no parameter has a gradient when the optimizer steps, and the optimizer holds joined
pieces.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch import Trainer
from torch import Tensor, nn

from gradwatch import GradientMonitor, GradientTransform, watch
from gradwatch.callbacks.trainer_checks import ranks_of
from gradwatch.containment import SettingError
from gradwatch.integrations.fabric import GradwatchCallback
from gradwatch.transforms import ClipByNorm


class DeepSpeedEngine(nn.Module):
    """Wraps a module, and takes its gradients away."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        for param in self.module.parameters():
            param.grad = None


class DeepSpeedZeroOptimizer:
    """Holds one flat copy of all parameters."""

    __module__ = "deepspeed.runtime.zero.stage_1_and_2"

    def __init__(self, params: list[nn.Parameter]) -> None:
        flat = nn.Parameter(torch.cat([param.detach().reshape(-1) for param in params]))
        self.param_groups: list[dict[str, Any]] = [{"params": [flat], "lr": 0.1}]

    def step(self) -> None:
        pass


class DeepSpeedOptimizerWrapper(torch.optim.SGD):
    """Accelerate's, around the one of the engine."""


class DeepSpeedStrategy:
    """Lightning's."""

    model = None


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def engine_in_a_wrapper() -> nn.Module:
    return nn.Sequential(DeepSpeedEngine(network()))  # as Fabric's module around the engine


def module_of_an_engine() -> nn.Module:
    """The plain module, after deepspeed.initialize with ZeRO."""
    model = network()
    for number, param in enumerate(model.parameters()):
        param.ds_id = number
    return model


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: DeepSpeedEngine(network()), "the model is a DeepSpeedEngine"),
        (engine_in_a_wrapper, "the model is a DeepSpeedEngine"),
        (module_of_an_engine, "the model is a module with parameters of ZeRO"),
    ],
)
def test_a_model_of_deepspeed_is_refused_at_once(make: Any, named: str) -> None:
    with pytest.raises(SettingError, match=rf"{named} \(deepspeed.initialize.*nothing to watch; use DDP or FSDP2"):
        watch(make())


@pytest.mark.filterwarnings("ignore:gradwatch:UserWarning")
@pytest.mark.parametrize("kind", [DeepSpeedZeroOptimizer, lambda params: DeepSpeedOptimizerWrapper(params, lr=0.1)])
def test_an_optimizer_of_deepspeed_ends_the_watching_and_not_the_run(kind: Any) -> None:
    """The watcher was made before deepspeed.initialize, so that only the optimizer tells."""
    model = network()
    optimizer, engine = kind(list(model.parameters())), DeepSpeedEngine(model)
    with watch(model, every_n_steps=1, on_error="warn", on_finding="raise") as watcher:
        for _ in range(6):
            loss = engine(torch.ones(4, 4)).square().mean()
            engine.backward(loss)
            watcher.step(optimizer, loss)
    (failure,) = watcher.out_of_service
    assert failure.part == "the measured steps"
    assert f"the optimizer is a {type(optimizer).__name__}. DeepSpeed keeps gradients to itself" in failure.error
    assert watcher.findings == []
    assert watcher.steps == 6


def test_a_strategy_of_deepspeed_is_refused_by_name() -> None:
    trainer = Trainer(logger=False, enable_checkpointing=False)
    trainer._accelerator_connector.strategy = DeepSpeedStrategy()
    with pytest.raises(SettingError, match=r"the Trainer's strategy is a DeepSpeedStrategy.*nothing to watch; use DDP"):
        ranks_of(trainer)


def test_an_engine_in_the_wrapper_of_fabric_is_refused() -> None:
    """Fabric's callback watches the module in the wrapper, and finds the processes by the wrapper."""

    class Wrapped(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module, self._forward_module = module, DeepSpeedEngine(module)

    callback = GradwatchCallback(record_path=False, summary=False)
    with pytest.raises(SettingError, match="the model is a DeepSpeedEngine"):
        callback.on_after_setup(Fabric(accelerator="cpu"), Wrapped(network()))


def test_what_has_a_gradient_is_not_refused() -> None:
    model = network()
    with watch(model) as watcher:
        loss = model(torch.ones(4, 4)).mean()
        loss.backward()
        snapshot = watcher.step(torch.optim.SGD(model.parameters(), lr=0.1), loss)
    assert snapshot is not None
    assert snapshot.total_norm > 0
    assert GradientMonitor()
    assert GradientTransform([ClipByNorm(1.0)])
