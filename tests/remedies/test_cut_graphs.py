"""Gradients that the model's code blocks: by detaching, and by a loss scale too large for float16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from every_remedy import Classifier, Cut, labelled, mlp
from torch import Tensor, nn

from gradwatch.remedies import KeepGraph, NotApplicable, ScaleLoss, Setup
from gradwatch.remedies.unfreeze import Uncut


class WithoutGrad(Cut):
    """Its body is run without a graph."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            code = self.body(x)
        output: Tensor = self.head(code)
        return output


class OnlyLogged(Classifier):
    """It detaches what it logs, and nothing else."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("own_loss", loss.detach())
        return loss


@pytest.mark.parametrize("kind", [Cut, WithoutGrad])
def test_a_copy_that_keeps_its_graph_has_all_gradients(kind: type[nn.Module]) -> None:
    setup = Setup(kind(), batch=labelled(8))
    kept = KeepGraph().apply(setup).module
    kept(setup.batch[0]).sum().backward()
    assert all(param.grad is not None and param.grad.any() for param in kept.parameters())
    assert torch.is_grad_enabled()
    setup.module(setup.batch[0]).sum().backward()
    assert setup.module.body.weight.grad is None


def test_the_line_that_cuts_is_named() -> None:
    line = KeepGraph().patch(Setup(Classifier(Cut()), batch=labelled(8)))
    assert "every_remedy.py:" in line
    assert line.endswith("output: Tensor = self.head(self.body(x).detach())")


def test_an_optimizer_that_steps_meanwhile_has_no_graph() -> None:
    model = Cut()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Uncut() as uncut:
        model(labelled(8)[0]).sum().backward()
        optimizer.step()
    assert len(uncut.cuts) == 1


@pytest.mark.parametrize("module", [OnlyLogged(mlp()), Classifier(mlp())])
def test_a_model_that_cuts_no_parameter_off_is_refused(module: nn.Module) -> None:
    with pytest.raises(NotApplicable, match="cuts no parameter off"):
        KeepGraph().apply(Setup(module, batch=labelled(8)))


class Half(Classifier):
    """It computes in float16 and scales the loss itself."""

    def __init__(self, weight: float, scale: float) -> None:
        super().__init__(mlp(nn.ReLU))
        self.weight, self.scale = weight, scale

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            return self.weight * super().training_step(batch, batch_idx)

    def backward(self, loss: Tensor) -> None:
        (loss * self.scale).backward()
        for param in self.parameters():
            param.grad = param.grad / self.scale if param.grad is not None else None


def gradient(module: Any, passes: int = 1) -> Tensor:
    module.zero_grad()
    for _ in range(passes):
        module.backward(module.training_step(labelled(8), 0))
    return torch.cat([param.grad.flatten() for param in module.parameters() if param.grad is not None] or [Tensor()])


def test_a_gradient_that_was_rounded_to_zero_is_back() -> None:
    torch.manual_seed(0)
    faint = Half(1e-9, 1.0)
    scaled = ScaleLoss(start=2.0**28).apply(Setup(faint)).module
    assert not gradient(faint).any()
    faint.weight = 1.0
    torch.testing.assert_close(gradient(scaled) / 1e-9, gradient(faint), rtol=0.05, atol=1e-3)


def test_accumulated_passes_add_up() -> None:
    torch.manual_seed(0)
    scaled = ScaleLoss(start=64.0).apply(Setup(Half(1.0, 1.0))).module
    torch.testing.assert_close(gradient(scaled, 3), 3 * gradient(scaled))


def test_a_scale_that_overflows_comes_down_until_gradients_are_finite() -> None:
    torch.manual_seed(0)
    loud = Half(1.0, 2.0**24)
    scaled = ScaleLoss().apply(Setup(loud)).module
    seen = [gradient(scaled) for _ in range(6)]
    assert seen[0].numel() == 0
    assert seen[-1].any()
    assert all(torch.isfinite(each).all() for each in seen)


def test_a_trainer_in_float16_has_a_scale_already() -> None:
    with pytest.raises(NotApplicable, match="already scales the loss"):
        ScaleLoss().apply(Setup(Classifier(mlp()), options={"precision": "16-mixed"}))
