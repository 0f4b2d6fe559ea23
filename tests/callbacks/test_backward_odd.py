"""BackwardTransform on layers whose outputs, calls or classes are out of the ordinary: no run ends or changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from small_fits import Regression, close_weights, fit, same_weights
from torch import Tensor, nn

from gradwatch.callbacks.backward import BackwardTransform
from gradwatch.probe import module_hooks
from gradwatch.transforms import ClipByNorm, NormalizeByNorm, Standardize


class Notes:
    """A transform that notes the gradients it is called with, and changes nothing."""

    def __init__(self) -> None:
        self.grads: list[Tensor] = []

    def __call__(self, params: dict[str, nn.Parameter], context: Any) -> None:
        self.grads += [param.grad.clone() for param in params.values()]


def sgd(net: Callable[[], nn.Module]) -> Regression:
    return Regression(net=net, optimizer=torch.optim.SGD, lr=0.01)


@dataclass
class Result:
    hidden: Tensor
    kept: Tensor | None = None
    label: str = "x"


class Odd(nn.Linear):
    """Puts out what nobody can derive, beside what everybody can."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = super().forward(x)
        return {"result": [Result(y)], "index": y.argmax(1), "mask": y > 0, "count": 3, "empty": y[:, :0], "no": None}


class OddNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.odd, self.head = Odd(4, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.odd(x)
        return self.head(out["result"][0].hidden.tanh() * out["mask"]) + out["empty"].sum()


def test_outputs_without_a_gradient_and_empty_ones_are_passed_over() -> None:
    notes = Notes()
    ours = fit(BackwardTransform([notes, Standardize()], layers=["net.odd"]), sgd(OddNet), max_steps=3)
    assert [grad.shape for grad in notes.grads] == [(8, 8)] * 3
    assert all(param.isfinite().all() for param in ours.parameters())
    bare = fit(model=sgd(OddNet), max_steps=3)
    assert same_weights(fit(BackwardTransform(Notes(), layers=["*"]), sgd(OddNet), max_steps=3), bare)


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Also(Regression):
    """Does something with its network beside the training, in each step."""

    def __init__(self, also: Callable[[Regression], Any], net: Callable[[], nn.Module] = Body) -> None:
        super().__init__(net=net, optimizer=torch.optim.SGD, lr=0.01)
        self.also = also
        self.results: list[Any] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.results.append(self.also(self))
        loss = super().training_step(batch, batch_idx)
        return loss + self.results[-1] if isinstance(self.results[-1], Tensor) else loss


def of_functions(module: Regression) -> Tensor:
    params = {name: param.detach() for name, param in module.net.named_parameters()}
    x = torch.ones(3, 4)

    def loss(params: Any, x: Tensor) -> Tensor:
        return torch.func.functional_call(module.net, params, x).sum()

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, x.unsqueeze(1))
    return sum(grad.square().sum() for grad in grads.values())


def traced(module: Regression) -> None:
    net = torch.jit.trace(module.net, torch.ones(2, 4))
    assert torch.equal(net(torch.ones(2, 4)), module.net(torch.ones(2, 4)))


def scripted(module: Regression) -> None:
    net = torch.jit.script(module.net)
    assert torch.equal(net(torch.ones(2, 4)), module.net(torch.ones(2, 4)))


def exported(module: Regression) -> None:
    net = torch.export.export(module.net, (torch.ones(2, 4),)).module()
    assert torch.equal(net(torch.ones(2, 4)), module.net(torch.ones(2, 4)))


