"""Networks that are no chain: faults on the only path, or on each of several, and healthy ones with faint branches."""

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from small_runs import X, Y, classify, he, kinds, mlp, train
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.utils.checkpoint import checkpoint

from gradwatch import Exploding, Snapshot, Stalled, Vanishing, watch
from gradwatch.diagnosis.evidence import share_at_first_layer, weights_gain
from gradwatch.paths import main_path

DEPTH = [Vanishing(), Exploding()]
mse, bce = nn.functional.mse_loss, nn.functional.binary_cross_entropy_with_logits


def sigmoids(depth: int = 7, first: int = 32, last: int = 16) -> nn.Module:
    return mlp([first, *[32] * depth, last], nn.Sigmoid)


def relus(depth: int = 3, first: int = 32, last: int = 16) -> nn.Module:
    return mlp([first, *[32] * depth, last], nn.ReLU, he)


class Joined(nn.Module):
    """Parts that get the same data, in the order of their calls, and a head on all their outputs together."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.head = nn.ModuleList(parts), nn.Linear(16 * len(parts), 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([part(x) for part in self.parts], -1))


class Gated(nn.Module):
    """A side branch of covariates, called first, whose gate is nearly shut."""

    def __init__(self) -> None:
        super().__init__()
        self.side, self.values, self.head = relus(1), relus(3), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        side = self.side(x)
        return self.head(self.values(x) + 1e-6 * side)


class Residual(nn.Module):
    def __init__(self, depth: int = 8, scale: float = 1.0) -> None:
        super().__init__()
        self.stem, self.head, self.scale = nn.Linear(32, 16), nn.Linear(16, 5), scale
        parts = (nn.LayerNorm(16), nn.Linear(16, 16), nn.Sigmoid(), nn.Linear(16, 16))
        self.blocks = nn.ModuleList(nn.Sequential(*deepcopy(parts)) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + self.scale * block(x)
        return self.head(x)


class UNet(nn.Module):
    """Down and up again with skips; the way through the bottom is faint."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(a, b) for a, b in [(32, 32), (32, 16), (16, 8)])
        self.bottom = sigmoids(4, 8, 8)
        self.up = nn.ModuleList(nn.Linear(a, b) for a, b in [(16, 16), (32, 32), (64, 5)])

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for layer in self.down:
            x = layer(x).relu()
            kept.append(x)
        x = self.bottom(x)
        for layer in self.up:
            x = layer(torch.cat([x, kept.pop()], -1))
        return x


class FrozenBase(nn.Module):
    """A frozen network, skipped, with LoRA on some of its layers."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32).requires_grad_(False) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(32, 2, bias=False) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(2, 32, bias=False) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(32).requires_grad_(False) for _ in range(depth))
        self.head = nn.Linear(32, 5).requires_grad_(False)
        for up in self.up:
            nn.init.zeros_(up.weight)

    def forward(self, x: Tensor) -> Tensor:
        for layer, down, up, norm in zip(self.layers, self.down, self.up, self.norms, strict=True):
            given = norm(x)
            x = x + (layer(given) + up(down(given))).relu()
        return self.head(x)


class Experts(nn.Module):
    """A mixture of experts whose router hardly ever picks the first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.router, self.head = nn.Linear(32, 16), nn.Linear(16, 4), nn.Linear(16, 5)
        self.experts = nn.ModuleList(relus(1, 16) for _ in range(4))
        with torch.no_grad():
            self.router.bias[0] = -15.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        weights = self.router(x).softmax(-1)
        return self.head(x + sum(weights[:, i, None] * expert(x) for i, expert in enumerate(self.experts)))


