"""assert_healthy_gradients: passes, failures and their messages, and no traces afterwards."""

from __future__ import annotations

import random
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import gradwatch
from gradwatch.testing import assert_healthy_gradients

SMALL_STEPS = partial(torch.optim.SGD, lr=1e-6)


def network(activation: type[nn.Module], depth: int = 8, width: int = 32) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(8 if i == 0 else width, width), activation()]
        if activation is nn.ReLU:
            nn.init.kaiming_normal_(layers[-2].weight)
    return nn.Sequential(*layers, nn.Linear(width, 3))


def batch(samples: int = 64) -> tuple[Tensor, Tensor]:
    x = torch.randn(samples, 8, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*batch(256)), batch_size=64, shuffle=True)


class Net(LightningModule):
    def __init__(self, activation: type[nn.Module] = nn.ReLU, fault: str = "") -> None:
        super().__init__()
        self.network, self.fault = network(activation), fault
        self.dropout = nn.Dropout(0.1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        if self.fault == "crash":
            raise KeyError("no such label")
        if self.fault == "no loss":
            return None
        warnings.warn("a warning of the model's own", stacklevel=1)
        loss = cross_entropy(self.network(self.dropout(batch[0])), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        self.logger.experiment.add_scalar("mine", loss, self.trainer.global_step)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}

    def configure_callbacks(self) -> Any:
        return [ModelCheckpoint(dirpath="checkpoints", monitor="val_loss")]


class Data(LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return loader()


@pytest.mark.parametrize("data", [batch, loader, Data])
def test_a_healthy_module_passes(data: Any) -> None:
    run = assert_healthy_gradients(Net(), data())
    assert run.steps == len(run.history) == 20
    assert run.losses[1] < run.losses[0]


@pytest.mark.parametrize("data", [batch, loader, Data])
def test_a_vanishing_gradient_fails_with_layers_cause_and_remedy(data: Any) -> None:
    with pytest.raises(AssertionError) as raised:
        assert_healthy_gradients(Net(nn.Sigmoid), data())
    text = str(raised.value)
    assert text.startswith("not healthy: Net, 20 steps, loss ")
    assert "vanishing since step 0" in text
    assert "saturating activation" in text
    assert "1. replace the bounded" in text
    assert "network.16" in text


def test_a_plain_module_and_its_loss() -> None:
    run = assert_healthy_gradients(network(nn.ReLU), batch(), loss=cross_entropy)
    assert run.steps == 20
    with pytest.raises(AssertionError, match="vanishing since step 0"):
        assert_healthy_gradients(network(nn.Sigmoid), loader(), loss=cross_entropy, optimizer=torch.optim.Adam)


def test_fewer_steps_than_a_detector_has_patience_for_are_enough() -> None:
    with pytest.raises(AssertionError, match="vanishing"):
        assert_healthy_gradients(network(nn.Sigmoid), batch(), 2, loss=cross_entropy)
    assert assert_healthy_gradients(network(nn.ReLU), batch(), 2, loss=cross_entropy).steps == 2


def test_a_training_that_crashes_fails_and_names_its_error() -> None:
    with pytest.raises(AssertionError, match="the training raised KeyError: 'no such label'") as raised:
        assert_healthy_gradients(Net(fault="crash"), batch())
    assert isinstance(raised.value.__cause__, KeyError)
    wrong = nn.Sequential(nn.Linear(7, 3))
    with pytest.raises(AssertionError, match="the training raised RuntimeError"):
        assert_healthy_gradients(wrong, batch(), loss=cross_entropy)


def test_a_training_without_a_step_fails_and_ends() -> None:
    with pytest.raises(AssertionError, match="no optimizer step was made"):
        assert_healthy_gradients(Net(fault="no loss"), batch(), steps=3)
    empty: DataLoader[Any] = DataLoader(TensorDataset(torch.zeros(0, 8), torch.zeros(0)))
    with pytest.raises(AssertionError, match="no optimizer step was made"):
        assert_healthy_gradients(network(nn.ReLU), empty, loss=cross_entropy)


def test_the_runs_own_settings_are_taken_over() -> None:
    clipped = assert_healthy_gradients(Net(), batch(), options={"gradient_clip_val": 0.1, "devices": 8})
    assert clipped.history[0].total_norm_after == pytest.approx(0.1, rel=1e-3)
    run = assert_healthy_gradients(Net(), loader(), steps=6, options={"accumulate_grad_batches": 2, "max_epochs": 1})
    assert run.steps == 6


def test_schedules_are_those_of_the_whole_run() -> None:
    class Scheduled(Net):
        planned = 0.0

        def configure_optimizers(self) -> Any:
            type(self).planned = self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

    assert_healthy_gradients(Scheduled(), loader(), steps=3, options={"max_epochs": 50})
    assert Scheduled.planned == 200


@pytest.mark.parametrize("plain", [False, True])
def test_nothing_is_left_behind(
    plain: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module, data = (network(nn.ReLU), batch()) if plain else (Net(), batch())
    module.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002 - users' data
    inputs = data[0].clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_healthy_gradients(module, data, steps=5, **({"loss": cross_entropy} if plain else {}))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not module.training
    assert all(param.grad is None for param in module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002 - as above
    assert random.getstate() == states[2]
    assert torch.equal(data[0], inputs)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_a_module_can_be_fitted_afterwards_and_before(tmp_path: Path) -> None:
    class Free(Net):
        def configure_callbacks(self) -> Any:
            return []

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    module = Free()
    for _ in range(2):
        assert_healthy_gradients(module, loader(), steps=2)
        options: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(accelerator="cpu", max_steps=2, default_root_dir=tmp_path, **options)
        trainer.fit(module, loader())
        assert trainer.global_step == 2


def test_what_only_the_first_pass_tells_fails_too_unless_it_is_allowed() -> None:
    x, y = batch()
    pixels = 50 * x + 100, y
    model = nn.Sequential(nn.Linear(8, 3), nn.Softmax(-1))
    with pytest.raises(AssertionError, match="zero-gradient head"):
        assert_healthy_gradients(model, (x, y), loss=cross_entropy)
    with pytest.raises(AssertionError, match="unscaled input"):
        assert_healthy_gradients(model[:1], pixels, loss=cross_entropy, optimizer=SMALL_STEPS)
    assert_healthy_gradients(
        model[:1], pixels, loss=cross_entropy, optimizer=SMALL_STEPS, allow=["unscaled input", "outlier batch"]
    )


def test_experts_that_wait_for_their_turn_are_healthy() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turn, self.experts = 0, nn.ModuleList(network(nn.ReLU, 2) for _ in range(16))

        def forward(self, x: Tensor) -> Tensor:
            self.turn += 1
            return self.experts[self.turn % 16](x)

    assert_healthy_gradients(Experts(), batch(), loss=cross_entropy)


def test_a_finding_can_be_allowed_by_its_kind() -> None:
    assert_healthy_gradients(network(nn.Sigmoid), batch(), loss=cross_entropy, allow=["vanishing"])
    assert_healthy_gradients(Net(nn.Sigmoid), batch(), allow=["saturating activation"])
    assert_healthy_gradients(Net(nn.Sigmoid), batch(), allow=["GW101"])
    with pytest.raises(ValueError, match=r"did you mean 'vanishing'. Expected names or identifiers of causes"):
        assert_healthy_gradients(network(nn.Sigmoid), batch(), loss=cross_entropy, allow=["vanish"])


@pytest.mark.parametrize("steps", [0, 2.0, True])
def test_steps_are_a_whole_number(steps: Any) -> None:
    with pytest.raises(ValueError, match="expected a whole number of at least 1"):
        assert_healthy_gradients(network(nn.ReLU), batch(), steps, loss=cross_entropy)


def test_a_plain_module_without_a_loss_is_refused_with_the_way_out() -> None:
    with pytest.raises(TypeError, match=r"Sequential is no .*LightningModule; expected one, or a loss function"):
        assert_healthy_gradients(network(nn.ReLU), batch())


def test_a_module_that_cannot_be_copied_is_refused() -> None:
    module = network(nn.ReLU)
    module.cached = module[0].weight * 2
    with pytest.raises(TypeError, match=r"Sequential can't be copied"):
        assert_healthy_gradients(module, batch(), loss=cross_entropy)


USER_TEST = """
import torch
from torch import nn
import gradwatch
from gradwatch.testing import assert_healthy_gradients

def test_gradients():
    layers = [part for _ in range(8) for part in (nn.Linear(8, 8), nn.Sigmoid())]
    model = nn.Sequential(*layers, nn.Linear(8, 1))
    assert_healthy_gradients(model, (torch.randn(64, 8), torch.randn(64, 1)), loss=nn.MSELoss())
"""


def test_pytest_shows_the_message_and_not_the_inside(tmp_path: Path) -> None:
    path = tmp_path / "test_users_own.py"
    path.write_text(USER_TEST)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.returncode == 1
    assert "vanishing since step 0" in result.stdout
    assert "raise AssertionError" not in result.stdout


@pytest.mark.parametrize("rate", [1e-4, 0.01])
@pytest.mark.parametrize("seed", range(5))
def test_noise_that_nothing_can_be_learned_from_is_no_fault(seed: int, rate: float) -> None:
    torch.manual_seed(seed)
    small = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    noise = torch.randn(32, 4), torch.randn(32, 1)
    assert_healthy_gradients(small, noise, loss=nn.MSELoss(), optimizer=partial(torch.optim.SGD, lr=rate))


def test_a_language_model_that_falls_by_a_tenth_in_twenty_steps_needs_no_warm_up() -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True, norm_first=True)
    model = nn.Sequential(nn.Embedding(65, 64), block, nn.LayerNorm(64), nn.Linear(64, 65))
    for part in model.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, 0.0, 0.02)
    tokens = torch.randint(65, (64, 16)), torch.randint(65, (64, 16))
    assert_healthy_gradients(
        model, tokens, loss=lambda out, y: cross_entropy(out.flatten(0, 1), y.flatten()), optimizer=torch.optim.Adam
    )


class Still(Net):
    """A network that can't move, for one reason or another."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        if self.fault == "no gradient":
            return cross_entropy(self.network(x).detach().requires_grad_(), y)
        return cross_entropy(self.network(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        held = network(nn.ReLU) if self.fault == "a copy" else self
        return torch.optim.SGD(held.parameters(), lr=0.0 if self.fault == "rate zero" else 0.01)

    def optimizer_zero_grad(self, *given: Any) -> None:
        if self.fault != "not zeroed":
            super().optimizer_zero_grad(*given)


STILL = {
    "no gradient": ("stalled", "frozen or detached part"),
    "a copy": ("stalled", "frozen or detached part"),
    "rate zero": ("unmoved", "learning rate too low"),
    "not zeroed": ("carried-over", "gradients are not zeroed"),
}


@pytest.mark.parametrize("fault", STILL)
def test_a_step_that_goes_wrong_is_told(fault: str) -> None:
    kind, cause = STILL[fault]
    with pytest.raises(AssertionError) as caught:
        assert_healthy_gradients(Still(fault=fault), loader())
    assert f"{kind} since step" in str(caught.value)
    assert cause in str(caught.value)
    assert "no optimizer step" not in str(caught.value)


@pytest.mark.parametrize("fault", ["no gradient", "a copy"])
def test_diagnose_tells_of_a_pass_in_which_nothing_is_reached(fault: str) -> None:
    assert gradwatch.diagnose(Still(fault=fault), batch()).diagnoses[0].cause == "frozen or detached part"
