"""User's hooks that may interfere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from zoo import WIDTH, Between, Scale, has_columns, in_step, loss_of, mean_square, mlp, module, part

COLUMNS = has_columns("grad_norm", "grad_output_norm", "output_rms")
FIRST = has_columns("grad_norm", "grad_output_norm", "output_rms", layer="0")


def hooked(**hooks: Any) -> nn.Module:
    """A layer with hooks: the method that registers each, and the hook."""
    layer = nn.Linear(WIDTH, WIDTH)
    for method, hook in hooks.items():
        getattr(layer, f"register_{method}")(hook)
    return layer


def halve(*args: Any) -> Any:
    """A hook of any kind that halves its last argument."""
    value = args[-1]
    return tuple(None if item is None else item * 0.5 for item in value) if isinstance(value, tuple) else value * 0.5


def nothing(*args: Any) -> None: ...


@part(expect=COLUMNS)
def full_backward_hook() -> nn.Module:
    return hooked(full_backward_hook=nothing)


@part(expect=COLUMNS)
def full_backward_hook_that_replaces() -> nn.Module:
    return hooked(full_backward_hook=lambda module, into, out: halve(into))


@part(expect=COLUMNS)
def full_backward_pre_hook_that_replaces() -> nn.Module:
    return hooked(full_backward_pre_hook=halve)


@part(expect=COLUMNS)
def forward_hook_that_replaces_the_output() -> nn.Module:
    return hooked(forward_hook=halve)


@part(expect=COLUMNS)
def forward_hook_that_changes_the_output_in_place() -> nn.Module:
    def change(module: nn.Module, args: Any, output: Tensor) -> None:
        output.mul_(0.5)

    return hooked(forward_hook=change)


@part(take=lambda out: out["states"])
def forward_hook_that_wraps_the_output() -> nn.Module:
    return hooked(forward_hook=lambda module, args, output: {"states": output, "input": args[0]})


@part(expect=COLUMNS)
def pre_hook_that_replaces_the_input() -> nn.Module:
    return hooked(forward_pre_hook=lambda module, args: args[0] * 0.5)


@part(expect=COLUMNS)
def pre_hook_that_computes_the_weight() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    raw = layer.weight
    del layer.weight
    layer.raw = raw
    layer.register_forward_pre_hook(lambda module, args: setattr(module, "weight", module.raw * torch.rand(())))
    return layer


@part(expect=COLUMNS)
def hook_with_keywords_in_front() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    layer.register_forward_hook(lambda module, args, kwargs, output: output * 0.5, prepend=True, with_kwargs=True)
    return layer


@part(expect=COLUMNS)
def hook_that_is_always_called() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    layer.register_forward_hook(nothing, always_call=True)
    return layer


class FailsNowAndThen(Scale):
    """Raises at each second call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_forward_hook(nothing, always_call=True)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls % 2 == 0:
            raise RuntimeError("every other call")
        return x * self.weight


def twice_until_it_works(model: nn.Module, batch: Tensor) -> Tensor:
    try:
        return mean_square(model, batch)
    except RuntimeError:
        return mean_square(model, batch)


@part(loss=twice_until_it_works)
def layer_that_fails_now_and_then() -> nn.Module:
    return FailsNowAndThen()


class Found(Exception):
    """Ends a forward pass early, with the wanted value."""


@loss_of()
def features_taken_by_an_exception(model: nn.Module, batch: Tensor) -> Tensor:
    def stop(module: nn.Module, args: Any, output: Tensor) -> None:
        raise Found(output)

    handle = model[2].register_forward_hook(stop)
    try:
        model(batch)
    except Found as found:
        return found.args[0].square().mean()
    finally:
        handle.remove()
    raise AssertionError("the hook was not called")


@loss_of()
def features_taken_by_hooks(model: nn.Module, batch: Tensor) -> Tensor:
    features: list[Tensor] = []
    handles = [layer.register_forward_hook(lambda module, args, output: features.append(output)) for layer in model]
    out = model(batch)
    for handle in handles:
        handle.remove()
    return out.square().mean() + sum(feature.square().mean() for feature in features)


@in_step(expect=FIRST)
def hook_that_removes_itself(model: nn.Module, batch: Tensor) -> None:
    handle: Any = None

    def once(*args: Any) -> None:
        handle.remove()

    handle = model[0].register_forward_pre_hook(once)


@in_step(expect=FIRST)
def hook_that_registers_another(model: nn.Module, batch: Tensor) -> None:
    handles: list[Any] = []

    def first(module: nn.Module, args: Any) -> None:
        handles.append(model[1].register_forward_pre_hook(second))
        handles[0].remove()

    def second(module: nn.Module, args: Any) -> None:
        handles[1].remove()

    handles.append(model[0].register_forward_pre_hook(first))


@in_step()
def hook_that_calls_the_model_again(model: nn.Module, batch: Tensor) -> None:
    handle: Any = None

    def again(module: nn.Module, args: Any, output: Tensor) -> None:
        handle.remove()
        with torch.no_grad():
            model(batch[:1])

    handle = model[4].register_forward_hook(again)


@loss_of(expect=FIRST)
def hooks_on_all_modules(model: nn.Module, batch: Tensor) -> Tensor:
    calls: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: calls.append("forward"))
    loss = mean_square(model, batch)
    handle.remove()
    return loss * len(calls)


@loss_of()
def backward_hooks_on_all_modules(model: nn.Module, batch: Tensor) -> Tensor:
    handle = nn.modules.module.register_module_full_backward_hook(nothing)
    loss = mean_square(model, batch)
    loss.backward(retain_graph=True)
    handle.remove()
    return loss


@loss_of(expect=FIRST)
def hooks_that_count_their_like(model: nn.Module, batch: Tensor) -> Tensor:
    """The number of forward hooks that a user's code sees must not matter; here it does only through its own."""
    before = len(model[0]._forward_hooks)
    handle = model[0].register_forward_hook(nothing)
    after = len(model[0]._forward_hooks)
    handle.remove()
    return mean_square(model, batch) * (after - before)


@module(expect=has_columns("grad_norm", layer="odd.inner"))
def adapter_injected_around_a_layer() -> nn.Module:
    class Adapted(nn.Module):
        def __init__(self, inner: nn.Linear) -> None:
            super().__init__()
            self.inner, self.down, self.up = inner, nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + self.up(self.down(x))

    model = Between(nn.Linear(WIDTH, WIDTH), lambda out: out)
    model.odd = Adapted(model.odd)
    return model


@in_step(mlp)
def optimizer_hooks_for_all(model: nn.Module, batch: Tensor) -> None:
    handle = register_optimizer_step_post_hook(lambda optimizer, args, kwargs: None)
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    optimizer.step()
    handle.remove()
