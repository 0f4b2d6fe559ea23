"""All forms in which a module may configure its optimizers, changed and trained by a real Trainer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from every_remedy import Classifier, labelled, mlp
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LambdaLR, OneCycleLR, SequentialLR, StepLR

from gradwatch.remedies import ChangeOptimizer, LowerLearningRate, NotApplicable, Setup, WarmUp
from gradwatch.short_runs.batches import SameBatches

RATE = 0.1


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=RATE, momentum=0.9)


def grouped(module: Any) -> Any:
    first, *rest = module.parameters()
    return sgd([{"params": [first], "lr": RATE / 10}, {"params": rest}])


def one_cycle(module: Any) -> Any:
    optimizer = sgd(module.parameters())
    return [optimizer], [{"scheduler": OneCycleLR(optimizer, RATE, total_steps=10), "interval": "step"}]


def sequential(module: Any) -> Any:
    optimizer = sgd(module.parameters())
    parts = [LambdaLR(optimizer, lambda step: 0.5), StepLR(optimizer, 2)]
    scheduler = SequentialLR(optimizer, parts, milestones=[2])
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def plateau(module: Any) -> Any:
    optimizer = sgd(module.parameters())
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "train_loss"}


FORMS: dict[str, Callable[[Any], Any]] = {
    "optimizer": lambda m: sgd(m.parameters()),
    "list": lambda m: [sgd(m.parameters())],
    "tuple": lambda m: (sgd(m.parameters()),),
    "groups": grouped,
    "two lists": lambda m: ([o := sgd(m.parameters())], [ExponentialLR(o, 0.9)]),
    "dict": lambda m: {"optimizer": (o := sgd(m.parameters())), "lr_scheduler": CosineAnnealingLR(o, 10)},
    "list of dicts": lambda m: [{"optimizer": (o := sgd(m.parameters())), "lr_scheduler": {"scheduler": StepLR(o, 1)}}],
    "one cycle": one_cycle,
    "sequential": sequential,
    "plateau": plateau,
}


class Formed(Classifier):
    """Configures its optimizers in one of the forms."""

    def __init__(self, form: str) -> None:
        super().__init__(mlp(nn.ReLU))
        self.form = form

    def configure_optimizers(self) -> Any:
        return FORMS[self.form](self)


def fit(module: LightningModule, steps: int = 3) -> Trainer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        trainer = Trainer(max_epochs=steps, accelerator="cpu", logger=False, **quiet)
        trainer.fit(module, SameBatches([labelled(8)], 0))
    return trainer


def rates(trainer: Trainer) -> list[float]:
    return [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]


@pytest.mark.parametrize("form", FORMS)
class TestForms:
    def test_a_lower_rate_stays_lower_by_the_factor(self, form: str) -> None:
        before, after = fit(Formed(form)), fit(LowerLearningRate(0.1).apply(Formed(form)))
        assert rates(after) == pytest.approx([rate * 0.1 for rate in rates(before)])

    def test_another_optimizer_takes_over_groups_and_schedule(self, form: str) -> None:
        remedy = ChangeOptimizer("AdamW", lr=RATE / 20)
        before, after = fit(Formed(form)), fit(remedy.apply(Formed(form)))
        assert [type(optimizer).__name__ for optimizer in after.optimizers] == ["AdamW"]
        start = Formed(form).configure_optimizers()
        scale = remedy.lr / _first_rate(start)
        assert rates(after) == pytest.approx([rate * scale for rate in rates(before)])

    def test_a_warm_up_leaves_the_schedule(self, form: str) -> None:
        before, after = fit(Formed(form)), fit(WarmUp(100).apply(Formed(form)))
        assert rates(after) == pytest.approx(rates(before))

    def test_a_warm_up_takes_small_first_steps(self, form: str) -> None:
        plain, warm = Formed(form), WarmUp(100).apply(Formed(form))
        warm.load_state_dict(plain.state_dict())
        start = nn.utils.parameters_to_vector(plain.parameters()).detach().clone()
        moved = []
        for module in (plain, warm):
            fit(module, steps=1)
            moved.append((nn.utils.parameters_to_vector(module.parameters()) - start).norm().item())
        assert moved[1] == pytest.approx(moved[0] / 100, rel=0.01)


def _first_rate(configured: Any) -> float:
    from gradwatch.remedies.optimizers_of_module import optimizers_in

    return float(optimizers_in(configured)[0].param_groups[0]["lr"])


class TwoOptimizers(Classifier):
    """Steps two optimizers by hand."""

    def __init__(self) -> None:
        super().__init__(mlp(nn.ReLU))
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return sgd(self.network[0].parameters()), sgd(self.network[1:].parameters())


def test_each_of_several_optimizers_is_changed() -> None:
    trainer = fit(ChangeOptimizer(lr=0.003).apply(LowerLearningRate(0.5).apply(TwoOptimizers())))
    assert [type(optimizer).__name__ for optimizer in trainer.optimizers] == ["AdamW", "AdamW"]
    assert rates(trainer) == pytest.approx([0.003, 0.003])


def test_remedies_of_one_method_add_up() -> None:
    module = LowerLearningRate(0.5).apply(LowerLearningRate(0.1).apply(Formed("optimizer")))
    assert rates(fit(module)) == pytest.approx([RATE * 0.05])


def test_a_training_step_without_the_index_is_called_without_it() -> None:
    from every_remedy import regression

    from gradwatch.remedies import RescaleTargets

    setup = regression()

    class NoIndex(type(setup.module)):
        def training_step(self, batch: Any) -> Any:
            return super().training_step(batch, 0)

    module = NoIndex(setup.module.network)
    fit_module = RescaleTargets().apply(Setup(module, batch=setup.batch)).module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        Trainer(max_steps=2, accelerator="cpu", logger=False, **quiet).fit(fit_module, SameBatches([setup.batch], 0))


def test_the_code_says_the_rate_and_the_settings() -> None:
    code = LowerLearningRate(0.1).code(Formed("optimizer"))
    assert "torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)" in code
    assert "total_iters=50" in WarmUp(50).code(Formed("dict"))


def test_what_is_wrong_is_refused() -> None:
    with pytest.raises(ValueError, match="name of an optimizer"):
        ChangeOptimizer("Adamm")
    with pytest.raises(ValueError, match="at least 1"):
        WarmUp(0)
    with pytest.raises(NotApplicable, match="already"):
        ChangeOptimizer("SGD").apply(Formed("optimizer"))
    with pytest.raises(NotApplicable, match="In your training loop, write"):
        LowerLearningRate().apply(nn.Linear(1, 1))
