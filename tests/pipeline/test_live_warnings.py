"""A live warning says what was measured and the likely cause, and points at the user's own line."""

import warnings
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradwatch import Diagnosis, Finding, GradientError, GradientMonitor, GradientWarning, watch
from gradwatch.pipeline.ledger import announce

OPTIONS: dict[str, Any] = {"every_n_steps": 1, "on_finding": "warn"}


def sigmoids() -> nn.Sequential:
    blocks = [module for _ in range(10) for module in (nn.Linear(16, 16), nn.Sigmoid())]
    return nn.Sequential(*blocks, nn.Linear(16, 2))


def train(model: nn.Module, **options: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, **{**OPTIONS, **options}) as watcher:
        for _ in range(12):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(torch.randn(32, 16)), torch.randint(2, (32,)))
            loss.backward()
            watcher.step(optimizer, loss.detach())


class Sigmoids(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = sigmoids()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit() -> None:
    data = DataLoader(TensorDataset(torch.randn(12 * 32, 16), torch.randint(2, (12 * 32,))), batch_size=32)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    monitor = GradientMonitor(**OPTIONS, summary=False, record_path=False)
    Trainer(accelerator="cpu", max_epochs=1, callbacks=[monitor], enable_model_summary=False, **quiet).fit(
        Sigmoids(), data
    )


@pytest.mark.parametrize("run", [lambda: train(sigmoids()), fit], ids=["in a loop", "in a fit"])
def test_a_warning_names_the_cause_and_points_at_the_users_line(run: Any) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    (warning,) = [each for each in caught if each.category is GradientWarning]
    assert warning.filename == __file__
    text = str(warning.message)
    assert text.startswith("vanishing gradient: ")
    assert "Likely cause so far: saturating activation. First thing to try: replace the bounded activations" in text


def test_an_error_names_the_cause_too() -> None:
    torch.manual_seed(0)
    with pytest.raises(GradientError, match="Likely cause so far: saturating activation") as caught:
        train(sigmoids(), on_finding="raise")
    assert caught.value.finding.kind == "vanishing"
    assert "saturating activation" in caught.value.cause
    assert "cause" not in caught.value.finding.message


def test_a_cause_that_is_not_known_yet_is_said_so() -> None:
    def loud(snapshot: Any) -> Any:
        return Finding("loud", ("0",), snapshot.step, 2.0, 1.0, "It is loud (healthy: below 1).")

    with pytest.warns(GradientWarning, match=r"below 1\)\. The cause is not known yet\. To begin with, look at the"):
        train(nn.Sequential(nn.Linear(16, 2)), detectors=[loud])


def test_a_finding_that_was_brought_up_to_date_since_it_opened_keeps_its_cause() -> None:
    opened = Finding("vanishing", ("a",), 0, 1e-6, 1e-3, "It vanishes.")
    later = Finding("vanishing", ("a", "b"), 0, 1e-7, 1e-3, "It vanishes still.")
    causes = [Diagnosis("dead ReLU", "They are off.", 0.9, (later,), ("replace them",))]
    with pytest.warns(GradientWarning, match=r"vanishes\. Likely cause so far: dead ReLU\. First thing to try:"):
        announce(opened, "warn", lambda: causes)
