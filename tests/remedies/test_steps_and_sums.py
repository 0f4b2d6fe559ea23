"""Remedies that read what a pass does: steps without a slope, residual sums, blocks that nothing goes around."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from every_remedy import Classifier, Signs, Sums, labelled, mlp, of
from torch import Tensor, nn

from gradwatch.remedies import AddSkips, NotApplicable, ScaleBranches, ScaledBranch, Setup, Skip, SmoothSteps
from gradwatch.remedies.branches import residual_branches

STEPS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "sign": (torch.sign, torch.tanh),
    "rounding": (torch.round, torch.round),
    "method": (lambda x: x.floor(), torch.floor),
    "above": (lambda x: (x > 0.1).float(), lambda x: torch.sigmoid(x - 0.1)),
    "below": (lambda x: (x < 0).to(torch.float32), lambda x: torch.sigmoid(-x)),
    "one-hot": (lambda x: nn.functional.one_hot(x.argmax(-1), 8).float(), lambda x: x.softmax(-1)),
}


class Stepped(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.function, self.head = nn.Linear(8, 8), function, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.function(self.body(x)))
        return output


class Block(nn.Module):
    """Two layers of one's own, with a sum or without."""

    def __init__(self, is_sum: bool) -> None:
        super().__init__()
        self.first, self.second, self.is_sum = nn.Linear(8, 16), nn.Linear(16, 8), is_sum

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x).relu())
        return x + y if self.is_sum else y


class Attends(nn.Module):
    """A sum with the first of two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.look(x, x, x)[0]


def blocks(is_sum: bool) -> Setup:
    return of(nn.Sequential(*(Block(is_sum) for _ in range(4)), nn.Linear(8, 3)), 8)


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_gets_a_slope_and_the_gradient_gets_past_it(kind: str) -> None:
    function, expected = STEPS[kind]
    setup = of(Stepped(function), 8)
    smooth = SmoothSteps().apply(setup).module
    network, x = smooth.network, setup.batch[0]
    assert torch.allclose(network(x), network.head(expected(network.body(x))), atol=1e-6)
    smooth(x).sum().backward()
    assert network.body.weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert torch.allclose(network(x), network.head(expected(network.body(x))), atol=1e-6)


def test_the_lines_of_the_steps_are_printed() -> None:
    code = SmoothSteps().patch(of(Signs(), 8))
    assert "every_remedy.py:" in code
    assert code.endswith("output: Tensor = self.head(self.body(x).sign())")


def test_a_model_without_steps_is_refused() -> None:
    with pytest.raises(NotApplicable, match="no sign, rounding or comparison"):
        SmoothSteps().apply(of(mlp(), 8))
    with pytest.raises(NotApplicable, match="give a batch"):
        SmoothSteps().apply(Classifier(Signs()))


def test_the_branches_of_sums_are_scaled() -> None:
    setup = of(Sums(), 8)
    scaled = ScaleBranches().apply(setup).module.network
    assert all(isinstance(block, ScaledBranch) and block.factor == 0.5 for block in scaled.blocks)
    x = setup.batch[0]
    by_hand = x
    for block in setup.module.network.blocks:
        by_hand = by_hand + 0.5 * block(by_hand)
    assert torch.allclose(scaled(x), setup.module.network.head(by_hand))
    lines = ScaleBranches().patch(setup).splitlines()
    assert lines[1] == "model.network.blocks[0] = ScaledBranch(model.network.blocks[0], 0.5)"


def test_the_branch_of_several_outputs_is_found_and_scaled() -> None:
    setup = Setup(nn.Sequential(*(Attends() for _ in range(4))), batch=torch.randn(2, 3, 8))
    assert residual_branches(setup) == [f"{place}.look" for place in range(4)]
    output, weights = ScaleBranches().apply(setup).module[0].look(*(setup.batch,) * 3)
    plain, same = setup.module[0].look(*(setup.batch,) * 3)
    assert torch.allclose(output, 0.5 * plain)
    assert torch.equal(weights, same)


@pytest.mark.parametrize("network", [mlp(), nn.Sequential(Sums(), nn.BatchNorm1d(3))])
def test_few_sums_and_normalized_ones_are_left(network: nn.Module) -> None:
    with pytest.raises(NotApplicable, match="residual sums without normalization"):
        ScaleBranches().apply(of(network, 8))


def test_blocks_of_ones_own_get_skips_where_nothing_goes_around_them() -> None:
    setup = blocks(is_sum=False)
    changed = AddSkips().apply(setup).module.network
    assert [isinstance(part, Skip) for part in changed] == [True] * 4 + [False]
    assert AddSkips().patch(setup).splitlines()[1] == "model.network[0] = Skip(model.network[0])"
    with pytest.raises(NotApplicable):
        AddSkips().apply(blocks(is_sum=True))
    with pytest.raises(NotApplicable):
        AddSkips().apply(setup.module)  # without a batch, what a block does is not known


def test_blocks_that_read_whole_numbers_are_left() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.table(x).squeeze(-1)

    with pytest.raises(NotApplicable):
        AddSkips().apply(Setup(nn.Sequential(Read(), Read()), batch=torch.arange(4)))


def test_a_batch_of_another_kind_breaks_nothing() -> None:
    with pytest.raises(NotApplicable):
        ScaleBranches().apply(Setup(Sums(), batch=labelled(5)))
