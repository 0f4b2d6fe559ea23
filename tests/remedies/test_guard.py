"""Guarded operations have finite values and slopes at their singular points, and change nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from every_remedy import Classifier, Unguarded, labelled, mlp, of
from torch import Tensor, nn

from gradwatch.remedies import GuardOperations, NotApplicable, Setup
from gradwatch.remedies.guard import Guarded

SINGULAR: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "sqrt": (torch.sqrt, 0.0),
    "rsqrt": (torch.rsqrt, 0.0),
    "log": (Tensor.log, 0.0),
    "log10": (torch.log10, 0.0),
    "pow": (lambda x: x**0.5, 0.0),
    "quotient": (lambda x: 1 / x, 0.0),
    "reciprocal": (torch.reciprocal, 0.0),
    "divide": (lambda x: torch.ones(4) / x, 0.0),
    "arc": (torch.acos, 1.0),
    "deviation of equals": (lambda x: x.std(0), 2.0),
    "deviation of one": (lambda x: x[:, None].std(1), 2.0),
}


@pytest.mark.parametrize("name", SINGULAR)
def test_value_and_slope_are_finite_at_the_place(name: str) -> None:
    operation, place = SINGULAR[name]
    x = torch.full((4,), place, requires_grad=True)
    with Guarded(1e-6) as guarded:
        y = operation(x)
        y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()
    assert guarded.operations == 1
    assert "test_guard.py:" in guarded.places[0]


@pytest.mark.parametrize("name", [name for name in SINGULAR if name != "deviation of one"])
def test_elsewhere_nothing_changes(name: str) -> None:
    operation, _ = SINGULAR[name]
    x = torch.tensor([0.1, 0.5, 0.7, 0.9])
    with Guarded(1e-6) as guarded:
        y = operation(x)
    torch.testing.assert_close(y, operation(x))
    assert guarded.places == []


def test_a_log_of_a_softmax_passes_the_gradient_of_log_softmax() -> None:
    # In float32 the third probability is 0; the -inf is a mask.
    x = torch.tensor([[0.0, 40.0, -200.0], [1.0, 2.0, -torch.inf]], requires_grad=True)
    target = torch.tensor([2, 0])
    with Guarded(1e-6) as guarded:
        loss = -torch.softmax(x, 1).gather(1, target[:, None]).log().mean()
        (found,) = torch.autograd.grad(loss, x)
    (expected,) = torch.autograd.grad(nn.functional.cross_entropy(x, target), x)
    torch.testing.assert_close(found, expected)
    assert len(guarded.places) == 1


def test_a_log_of_a_sigmoid_passes_the_gradient_of_logsigmoid() -> None:
    x = torch.tensor([-120.0, -2.0, 3.0], requires_grad=True)
    with Guarded(1e-6):
        (found,) = torch.autograd.grad(x.sigmoid().log().sum(), x)
    (expected,) = torch.autograd.grad(nn.functional.logsigmoid(x).sum(), x)
    torch.testing.assert_close(found, expected)


def test_a_mask_shuts_out_what_it_did() -> None:
    with Guarded(1e-6):
        assert torch.softmax(torch.tensor([0.0, 1.0, -torch.inf]), 0)[2] == 0


def test_what_is_done_in_place_or_by_keyword_is_left_as_it_is() -> None:
    x = torch.tensor([4.0])
    with Guarded(1e-6):
        x.sqrt_()
        assert torch.sqrt(input=x) == 2**0.5
    assert x == 2.0


class Inner(nn.Module):
    """Called by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x: Tensor, *, scale: float) -> Tensor:
        output: Tensor = (scale * self.layer(x).relu()).sqrt()
        return output


class Outer(nn.Module):
    """A part within a whole, both guarded."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.inner(x=x, scale=2.0)
        return output


def test_parts_are_guarded_once_and_may_be_called_by_name() -> None:
    setup = Setup(Outer(), batch=labelled(8))
    entered = []
    guarded = GuardOperations().apply(setup).module
    guarded.inner.layer.register_forward_hook(lambda *_: entered.append(Guarded.depth))
    guarded(setup.batch[0]).sum().backward()
    assert all(torch.isfinite(param.grad).all() for param in guarded.parameters())
    assert entered == [1]
    assert Guarded.depth == 0


def test_the_line_is_named() -> None:
    line = GuardOperations().patch(of(Unguarded(), 8))
    assert "every_remedy.py:" in line
    assert line.endswith("self.layer(x).relu().sqrt()")


def test_a_model_without_such_operations_is_refused() -> None:
    with pytest.raises(NotApplicable, match="no root, log, division"):
        GuardOperations().apply(Setup(Classifier(mlp()), batch=labelled(8)))
