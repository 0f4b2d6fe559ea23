"""The code under "How it looks" has what its page is about: put into a small training, it is named by the check."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from gradwatch.commands.explained_causes import CAUSES
from gradwatch.commands.explained_findings import FINDINGS
from gradwatch.identifiers import identifier_of
from gradwatch.preflight.verdict import check_training
from gradwatch.torch_internals import output_shape

OF_SHAPES = ("GW012", "GW124")  # a loss that broadcasts

NAMES = {"torch": torch, "nn": nn, "cross_entropy": cross_entropy}


def looks(identifier: str) -> str:
    return {**FINDINGS, **CAUSES}[identifier].looks


def network(depth: int = 3, width: int = 64, outputs: int = 10) -> nn.Sequential:
    layers = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.ReLU())]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight)
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def classes(count: int = 256) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 64)
    return x, (x[:, :10]).argmax(1)


def numbers(count: int = 256) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 64)
    return x, x[:, :1] + 0.1 * torch.randn(count, 1)


def found(module: nn.Module, batch: Any, loss: Any, steps: int = 30, **settings: Any) -> set[str]:
    """The identifiers that a check names."""
    run = check_training(module, batch, loss=loss, steps=steps, **settings)
    names = [*(each.kind for each in run.findings), *(each.cause for each in run.diagnoses)]
    return {identifier_of(name) for name in names}


def sgd(params: Iterable[nn.Parameter], lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=lr)


def with_weights(identifier: str, depth: int = 12) -> nn.Module:
    """A network whose weights the code draws: for all of ``model``, or for each ``layer``."""
    model = network(depth)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            exec(looks(identifier), {**NAMES, "model": model, "layer": layer})
    return model


def with_optimizer(identifier: str) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    def make(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        held = list(params)
        scope: dict[str, Any] = {**NAMES, "model": nn.ParameterList(held)}
        exec(looks(identifier), scope)
        return scope["optimizer"]

    return make


def with_loss(identifier: str) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        scope: dict[str, Any] = {**NAMES, "model": lambda _: output, "x": None, "y": y, "prices": y}
        exec(looks(identifier), scope)
        return scope["loss"]

    return loss


def of_model() -> set[str]:
    scope: dict[str, Any] = {**NAMES}
    exec(looks("GW001"), scope)
    return found(scope["model"], classes(), cross_entropy, optimizer=sgd)


def of_targets() -> set[str]:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        scope: dict[str, Any] = {**NAMES, "y": y}
        exec(looks("GW013"), scope)
        return cross_entropy(output, scope["y"])

    return found(network(1), classes(64), loss, 320, optimizer=sgd)


FAULTS: dict[str, Callable[[], set[str]]] = {
    "GW001": of_model,
    "GW101": of_model,
    "GW002": lambda: found(with_weights("GW002", 7), classes(), cross_entropy, optimizer=partial(sgd, lr=1e-6)),
    "GW004": lambda: found(with_weights("GW004", 2), classes(), cross_entropy, optimizer=sgd),
    "GW102": lambda: found(with_weights("GW102"), classes(), cross_entropy, optimizer=sgd),
    "GW103": lambda: found(with_weights("GW103"), classes(), cross_entropy, optimizer=partial(sgd, lr=1e-4)),
    "GW104": lambda: found(network(), classes(), cross_entropy, 60, optimizer=with_optimizer("GW104")),
    "GW013": of_targets,
    "GW127": of_targets,
    "GW106": lambda: found(network(), classes(), with_loss("GW106"), optimizer=sgd),
    "GW108": lambda: found(
        network(outputs=1), (numbers()[0], 1e4 * numbers()[1]), with_loss("GW108"), optimizer=partial(sgd, lr=1e-6)
    ),
    "GW012": lambda: found(network(outputs=1), (numbers()[0], numbers()[1][:, 0]), with_loss("GW012"), optimizer=sgd),
    "GW124": lambda: found(network(outputs=1), (numbers()[0], numbers()[1][:, 0]), with_loss("GW124"), optimizer=sgd),
    "GW117": lambda: found(network(outputs=1), numbers(), with_loss("GW117"), 60, optimizer=sgd),
    "GW118": lambda: found(network(), classes(), cross_entropy, 200, optimizer=with_optimizer("GW118")),
}


@pytest.mark.parametrize("identifier", FAULTS)
def test_the_code_of_a_page_has_the_fault(identifier: str) -> None:
    if identifier in OF_SHAPES and output_shape(nn.Linear(1, 1)(torch.ones(1, 1)).grad_fn, 0) is None:
        pytest.skip(f"torch {torch.__version__} tells no shapes in its graph, as docs/limits.md says")
    torch.manual_seed(0)
    assert identifier in FAULTS[identifier]()


def test_without_a_fault_nothing_is_named() -> None:
    torch.manual_seed(0)
    assert found(network(), classes(), cross_entropy, optimizer=sgd) == set()
    assert found(network(outputs=1), numbers(), mse_loss, optimizer=partial(sgd, lr=0.01)) == set()
