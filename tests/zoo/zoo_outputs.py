"""Parts whose outputs are unusual: indices and masks first, empty, nested, lazy, or no tensors at all."""

from __future__ import annotations

import collections
import itertools
import types
from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from zoo import WIDTH, Scale, has_columns, module, part

GRADIENT = ("grad_norm", "grad_output_norm", "grad_output_rms", "gain")


@part(take=lambda out: out[1], expect=has_columns(*GRADIENT, "output_rms"))
class RouterOfIndicesThenWeights(Scale):
    def forward(self, x: Tensor) -> Any:
        weights, indices = (x * self.weight).softmax(-1).topk(3)
        return indices, x * weights.mean(-1, keepdim=True)


@part(take=lambda out: out["states"], expect=has_columns(*GRADIENT, "output_rms"))
class MaskThenStates(Scale):
    def forward(self, x: Tensor) -> Any:
        return {"mask": x > 0, "states": x * self.weight}


@part(take=lambda out: out[2], expect=has_columns(*GRADIENT, "output_rms"))
class CountsThenStates(Scale):
    def forward(self, x: Tensor) -> Any:
        return torch.tensor(3), torch.zeros(0, dtype=torch.uint8), x * self.weight


@part(take=lambda out: out.float().unsqueeze(-1).expand(-1, WIDTH))
class OnlyIndices(Scale):
    def forward(self, x: Tensor) -> Any:
        return (x * self.weight).argmax(-1)


@part(take=lambda out: out[0])
class ComplexThenReal(Scale):
    def forward(self, x: Tensor) -> Any:
        z = torch.complex(x, x * self.weight)
        return z.abs(), z


class Mixture(nn.Module):
    """The second expert gets no token in any batch, or in every other one."""

    def __init__(self, lonely: bool) -> None:
        super().__init__()
        expert = [nn.Sequential(nn.Linear(WIDTH, 9), nn.ReLU(), nn.Linear(9, WIDTH)) for _ in range(2)]
        self.experts, self.lonely, self.calls = nn.ModuleList(expert), lonely, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        goes_second = torch.zeros(len(x), dtype=torch.bool) if self.lonely or self.calls % 2 else x[:, 0] > 0
        out = torch.zeros_like(x)
        for expert, mine in zip(self.experts, (~goes_second, goes_second), strict=True):
            out = out.index_put((mine.nonzero()[:, 0],), expert(x[mine]))
        return out


@module(expect=has_columns("grad_norm", "output_rms", layer="experts.0.0"))
def expert_without_any_token() -> nn.Module:
    return Mixture(lonely=True)


@module(expect=has_columns("grad_norm", "output_rms", layer="experts.0.0"))
def expert_without_a_token_in_every_other_batch() -> nn.Module:
    return Mixture(lonely=False)


@module(batch=lambda: torch.randn(0, WIDTH))
def batch_without_a_row() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 8), nn.Sigmoid())


@module(batch=lambda: torch.randn(4, 0))
def rows_without_an_entry() -> nn.Module:
    return nn.Sequential(nn.Linear(0, 8), nn.ReLU(), nn.Linear(8, 0), nn.ReLU(), nn.Tanh(), nn.Linear(0, 1))


class Pair(NamedTuple):
    states: Tensor
    note: str


@part(take=lambda out: out.states, expect=has_columns(*GRADIENT, "output_rms"))
class NamedPair(Scale):
    def forward(self, x: Tensor) -> Any:
        return Pair(x * self.weight, "a note")


@part(take=lambda out: out.values)
class StructSequenceOfMax(Scale):
    def forward(self, x: Tensor) -> Any:
        return torch.cummax(x * self.weight, dim=-1)


@part(take=lambda out: next(out))
class GeneratorThatMustNotBeUsedUp(Scale):
    def forward(self, x: Tensor) -> Any:
        return (x * self.weight * power for power in (1, 2))


@part(take=lambda out: sum(out))
class IteratorThatMustNotBeUsedUp(Scale):
    def forward(self, x: Tensor) -> Any:
        return itertools.islice(map(torch.tanh, itertools.repeat(x * self.weight)), 2)


@part(take=lambda out: out[0])
class ListThatHoldsItself(Scale):
    def forward(self, x: Tensor) -> Any:
        out = [x * self.weight]
        out.append(out)
        return out


@part(take=lambda out: out["states"])
class DictThatHoldsItself(Scale):
    def forward(self, x: Tensor) -> Any:
        out: dict[str, Any] = {}
        out |= {"self": [out], "states": x * self.weight}
        return out


@part(take=lambda out: out[0])
class TupleNestedDeeperThanPythonRecurses(Scale):
    def forward(self, x: Tensor) -> Any:
        nest: Any = ()
        for _ in range(5000):
            nest = (nest,)
        return x * self.weight, nest


@part(take=lambda out: out[-1])
class ListOfManyNumbers(Scale):
    def forward(self, x: Tensor) -> Any:
        return [*range(10_000), x * self.weight]


class CountingList(list[Any]):
    looks = 0

    def __iter__(self) -> Iterator[Any]:
        CountingList.looks += 1
        raise RuntimeError("a list that nobody may go through")


@part(take=lambda out: out[0])
class ListThatCannotBeIterated(Scale):
    def forward(self, x: Tensor) -> Any:
        return CountingList([x * self.weight])


@part(take=lambda out: out[0])
class ListWithNothingAndTextAndNumpy(Scale):
    def forward(self, x: Tensor) -> Any:
        return [x * self.weight, None, "text", 1.5, x.detach().numpy(), {1, 2}, Enum("Kind", "a b"), b"bytes"]