def penalty(module: Regression) -> Tensor:
    x = torch.ones(2, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(module.net(x).sum(), x, create_graph=True)
    return grad.square().sum()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("also", [of_functions, traced, scripted, exported, penalty])
def test_what_else_is_done_with_the_network_is_left_alone(also: Callable[[Regression], Any]) -> None:
    notes = Notes()
    ours = fit(BackwardTransform(notes, layers=["net.body.0", "net.body.1"]), Also(also), max_steps=2)
    bare = fit(model=Also(also), max_steps=2)
    assert same_weights(ours, bare)
    # The loss of the penalty goes through the layers a second time.
    assert len(notes.grads) == (8 if also is penalty else 4)
    assert [str(result) for result in ours.results] == [str(result) for result in bare.results]


def with_script() -> nn.Module:
    net = Body()
    net.body[0] = torch.jit.script(net.body[0])
    return net


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_module_of_torchscript_takes_no_hook() -> None:
    for layers in (["net.body.0"], ["net.body.0", "net.head"], ["net.body.0*"]):
        with pytest.raises(ValueError, match=r"chooses 'net.body.0', a TorchScript module, which takes no hooks"):
            fit(BackwardTransform(NormalizeByNorm(), layers=layers), sgd(with_script), max_steps=1)
    names: list[str] = []
    with pytest.warns(UserWarning, match="nothing is transformed at net.body.0: TorchScript modules take no hooks"):
        fit(BackwardTransform(lambda params, _: names.extend(params), ["net.*"]), sgd(with_script), max_steps=2)
    assert names == ["net.head", "net.body.1"] * 2


class Table(nn.Module):
    """Puts its parameter out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self) -> Tensor:
        return self.weight


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = Table(), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * self.table() + self.table())


def test_a_parameter_that_a_layer_puts_out_is_edited_once_a_batch() -> None:
    notes = Notes()

    def halve(params: dict[str, nn.Parameter], context: Any) -> None:
        params["net.table"].grad.mul_(0.5)

    callback = BackwardTransform([notes, halve], layers=["net.table"])
    ours = fit(callback, sgd(Scaled), max_steps=4)
    assert len(notes.grads) == 4
    assert not ours.net.table.weight._backward_hooks
    one = [fit(callbacks, sgd(Scaled), max_steps=1).net.table.weight for callbacks in ([], callback)]
    assert torch.allclose((one[0] - 1) / 2, one[1] - 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_of_the_network_made_in_a_step_is_not_transformed(how: Callable[[Any], Any]) -> None:
    notes = Notes()

    def copied(module: Regression) -> None:
        module.net(torch.ones(2, 4))
        how(module.net)(torch.ones(2, 4)).sum().backward()

    fit(BackwardTransform(notes, layers=["net.table"]), Also(copied, Scaled), max_steps=3)
    assert len(notes.grads) == 3


def test_a_copy_of_the_callback_made_in_the_fit_has_no_hooks() -> None:
    callback = BackwardTransform(ClipByNorm(1.0), layers=["net.head"])
    module = Also(lambda _: module.twins.append(copy.deepcopy(callback)))
    module.twins = []
    fit(callback, module, max_steps=2)
    assert [twin._handles for twin in module.twins] == [[], []]
    fit(module.twins[0], sgd(Body), max_steps=1)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_layer_with_several_outputs_is_transformed(backend: str) -> None:
    class Two(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = super().forward(x)
            return y, y.detach() > 0

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two, self.head = Two(4, 8), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            hidden, mask = self.two(x)
            return self.head(hidden * mask)

    def callback() -> BackwardTransform:
        return BackwardTransform(NormalizeByNorm(), layers=["*two"])

    compiled = fit(callback(), sgd(lambda: torch.compile(Net(), backend=backend)), max_steps=3)
    close_weights(compiled, fit(callback(), sgd(Net), max_steps=3))


def test_an_output_that_takes_no_hook_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(value: Any) -> list[Tensor]:
        raise RuntimeError("not this one")

    monkeypatch.setattr("gradwatch.callbacks.backward.tensors_in", refuses)
    with pytest.warns(UserWarning, match=r"layer net.head: .* step 0 \(RuntimeError: not this one\)"):
        ours = fit(BackwardTransform(NormalizeByNorm(), ["net.head"], on_error="warn"), sgd(Body), max_steps=2)
    assert same_weights(ours, fit(model=sgd(Body), max_steps=2))


def test_a_module_that_refuses_hooks_is_left_alone() -> None:
    class Refuses(nn.Linear):
        def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("this module takes no hooks")

    class Net(Body):
        def __init__(self) -> None:
            super().__init__()
            self.head = Refuses(8, 1)

    with pytest.warns(UserWarning, match="layer net.head: .*this module takes no hooks"):
        ours = fit(BackwardTransform(NormalizeByNorm(), ["net.head"], on_error="warn"), sgd(Net), max_steps=2)
    assert same_weights(ours, fit(model=sgd(Net), max_steps=2))


def test_its_hooks_are_of_the_class_that_scripting_passes_over() -> None:
    def look(module: Regression) -> list[Any]:
        return [hook for part in module.modules() for hook in part._forward_hooks.values()]

    module = Also(look)
    fit(BackwardTransform(ClipByNorm(1.0), layers=["net.head"]), module, max_steps=1)
    assert [isinstance(hook, module_hooks.ModuleHook) for hook in module.results[0]] == [True]