class Hyper(nn.Module):
    """A network that makes the weights of another."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Parameter(1e-3 * torch.randn(4))
        self.hyper, self.body, self.head = nn.Linear(4, 32 * 16), nn.Linear(32, 32), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        made = self.hyper(self.code).view(16, 32)
        return self.head(nn.functional.linear(self.body(x).relu(), made).relu())


class Shared(nn.Module):
    """One ReLU module for the whole network, with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.layers, self.head = (
            nn.ReLU(),
            nn.ModuleList(nn.Linear(32, 32) for _ in range(6)),
            nn.Linear(32, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + self.act(layer(x))
        return self.head(x)


class Heads(nn.Module):
    """A trunk with a head for each of several tasks, one of which hardly counts."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.first, self.second = relus(2), mlp([16, 16, 5], nn.ReLU, he), mlp([16, 16, 5], nn.ReLU, he)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x).relu()
        return self.first(x) + 1e-7 * self.second(x)


class Parts(nn.Module):
    """Networks that nothing but a loss brings together."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)


def towers(model: nn.Module, _: int) -> Tensor:
    """Two towers whose outputs are compared."""
    codes = [nn.functional.normalize(part(x), dim=-1) for part, x in zip(model.parts, (X, X.flip(0)), strict=True)]
    return nn.functional.cross_entropy(codes[0] @ codes[1].T / 0.1, torch.arange(len(X)))


def siamese(model: nn.Module, _: int) -> Tensor:
    return mse((model(X[:32]) - model(X[32:])).square().sum(-1), (Y[:32] == Y[32:]).float())


def actor_and_critic(model: nn.Module, _: int) -> Tensor:
    """An actor whose gradient is far below the critic's."""
    return 1e-7 * nn.functional.cross_entropy(model.parts[0](X), Y) + (model.parts[1](X) - 50).square().mean()


HEALTHY: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, int], Tensor]]] = {
    "a gated side branch that is called first": (Gated, classify),
    "a deep faint part beside a short sound one": (lambda: Joined(sigmoids(3), relus(6)), classify),
    "residual blocks that are faint inside": (lambda: Residual(8, 1e-5), classify),
    "skips of a U-Net around a faint bottom": (UNet, classify),
    "LoRA on a frozen network": (FrozenBase, classify),
    "an expert that is never picked": (Experts, classify),
    "a hypernetwork": (Hyper, classify),
    "one ReLU for all layers": (Shared, classify),
    "a head that hardly counts": (Heads, classify),
    "two towers": (lambda: Parts(relus(3), relus(3)), towers),
    "a siamese network": (relus, siamese),
    "actor and critic of different sizes": (lambda: Parts(relus(2, 32, 5), relus(2, 32, 1)), actor_and_critic),
}


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize(("optimizer", "lr"), [(SGD, 1e-3), (Adam, 1e-3)], ids=["SGD", "Adam"])
def test_a_network_with_a_good_path_gets_no_word(name: str, optimizer: type, lr: float) -> None:
    torch.manual_seed(0)
    make, loss = HEALTHY[name]
    assert kinds(train(make(), loss, steps=15, optimizer=optimizer, lr=lr, detectors=DEPTH)) == []


class Checkpointed(nn.Module):
    """Blocks that are computed again in the backward pass."""

    def __init__(self, blocks: nn.Module, *, reentrant: bool, skip: bool = False) -> None:
        super().__init__()
        self.stem, self.head, self.blocks = nn.Linear(32, 16), nn.Linear(16, 5), blocks
        self.reentrant, self.skip = reentrant, skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            made = checkpoint(block, x, use_reentrant=self.reentrant)
            x = x + made if self.skip else made
        return self.head(x)


def blocks(activation: type[nn.Module]) -> nn.Module:
    made = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), activation()) for _ in range(8))
    for block in made:
        he(block[0].weight)
    return made


def huge(depth: int = 10) -> nn.Module:
    return mlp([32, *[64] * depth, 16], nn.ReLU, lambda w: nn.init.normal_(w, std=0.7))


FAULTY: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "one long chain": (lambda: nn.Sequential(sigmoids(), nn.Linear(16, 5)), "vanishing", "0.0"),
    "the only path": (lambda: Joined(sigmoids()), "vanishing", "parts.0.0"),
    "each of two paths": (lambda: Joined(sigmoids(7), sigmoids(8)), "vanishing", "parts.0.0"),
    "each of three paths": (lambda: Joined(sigmoids(7), sigmoids(8), sigmoids(9)), "vanishing", "parts.0.0"),
    "most of the network, beside one layer": (lambda: Joined(sigmoids(9), nn.Linear(32, 16)), "vanishing", "parts.0.0"),
    "weights that are too small": (
        lambda: mlp([32, *[32] * 6, 5], nn.ReLU, lambda w: nn.init.normal_(w, std=0.02)), "vanishing", "0",
    ),
    "checkpointed, reentrant": (lambda: Checkpointed(blocks(nn.Sigmoid), reentrant=True), "vanishing", "stem"),
    "checkpointed": (lambda: Checkpointed(blocks(nn.Sigmoid), reentrant=False), "vanishing", "stem"),
    "exploding in one chain": (lambda: nn.Sequential(huge(), nn.Linear(16, 5)), "exploding", "0.0"),
    "exploding in one of two paths": (lambda: Joined(relus(3), huge()), "exploding", "parts.1.0"),
    "exploding in both": (lambda: Joined(huge(), huge(11)), "exploding", "parts.0.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTY)
def test_a_fault_on_the_only_path_or_on_each_is_found(name: str) -> None:
    torch.manual_seed(0)
    make, kind, first = FAULTY[name]
    watcher = train(make(), steps=12, lr=1e-9, detectors=DEPTH)
    assert kinds(watcher)[0] == kind
    assert {*kinds(watcher)} == {kind}
    assert first in watcher.findings[0].layers


@pytest.mark.parametrize("skip", [False, True])
def test_the_graph_is_the_same_however_it_is_checkpointed(skip: bool) -> None:
    class Plain(Checkpointed):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for block in self.blocks:
                x = x + block(x) if self.skip else block(x)
            return self.head(x)

    def graph(kind: type[Checkpointed], *, reentrant: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
        torch.manual_seed(0)
        watcher = train(kind(blocks(nn.ReLU), reentrant=reentrant, skip=skip), steps=3)
        assert len({snapshot.feeds for snapshot in watcher.history}) == 1
        return watcher.history[-1].layers, watcher.history[-1].feeds

    plain = graph(Plain, reentrant=False)
    assert plain[1]
    assert graph(Checkpointed, reentrant=False) == plain
    assert graph(Checkpointed, reentrant=True) == plain


def test_a_generator_is_not_compared_with_the_discriminator_that_its_gradient_comes_through() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"g": relus(2, 8, 16), "d": relus(2, 16, 1)})
    optimizers = [Adam(model[part].parameters(), lr=1e-4) for part in "dg"]
    real = X[:, :16]
    with watch(model, every_n_steps=1, on_finding=lambda finding: None, detectors=DEPTH) as watcher:
        for _ in range(12):
            fake = model["g"](torch.randn(64, 8))
            loss = bce(model["d"](real), torch.ones(64, 1)) + bce(model["d"](fake.detach()), torch.zeros(64, 1))
            optimizers[0].zero_grad()
            loss.backward()
            watcher.read(optimizers[0])
            optimizers[0].step()
            optimizers[1].zero_grad()
            bce(model["d"](fake), torch.ones(64, 1)).backward()
            watcher.step(optimizers[1], loss)
    snapshot = watcher.history[-1]
    last = snapshot.layers.index("g.4")
    assert snapshot.feeds[last] == ""
    assert watcher.findings == []


