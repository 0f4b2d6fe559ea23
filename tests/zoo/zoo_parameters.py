"""Unusual parameters and gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo import WIDTH, Expect, Scale, has_columns, loss_of, mean_square, mlp, module, part, rows, sgd
from zoo_tensors import Unwrap, Wrapped

LAST: Expect = has_columns("grad_norm", "grad_output_norm", "output_rms", layer="last")
FIRST: Expect = has_columns("grad_norm", "grad_output_norm", "output_rms", layer="0")


def around(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer of the ordinary layers around an odd one."""
    return torch.optim.SGD([*model.first.parameters(), *model.last.parameters()], lr=0.05)


class Holding(nn.Module):
    """Passes on its input, and has an unused parameter."""

    def __init__(self, value: Tensor, requires_grad: bool = False) -> None:
        super().__init__()
        self.odd = nn.Parameter(value, requires_grad=requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def holds(name: str, make: Any, requires_grad: bool = False) -> None:
    def made() -> nn.Module:
        return Holding(make(), requires_grad)

    made.__name__ = name
    part(optimizer=around, expect=LAST)(made)


holds("parameter_of_integers", lambda: torch.arange(3))
holds("parameter_of_bytes", lambda: torch.ones(3, dtype=torch.uint8))
holds("parameter_of_truths", lambda: torch.ones(3, dtype=torch.bool))
holds("parameter_of_float8", lambda: torch.ones(3).to(torch.float8_e5m2))
holds("parameter_that_is_sparse", lambda: torch.eye(3).to_sparse(), requires_grad=True)
holds("parameter_that_is_sparse_by_rows", lambda: torch.eye(3).to_sparse_csr(), requires_grad=True)
holds("parameter_that_is_quantized", lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
holds("parameter_that_is_nested", lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))
holds("parameter_that_wraps_another", lambda: Wrapped(torch.ones(3)), requires_grad=True)
holds("parameter_of_nothing", lambda: torch.empty(0), requires_grad=True)
holds("parameter_that_is_infinite", lambda: torch.full((3,), float("inf")), requires_grad=True)
holds("parameter_that_is_expanded", lambda: torch.ones(1).expand(1000), requires_grad=True)
holds("parameter_that_is_conjugated", lambda: torch.ones(3, dtype=torch.cfloat).conj(), requires_grad=True)
holds("parameter_that_is_huge", lambda: torch.full((3,), 1e38), requires_grad=True)


@part(optimizer=around, expect=LAST)
def parameter_that_was_never_made() -> nn.Module:
    class Late(Scale):
        def __init__(self) -> None:
            super().__init__()
            self.idle = [nn.LazyLinear(3)]
            self.unmade = nn.UninitializedBuffer()

    return Late()


@module(optimizer=lambda model: sgd(model.net), expect=has_columns("grad_norm", layer="net.0"))
class LayerThatWasNeverMade(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.lazy = mlp(), nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@part(optimizer=around, expect=LAST)
class ParameterThatIsFreedBehindUse(nn.Module):
    """As sharding does: the memory of the weight is there in the forward pass alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH), requires_grad=False)
        self.register_buffer("kept", torch.full((WIDTH,), 1.5))
        self.weight.untyped_storage().resize_(0)

    def forward(self, x: Tensor) -> Tensor:
        storage = self.weight.untyped_storage()
        storage.resize_(WIDTH * 4)
        self.weight.copy_(self.kept)
        out = x * self.weight.clone()
        storage.resize_(0)
        return out

    def _save_to_state_dict(self, *_: Any) -> None: ...


@module(expect=FIRST)
def parameters_that_are_views_of_one() -> nn.Module:
    """As flat parameters are: all lie in one tensor's memory."""
    model = mlp()
    params = list(model.parameters())
    flat = torch.cat([param.detach().flatten() for param in params])
    for param, piece in zip(params, flat.split([param.numel() for param in params]), strict=True):
        param.data = piece.view_as(param)
    return model


@loss_of(expect=FIRST)
def gradients_that_are_views_of_one(model: nn.Module, batch: Tensor) -> Tensor:
    params = list(model.parameters())
    flat = torch.zeros(sum(param.numel() for param in params))
    for param, piece in zip(params, flat.split([param.numel() for param in params]), strict=True):
        param.grad = piece.view_as(param)
    return mean_square(model, batch)


NO_GRAD_DTYPE = "" if hasattr(torch.Tensor, "grad_dtype") else "this torch has no grad_dtype"


@module(batch=lambda: rows().bfloat16(), skip=NO_GRAD_DTYPE, optimizer=lambda model: InFloat(model.parameters()))
def gradients_of_another_kind_than_their_parameters() -> nn.Module:
    model = mlp().bfloat16()
    for param in model.parameters():
        param.grad_dtype = torch.float32
    return model


class InFloat(torch.optim.Optimizer):
    """Steps with gradients of another kind than the parameters."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.05})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for param in self.param_groups[0]["params"]:
            param.add_(param.grad.to(param.dtype), alpha=-0.05)
        return loss


@part(take=lambda out: out[0] * out[1].sum())
class OutputThatServesAsASparseTable(nn.Module):
    """The gradient at the layer's output is sparse, as the output is looked up in."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Scale()

    def forward(self, x: Tensor) -> Any:
        table = self.inner(x)
        return x, functional.embedding(torch.tensor([0, 1, 1]), table, sparse=True)


@part(take=lambda out: Unwrap.apply(out))
class GradientThatIsASubclass(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return Wrapped(x.detach()) * x.mean()


@part(take=lambda out: torch.view_as_real(out.conj() * 1j).sum(-1))
class GradientThatIsConjugated(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(x, x * self.weight)


@part(take=lambda out: out.sum() * torch.ones(8, WIDTH))
class GradientThatIsExpanded(Scale):
    pass


@part(take=lambda out: out * 1e-42)
class GradientsThatAreSubnormal(Scale):
    pass


@part(take=lambda out: out * torch.tensor([1e38, float("inf"), 0.0, -1e38, float("nan"), 1.0]))
class GradientsThatOverflow(Scale):
    pass


@module()
class NamesWithDots(nn.Module):
    """Names that ``register_parameter`` refuses, written past it."""

    def __init__(self) -> None:
        super().__init__()
        self._parameters["a.b"] = nn.Parameter(torch.ones(WIDTH))
        self._modules["c.d"] = nn.Linear(WIDTH, WIDTH)
        self._modules[""] = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self._modules[""](self._modules["c.d"](x * self._parameters["a.b"]))


@part(expect=LAST)
class LinearOfThreeDimensions(nn.Linear):
    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)
        self.weight = nn.Parameter(torch.randn(2, WIDTH, WIDTH))
        self.in_features = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ni,aio->no", x, self.weight)


@part(expect=LAST)
class LinearOfNoNumberOfInputs(nn.Linear):
    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)
        self.in_features = "six"  # type: ignore[assignment]


@part(expect=LAST)
class ConvolutionWithAStrideOfText(nn.Conv1d):
    def __init__(self) -> None:
        super().__init__(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x[:, None])[:, 0]
        self.stride_of_words, self.in_channels = ("one",), torch.tensor(1.5)  # type: ignore[assignment]
        return out


@part(expect=LAST)
class ReprThatRaises(Scale):
    def __repr__(self) -> str:
        raise RuntimeError("no words")

    def extra_repr(self) -> str:
        raise RuntimeError("no words")


@part(expect=LAST)
def class_without_a_proper_name() -> nn.Module:
    return type("a|b\n{c}[d]", (Scale,), {})()


@part(expect=LAST)
class TrainingIsAProperty(Scale):
    @property
    def training(self) -> bool:
        return True

    @training.setter
    def training(self, value: bool) -> None: ...


@part(take=lambda out: out[0] + out[1].sum() + out[2].flatten(1).sum(1, keepdim=True))
class ReluOfAnyNumberOfDimensions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(4))

    def forward(self, x: Tensor) -> Any:
        scalar, line, six, none = x.sum(), x[:, 0], x.view(8, 1, 2, 1, 3, 1), x[:0]
        out = [relu(value) for relu, value in zip(self.relus, (scalar, line, six, none), strict=True)]
        return x * out[0], out[1], out[2] + out[3].sum()


class Nest(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.n = Nest(depth - 1) if depth else nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.n(x)


@part()
def nested_eighty_levels_deep() -> nn.Module:
    return Nest(80)


@module(batch=lambda: torch.randn(4, 5, WIDTH))
class LstmWhoseWeightsAreDropped(nn.Module):
    """As in AWD-LSTMs: before each call the recurrent weight is made anew of the raw one."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, 4, batch_first=True)
        self.raw = nn.Parameter(self.lstm.weight_hh_l0.detach().clone())
        del self.lstm._parameters["weight_hh_l0"]
        self.lstm.flatten_parameters = lambda: None  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        self.lstm.weight_hh_l0 = functional.dropout(self.raw, 0.3)
        return self.lstm(x)[0]
