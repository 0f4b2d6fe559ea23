"""The end of a network is read from autograd's graph, as far as autograd tells."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from gradwatch.preflight import loss_head
from gradwatch.preflight.loss_head import Head, read_head
from gradwatch.probe import output_range


def losses() -> list[torch.Tensor]:
    logits, targets = torch.randn(8, 3, requires_grad=True), torch.randint(3, (8,))
    heights = torch.rand(8, 3)
    return [
        functional.cross_entropy(logits, targets),
        functional.cross_entropy(logits[:, :1].softmax(-1), torch.zeros(8, dtype=torch.long)),
        functional.mse_loss(logits.sigmoid(), heights),
        functional.binary_cross_entropy_with_logits(logits, heights),
    ]


def test_without_what_autograd_saves_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    read = [read_head(loss) for loss in losses()]
    assert [head == Head() for head in read] == [False] * 4

    def nothing(node: Any, name: str) -> None:
        """A torch whose nodes use other names for saved values."""

    monkeypatch.setattr(loss_head, "saved", nothing)
    monkeypatch.setattr(output_range, "saved", nothing)
    kept = [Head(), Head(twice=("Softmax", "LogSoftmax")), Head(), Head()]  # the names of the nodes are not saved
    assert [read_head(loss) for loss in losses()] == kept


def test_a_target_that_was_changed_in_place_is_not_read() -> None:
    outputs, targets = torch.rand(8, 3, requires_grad=True), torch.rand(8, 3)
    loss = functional.mse_loss(outputs, targets)
    targets.mul_(2)
    assert read_head(loss).distance is None