def test_gains_are_those_of_one_path() -> None:
    names = ("actor.0", "actor.1", "actor.2", "critic.0", "critic.1", "critic.2")
    snapshot = Snapshot(
        0, names, feeds=("1", "2", "", "4", "5", ""), grad_norm=[1] * 6, grad_output_norm=[0.001, 0.01, 1, 0.8, 0.9, 1],
        weight_gain=[1, 1, 0.002, 1, 1, 1],
    )  # fmt: skip
    assert main_path(snapshot) == [3, 4, 5]
    assert weights_gain(snapshot) == pytest.approx(1.0)
    assert share_at_first_layer(snapshot) == pytest.approx(0.8)


def test_without_a_graph_the_layers_are_one_chain() -> None:
    norms = [1e-6, 1e-5, 1.0]
    chain = Snapshot(0, ("a", "b", "c"), grad_norm=norms, grad_output_norm=norms)
    assert [f.layers for f in Vanishing()(chain)] == [("a", "b")]


@pytest.mark.parametrize(("other", "found"), [(1e-5, [("a.0", "a.1", "b.0", "b.1")]), (0.3, [])], ids=["faint", "good"])
def test_a_fault_is_one_when_no_good_path_is_left(other: float, found: list[tuple[str, ...]]) -> None:
    names, norms = ("a.0", "a.1", "b.0", "b.1", "head"), [1e-6, 1e-5, other, 5 * other, 1.0]
    fork = Snapshot(0, names, grad_norm=[1] * 5, grad_output_norm=norms, feeds=("1", "4", "3", "4", ""))
    assert [finding.layers for finding in Vanishing()(fork)] == found


class Library(nn.Module):
    """A model with parts that it has and does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.cross = relus(4), nn.LayerNorm(16), nn.MultiheadAttention(16, 2)
        self.head, self.weights = nn.Linear(16, 5), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(x * self.weights(x).softmax(-1))  # a softmax over one variable is 1


def test_parts_that_are_never_called_and_a_softmax_over_one_variable_are_no_finding() -> None:
    torch.manual_seed(0)
    watcher = train(Library(), steps=60, lr=0.1, detectors=[Stalled()])
    assert watcher.findings == []
    without = np.isnan(watcher.history[-1].param_grad_norm) | (watcher.history[-1].param_grad_norm == 0)
    assert without.sum() == 8


def test_tasks_in_blocks_of_steps_are_at_rest() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({str(i): relus(1, 32, 5) for i in range(2)})

    def by_turns(model: nn.Module, step: int) -> Tensor:
        outputs = [model[str(i)](X) for i in range(2)]  # both are computed, and one counts
        return nn.functional.cross_entropy(outputs[step // 30 % 2], Y)

    assert kinds(train(model, by_turns, steps=70, detectors=[Stalled()])) == []


def test_attention_whose_own_part_is_not_called_has_a_gradient_and_is_used() -> None:
    torch.manual_seed(0)

    class Attends(nn.Module):
        def __init__(self, cut: bool) -> None:
            super().__init__()
            self.attention, self.head, self.cut = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(32, 5), cut

        def forward(self, x: Tensor) -> Tensor:
            x = x.view(-1, 4, 8)
            x = self.attention(x, x, x)[0].flatten(1)
            return self.head(x.detach() if self.cut else x)

    assert kinds(train(Attends(cut=False), steps=45, detectors=[Stalled()])) == []
    found = train(Attends(cut=True), steps=45, detectors=[Stalled()]).findings
    assert [len(finding.layers) for finding in found] == [4]


def test_most_of_a_model_that_is_never_called_is_a_finding() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(32, 5), "spare": nn.Linear(64, 64)})
    found = train(model, lambda m, _: nn.functional.cross_entropy(m["used"](X), Y), steps=45, detectors=[Stalled()])
    assert [(f.case, f.layers) for f in found.findings] == [("unused", ("spare.weight", "spare.bias"))]
