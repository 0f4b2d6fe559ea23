"""Modules built at random, with any kind of outputs, give the same weights or error watched and unwatched."""

from __future__ import annotations

import dataclasses
import gc
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from zoo import WIDTH, ModuleCase, Scale, rows
from zoo_containers import Logits
from zoo_run import check

Named = namedtuple("Named", "first second third", defaults=(None, None))


@dataclasses.dataclass
class Plain:
    items: Any
    late: Any = dataclasses.field(init=False)


@dataclasses.dataclass(slots=True)
class Slots:
    items: Any
    late: Any = dataclasses.field(init=False)


# Outputs beside the tensor that goes on, made from it.
LEAVES: dict[str, Callable[[Tensor], Any]] = {
    "nothing": lambda x: None,
    "number": lambda x: 3,
    "text": lambda x: "text",
    "indices": lambda x: x.argmax(-1),
    "mask": lambda x: x > 0,
    "count": lambda x: torch.tensor(len(x)),
    "half": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "double": lambda x: x.double(),
    "float8": lambda x: x.detach().to(torch.float8_e4m3fn),
    "bytes": lambda x: x.detach().abs().to(torch.uint8),
    "complex": lambda x: torch.complex(x, x),
    "no rows": lambda x: x[:0],
    "no columns": lambda x: x[:, :0],
    "scalar": lambda x: x.sum(),
    "flat view": lambda x: x.view(-1),
    "column": lambda x: x[:, 0],
    "transposed": lambda x: x.t(),
    "expanded": lambda x: x[:1].expand(3, -1),
    "chunks": lambda x: x.chunk(2, -1),
    "rows": lambda x: x.unbind(0),
    "sparse": lambda x: x.relu().to_sparse(),
    "detached": lambda x: x.detach(),
    "itself": lambda x: x,
    "numpy": lambda x: x.detach().numpy(),
    "generator": lambda x: (y for y in (x,)),
    "infinite": lambda x: x.detach() / 0,
    "leaf": lambda x: torch.ones(2, requires_grad=True),
    "meta": lambda x: torch.ones(2, device="meta"),
    "object": lambda x: object(),
    "changed": lambda x: x.mul_(1.01),
    "row changed": lambda x: x[0].zero_(),
    "jagged": lambda x: torch.nested.as_nested_tensor([x[:1], x[1:3]], layout=torch.jagged),
}

# Ways to pack several values into one, each with the way to find the first again.
CONTAINERS: dict[str, tuple[Callable[[list[Any]], Any], Callable[[Any, int], Any]]] = {
    "tuple": (tuple, lambda box, i: box[i]),
    "list": (list, lambda box, i: box[i]),
    "dict": (lambda items: dict(enumerate(items)), lambda box, i: box[i]),
    "ordered": (lambda items: OrderedDict((str(i), x) for i, x in enumerate(items)), lambda box, i: box[str(i)]),
    "named": (lambda items: Named(items), lambda box, i: box.first[i]),
    "plain": (lambda items: Plain(items), lambda box, i: box.items[i]),
    "slots": (lambda items: Slots(items), lambda box, i: box.items[i]),
    "namespace": (lambda items: SimpleNamespace(items=items), lambda box, i: box.items[i]),
    "logits": (lambda items: Logits(logits=items[0], past=tuple(items)), lambda box, i: box.past[i]),
}


def boxes(inner: Any) -> Any:
    return st.tuples(st.sampled_from(sorted(CONTAINERS)), st.lists(inner, min_size=1, max_size=3))


values = st.recursive(st.sampled_from(sorted(LEAVES)), boxes, max_leaves=5)
outputs = st.tuples(st.sampled_from(sorted(CONTAINERS)), st.lists(values, max_size=3), st.integers(0, 3))


def made_of(value: Any, x: Tensor) -> Any:
    if isinstance(value, str):
        return LEAVES[value](x)
    box, inner = value
    return CONTAINERS[box][0]([made_of(each, x) for each in inner])


