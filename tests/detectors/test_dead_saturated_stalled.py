"""Units that do not react, parameters that cannot learn, and healthy cases that look alike."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_runs import X, Y, classify, he, kinds, mlp, train
from torch import Tensor, nn

from gradwatch import Dead, Saturated, Snapshot, Stalled, watch
from gradwatch.paths import unused_in_words

bce = nn.functional.binary_cross_entropy_with_logits


def with_dead_layer() -> nn.Module:
    model = mlp([32, 64, 64, 5], nn.ReLU, he)
    nn.init.constant_(model[2].bias, -100.0)
    return model


def one_sample(model: nn.Module, step: int) -> Tensor:
    return nn.functional.cross_entropy(model(X[step % 64, None]), Y[step % 64, None])


def test_a_relu_that_never_fires_is_dead() -> None:
    finding = train(with_dead_layer(), detectors=[Dead()]).findings[0]
    assert (finding.kind, finding.layers, finding.value) == ("dead", ("3",), 1.0)


@pytest.mark.parametrize(("model", "found"), [(with_dead_layer(), ["dead"]), (mlp([32, 64, 64, 5], nn.ReLU, he), [])])
def test_batches_of_one_sample_are_put_together(model: nn.Module, found: list[str]) -> None:
    watcher = train(model, one_sample, steps=110, lr=1e-3, detectors=[Dead()])
    assert kinds(watcher) == found
    assert np.isnan(watcher.history[98].dead_fraction).all()
    assert (watcher.history[99].dead_fraction[[1, 3]] >= 0).all()


def test_a_channel_of_an_image_is_a_unit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 9, 5))
    with torch.no_grad():
        model[0].bias[:7] = -100.0
    images = torch.randn(64, 1, 5, 5)
    watcher = train(model, lambda model, _: nn.functional.cross_entropy(model(images), Y), detectors=[Dead()])
    assert watcher.findings[0].value == 7 / 8


def test_a_dead_fraction_at_the_threshold_is_healthy() -> None:
    assert list(Dead(fraction=0.75)(Snapshot(0, ("relu",), dead_fraction=[0.75]))) == []
    assert len(list(Dead(fraction=0.74)(Snapshot(0, ("relu",), dead_fraction=[0.75])))) == 1


def test_large_weights_saturate_every_tanh_but_the_last() -> None:
    model = nn.Sequential(*mlp([32, 64, 64, 5], nn.Tanh, lambda w: nn.init.normal_(w, std=3)), nn.Tanh())
    watcher = train(model, detectors=[Saturated()])
    assert [finding.layers for finding in watcher.findings] == [("1", "3")]
    assert watcher.history[0].saturated_fraction[5] > 0.5
    assert kinds(train(mlp([32, 64, 64, 5], nn.Tanh, nn.init.xavier_normal_), detectors=[Saturated()])) == []


class GAN(nn.Module):
    """A generator that ends in a Tanh, of black and white pictures, and a discriminator."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.Tanh())
        self.discriminator = nn.Sequential(nn.Linear(16, 32), nn.LeakyReLU(), nn.Linear(32, 1))
        with torch.no_grad():
            self.generator[2].weight.mul_(100)


def test_the_last_tanh_of_a_generator_may_saturate() -> None:
    model, real = GAN(), torch.sign(X[:, :16])
    optimizers = [torch.optim.Adam(part.parameters()) for part in (model.discriminator, model.generator)]
    with watch(model, every_n_steps=1, detectors=[Saturated()]) as watcher:
        for step in range(36):
            generates = step % 6 == 5  # five steps of the discriminator for one of the generator
            fake = model.generator(torch.randn(64, 8))
            fake_logits = model.discriminator(fake if generates else fake.detach())
            loss = bce(fake_logits, torch.full((64, 1), float(generates)))
            loss = loss if generates else loss + bce(model.discriminator(real), torch.ones(64, 1))
            model.zero_grad()
            loss.backward()
            watcher.step(optimizers[generates], loss)
    assert watcher.history[-1].saturated_fraction[3] > 0.5
    assert watcher.findings == []


