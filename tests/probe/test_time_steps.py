"""Gradients at the time steps of torch's own recurrent networks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import gradwatch
from gradwatch.probe.probe import Probe

STEPS = 12


class Last(nn.Module):
    """A recurrent network of which the last output counts."""

    def __init__(self, kind: type[nn.RNNBase], **options: bool) -> None:
        super().__init__()
        self.rnn, self.head = kind(3, 4, **options), nn.Linear(8 if options.get("bidirectional") else 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.rnn(x)
        logits: Tensor = self.head(outputs[:, -1] if self.rnn.batch_first else outputs[-1])
        return logits


def measured(model: nn.Module, x: Tensor) -> gradwatch.Snapshot:
    probe = Probe(model)
    probe.attach()
    model(x).square().sum().backward()
    probe.read(model.parameters())
    snapshot = probe.snapshot(step=0)
    assert snapshot is not None
    return snapshot


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("asked", [True, False])
def test_each_time_step_has_the_norm_of_its_inputs_gradient(
    kind: type[nn.RNNBase], batch_first: bool, asked: bool
) -> None:
    torch.manual_seed(0)
    model = Last(kind, batch_first=batch_first)
    x = torch.randn(*((5, STEPS, 3) if batch_first else (STEPS, 5, 3)), requires_grad=asked)
    calls = measured(model, x).calls["rnn"]
    given = x.detach().requires_grad_()
    model(given).square().sum().backward()
    expected = torch.linalg.vector_norm(given.grad, dim=(0, 2) if batch_first else (1, 2))
    torch.testing.assert_close(torch.from_numpy(calls).float(), expected)
    assert x.requires_grad == asked


def test_the_gradients_are_those_of_an_unwatched_pass_and_no_hook_stays() -> None:
    torch.manual_seed(0)
    model, x = Last(nn.LSTM), torch.randn(STEPS, 5, 3)
    bare = copy.deepcopy(model)
    measured(model, x)
    bare(x).square().sum().backward()
    for mine, theirs in zip(model.parameters(), bare.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
    assert not model.rnn._forward_pre_hooks


def test_both_directions_and_packed_sequences_are_left_out() -> None:
    torch.manual_seed(0)
    assert measured(Last(nn.GRU, bidirectional=True), torch.randn(STEPS, 5, 3)).calls == {}
    packed = nn.utils.rnn.pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    model = nn.GRU(3, 4)
    probe = Probe(model)
    probe.attach()
    model(packed)[1].sum().backward()
    probe.read(model.parameters())
    snapshot = probe.snapshot(step=0)
    assert snapshot is not None
    assert snapshot.calls == {}


def test_a_network_that_forgets_its_first_steps_is_found() -> None:
    torch.manual_seed(0)
    model = Last(nn.RNN)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradwatch.watch(model, on_finding=lambda finding: None) as watcher:
        for _ in range(20):
            optimizer.zero_grad()
            loss = model(torch.randn(80, 16, 3)).square().mean()
            loss.backward()
            watcher.step(optimizer, loss)
    assert [(finding.kind, finding.layers) for finding in watcher.findings] == [("vanishing", ("rnn",))]
    assert "at the first of 80 time steps of layer rnn" in watcher.findings[0].message
    assert watcher.diagnosis()[0].cause == "recurrent depth"