@part(take=lambda out: out.states, expect=has_columns("grad_norm"))
class PlainObject(Scale):
    def forward(self, x: Tensor) -> Any:
        return types.SimpleNamespace(states=x * self.weight)


@part(take=lambda out: out["b"])
class DefaultDict(Scale):
    def forward(self, x: Tensor) -> Any:
        out: dict[str, Any] = collections.defaultdict(lambda: 1 / 0)
        out["b"] = x * self.weight
        return out


@part(take=lambda out: out["new"])
class ChainOfMappings(Scale):
    def forward(self, x: Tensor) -> Any:
        return collections.ChainMap({"new": x * self.weight}, {"old": x})


@part(take=lambda out: out[0])
class ItsInputAndItsInput(Scale):
    def forward(self, x: Tensor) -> Any:
        return x, x, x * self.weight


@part()
class ItsInputItself(Scale):
    def forward(self, x: Tensor) -> Any:
        return x


@part(take=lambda out: out.expand(8, WIDTH))
class ItsParameterItself(Scale):
    def forward(self, x: Tensor) -> Any:
        return self.weight


@part(take=lambda out: out[0] * out[1])
class ManyViewsOfOneTensor(Scale):
    def forward(self, x: Tensor) -> Any:
        out = x * self.weight
        return out, out.view(-1).view_as(out), *out.unbind(0), out.t()


@part(take=lambda out: torch.cat([half * 2 for half in out], -1))
class ChunksOfOneTensor(Scale):
    def forward(self, x: Tensor) -> Any:
        return (x * self.weight).chunk(2, -1)


@part(take=lambda out: out[0])
class ChunksOfWhichOneIsNotUsed(Scale):
    def forward(self, x: Tensor) -> Any:
        return torch.cat([x * self.weight, x], -1).chunk(2, -1)


@part(take=lambda out: out.expand(8, WIDTH))
class ScalarOutput(Scale):
    def forward(self, x: Tensor) -> Any:
        return (x * self.weight).sum()


@part(take=lambda out: torch.full((8, WIDTH), float(out)))
class PythonFloat(Scale):
    def forward(self, x: Tensor) -> Any:
        return (x * self.weight).sum().item()


@part(take=lambda out: torch.ones(8, WIDTH))
class Nothing(Scale):
    def forward(self, x: Tensor) -> Any:
        return None


@part(take=lambda out: torch.as_tensor(out).float())
class NumpyArray(Scale):
    def forward(self, x: Tensor) -> Any:
        return (x * self.weight).detach().numpy()


@part(take=lambda out: out.detach().requires_grad_())
class DetachedOutput(Scale):
    def forward(self, x: Tensor) -> Any:
        return (x * self.weight).detach()


@part(take=lambda out: out.data[:, :WIDTH])
class PackedOutput(Scale):
    def forward(self, x: Tensor) -> PackedSequence:
        return pack_sequence(list((x * self.weight).split(4)))


@part(take=lambda out: out[0])
class SparseBesideDense(Scale):
    def forward(self, x: Tensor) -> Any:
        out = x * self.weight
        return out, out.to_sparse(), out.detach().to_sparse_csr()


@part(take=lambda out: out.to_dense())
class OnlySparse(Scale):
    def forward(self, x: Tensor) -> Any:
        return (x * self.weight).relu().to_sparse()


@part(take=lambda out: out[1])
class QuantizedThenDense(Scale):
    def forward(self, x: Tensor) -> Any:
        out = x * self.weight
        return torch.quantize_per_tensor(out.detach(), 0.1, 0, torch.quint8), out


@part(take=lambda out: out[1])
class MetaThenDense(Scale):
    def forward(self, x: Tensor) -> Any:
        out = x * self.weight
        return torch.empty(3, device="meta", requires_grad=True) * 2, out


@part(take=lambda out: out[1].float())
class EveryKindOfNumber(Scale):
    def forward(self, x: Tensor) -> Any:
        out = x * self.weight
        kinds = (torch.float8_e4m3fn, torch.bfloat16, torch.half, torch.double, torch.cfloat, torch.int8, torch.bool)
        return [out.detach().to(torch.float8_e4m3fn), out.double(), *(out.detach().to(kind) for kind in kinds)]


@part(take=lambda out: out[0])
class HalfOfTheSmallestFloats(Scale):
    def forward(self, x: Tensor) -> Any:
        return [(x * self.weight).to(torch.bfloat16).float(), (x * self.weight).half()]


class LiesAboutItsClass:
    """Pretends to be a tensor to ``isinstance``."""

    __class__ = Tensor  # type: ignore[assignment]


class HidesItsClass:
    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no class to see")


@part(take=lambda out: out[1])
class PretendedTensor(Scale):
    def forward(self, x: Tensor) -> Any:
        return LiesAboutItsClass(), x * self.weight


@part(take=lambda out: out[1])
class MockOfATensor(Scale):
    def forward(self, x: Tensor) -> Any:
        return mock.MagicMock(spec=Tensor), x * self.weight


@part(take=lambda out: out[1])
class ObjectThatHidesItsClass(Scale):
    def forward(self, x: Tensor) -> Any:
        return HidesItsClass(), x * self.weight


@part(take=lambda out: out[0])
class TextThatIsASequenceOfItself(Scale):
    def forward(self, x: Tensor) -> Any:
        return x * self.weight, "a", ["b"], {"c": "d"}, range(3), memoryview(b"e")