class Branches(nn.Module):
    """A body with two heads."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.left, self.right, self.join = nn.Linear(32, 16), nn.Linear(16, 5), nn.Linear(16, 5), join

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.join(self.left(h), self.right(h))


@pytest.mark.parametrize(
    "join", [lambda a, b: a + b.detach(), lambda a, b: a, lambda a, b: a + 0 * b], ids=["detached", "unused", "zero"]
)
def test_a_branch_beside_a_network_that_learns_is_only_noted(
    join: Callable[[Tensor, Tensor], Tensor],
) -> None:
    watcher = train(Branches(join), detectors=[Stalled(steps=20)])
    assert watcher.findings == []
    expected = "unused: 2 of 6 parameters get no gradient, as nothing on the way to the loss uses them: right.weight"
    assert unused_in_words(watcher.history) == f"{expected}, right.bias"


class Spare(nn.Module):
    """Keeps a wide layer for later, which holds most of the parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used, self.spare = nn.Linear(32, 5), nn.Linear(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize(("lr", "opened"), [(5.0, []), (1e-9, ["stalled"])])
def test_an_unused_layer_that_is_most_of_the_model_is_stalled_where_the_loss_stays(
    lr: float, opened: list[str]
) -> None:
    watcher = train(Spare(), steps=60, lr=lr, detectors=[Stalled()])
    assert [finding.kind for finding in watcher.findings] == opened


def test_a_branch_beside_a_network_that_does_not_learn_is_stalled() -> None:
    loss = lambda model, step: classify(model, step) + torch.rand(())  # noqa: E731
    watcher = train(Branches(lambda a, b: a), loss, steps=130, lr=1e-9, detectors=[Stalled()])
    assert [(f.kind, f.case, f.layers) for f in watcher.findings] == [
        ("stalled", "unused", ("right.weight", "right.bias"))
    ]
    cause = next(cause for cause in watcher.diagnosis() if cause.cause == "frozen or detached part")
    assert cause.remedies[0].startswith("call the parts that nothing uses")


class CutOffBody(nn.Module):
    """A body whose output loses its graph, and a head that learns."""

    def __init__(self, cut: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.cut = nn.Linear(32, 4), nn.Linear(4, 5), cut

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cut(self.body(x)))


@pytest.mark.parametrize("cut", [Tensor.detach, Tensor.round, lambda x: x.data], ids=["detach", "round", "data"])
def test_a_body_that_is_cut_off_is_stalled_though_the_head_learns(cut: Callable[[Tensor], Tensor]) -> None:
    watcher = train(CutOffBody(cut), steps=45, optimizer=torch.optim.Adam, detectors=[Stalled()])
    assert [(f.kind, f.case, f.layers, f.step) for f in watcher.findings] == [
        ("stalled", "", ("body.weight", "body.bias"), 0)
    ]


def test_a_softmax_over_one_unit_stalls_the_whole_network() -> None:
    model = nn.Sequential(*mlp([32, 16, 1], nn.ReLU), nn.Softmax(dim=1))
    target = (Y[:, None] > 2).float()
    loss = nn.BCELoss()
    watcher = train(model, lambda model, _: loss(model(X), target), detectors=[Stalled(steps=20)])
    assert watcher.findings[0].layers == ("0.weight", "0.bias", "2.weight", "2.bias")


class Attention(nn.Module):
    """Attention whose key has a separate bias, without effect, as the softmax cancels it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 4, 8)
        return self.head(((self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)).flatten(1))


def alternating(model: Branches, step: int) -> Tensor:
    h = model.body(X)
    return nn.functional.cross_entropy((model.left, model.right)[step // 3 % 2](h), Y)


def frozen(model: nn.Module) -> nn.Module:
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (lambda: Branches(lambda a, b: a), alternating),
        (lambda: frozen(mlp([32, 16, 5], nn.ReLU)), classify),
        (lambda: nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5)), classify),
        (Attention, classify),
    ],
    ids=["heads in turn", "frozen", "bias before BatchNorm", "key bias"],
)
def test_what_learns_now_and_then_or_should_not_is_not_stalled(
    make: Callable[[], nn.Module], loss: Callable[[nn.Module, int], Tensor]
) -> None:
    assert kinds(train(make(), loss, detectors=[Stalled(steps=20)])) == []


def without(*norms: float) -> Snapshot:
    names = tuple(f"part{i}.weight" for i in range(len(norms)))
    return Snapshot(0, (), params=names, param_grad_norm=np.array(norms))


def test_what_had_a_gradient_once_is_at_rest_unless_nearly_all_are_without() -> None:
    stalled = Stalled(steps=1)
    assert [f.layers for f in stalled(without(1.0, 1.0, np.nan))] == [("part2.weight",)]
    assert [f.layers for f in stalled(without(np.nan, 1.0, np.nan))] == [("part2.weight",)]
    assert [len(f.layers) for f in stalled(without(0.0, 0.0, np.nan))] == [3]


def test_a_resumed_run_knows_what_had_a_gradient() -> None:
    first, second = Stalled(steps=1), Stalled(steps=1)
    list(first(without(1.0, 1.0, 1.0)))
    second.load_state_dict(first.state_dict())
    assert list(second(without(np.nan, 1.0, 1.0))) == []


def test_few_units_are_too_few_to_tell() -> None:
    gate = mlp([32, 4, 5], nn.ReLU, he)
    nn.init.constant_(gate[0].bias, -100.0)
    assert np.isnan(train(gate).history[-1].dead_fraction).all()


def test_a_bias_that_cancels_in_a_difference_is_not_stalled() -> None:
    torch.manual_seed(0)
    body = mlp([32, 16, 4], nn.ReLU, he)
    watcher = train(
        body, lambda model, _: (model(X[:32]) - model(X[32:])).square().mean(), detectors=[Stalled(steps=20)]
    )
    assert watcher.history[0].param_grad_norm[-1] == 0
    assert watcher.findings == []


@pytest.mark.parametrize(("first", "found"), [(1e-10, 1), (1e-3, 0)])
def test_what_rounding_leaves_is_no_gradient(first: float, found: int) -> None:
    detector = Stalled(steps=1)

    def step(norm: float) -> Snapshot:
        params = {"params": ("a.weight", "b.weight", "c.weight"), "param_size": [4, 4, 4]}
        return Snapshot(0, (), **params, param_grad_norm=[1.0, norm, 1.0])

    assert list(detector(step(first))) == []
    assert len(list(detector(step(0.0)))) == found  # one that had a gradient before is at rest