class Odd(Scale):
    """Puts out its tensor among other things, as the plan says."""

    def __init__(self, plan: Any) -> None:
        super().__init__()
        self.box, self.beside, place = plan
        self.place = min(place, len(self.beside))

    def forward(self, x: Tensor) -> Any:
        x = x * self.weight
        items = [made_of(value, x) for value in self.beside]
        return CONTAINERS[self.box][0]([*items[: self.place], x, *items[self.place :]])


class Found(nn.Module):
    """Takes the tensor that goes on from an odd part's output, and may change it in place."""

    def __init__(self, plan: Any, in_place: bool) -> None:
        super().__init__()
        self.odd, self.in_place = Odd(plan), in_place

    def forward(self, x: Tensor) -> Tensor:
        out = CONTAINERS[self.odd.box][1](self.odd(x), self.odd.place)
        return out.mul_(1.1) if self.in_place else out


class Combined(nn.Module):
    """Calls its parts in one of some ways."""

    def __init__(self, how: str, parts: list[nn.Module]) -> None:
        super().__init__()
        self.how, self.parts = how, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "side by side":
            return sum(part(x) for part in self.parts)  # type: ignore[return-value]
        for part in self.parts:
            x = getattr(self, self.how)(part, x)
        return x

    def in_turn(self, part: nn.Module, x: Tensor) -> Tensor:
        return part(x)

    def twice(self, part: nn.Module, x: Tensor) -> Tensor:
        return part(part(x))

    def skipped(self, part: nn.Module, x: Tensor) -> Tensor:
        return x + part(x)

    def checkpointed(self, part: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(part, x, use_reentrant=False)

    def without_gradients(self, part: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = part(x)
        return x + y.clone()

    def in_bfloat16(self, part: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return part(x).float()

    def inferred(self, part: nn.Module, x: Tensor) -> Tensor:
        with torch.inference_mode():
            y = part(x)
        return x + y.clone()

    def of_a_view(self, part: nn.Module, x: Tensor) -> Tensor:
        return x + part(x[:3]).mean(0)

    def of_a_changed_tensor(self, part: nn.Module, x: Tensor) -> Tensor:
        return part((x + 1).mul_(2)).add_(1)

    def with_a_penalty(self, part: nn.Module, x: Tensor) -> Tensor:
        y = part(x)
        if not (y.requires_grad and x.requires_grad):
            return y
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True, allow_unused=True)
        return y if slope is None else y + slope.square().mean()

    def on_no_rows(self, part: nn.Module, x: Tensor) -> Tensor:
        return x + part(x[:0]).sum()

    def vmapped(self, part: nn.Module, x: Tensor) -> Tensor:
        return torch.vmap(part, randomness="different")(x[:, None])[:, 0]


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "sigmoid": nn.Sigmoid,
    "softmax": lambda: nn.Softmax(-1),
    "parametric relu": nn.PReLU,
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
    "dropout": lambda: nn.Dropout(0.3),
    "rnn": lambda: Rnn(),
}
WAYS = ["side by side", *(name for name, value in vars(Combined).items() if callable(value) and name[0] != "_")]
WAYS.remove("forward")


class Rnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


layers = st.sampled_from(sorted(LAYERS)) | st.tuples(outputs, st.booleans())


def combinations(inner: Any) -> Any:
    return st.tuples(st.sampled_from(WAYS), st.lists(inner, min_size=1, max_size=3))


plans = st.recursive(layers, combinations, max_leaves=6)


def module_of(plan: Any) -> nn.Module:
    if isinstance(plan, str):
        return LAYERS[plan]()
    if isinstance(plan[0], str):
        return Combined(plan[0], [module_of(part) for part in plan[1]])
    return Found(*plan)


def network(plan: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), module_of(plan), nn.Linear(WIDTH, 1))


@example(plan=("without_gradients", [("on_no_rows", ["relu in place"])]))
@example(plan=("inferred", [("of_a_view", ["relu in place"])]))
@example(plan=(("dict", ["rows", "changed"], 0), False))
@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(plan=plans)
def test_watched_modules_end_as_unwatched_ones(plan: Any) -> None:
    gc.freeze()
    case = ModuleCase(name="random", make=lambda: network(plan), batch=lambda: rows(5))
    check(case.loop, case, Path("random"), "watched", may_fail=True)
