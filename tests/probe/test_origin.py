"""The search for the operation that made NaN, on a step that is computed again."""

import torch
from torch import nn

from gradwatch.probe.origin import find_origin


def test_an_operation_that_gives_back_its_input_does_not_end_the_search() -> None:
    class Net(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return ((inputs - 9).sqrt().float().contiguous() * 2).sum()

    net = Net()
    origin = find_origin(0, net, lambda: net(torch.ones(2, 2)))
    assert origin is not None
    assert origin.operation == "sqrt"
