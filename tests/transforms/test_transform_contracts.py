"""The contract of every exported transform."""

from __future__ import annotations

import copy
import pickle
import sys
import typing

import pytest
import torch
from every_transform import (
    CONTEXT,
    EXPORTED,
    FACTORIES,
    REFUSES_SPARSE,
    STATEFUL,
    network,
    set_gradients,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradwatch import transforms
from gradwatch.transforms import SkipNonFinite

every_transform = pytest.mark.parametrize("name", FACTORIES)


def test_no_exported_transform_escapes_these_tests() -> None:
    assert {name.split("-")[0] for name in FACTORIES} == EXPORTED


@every_transform
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_edits_in_place_and_keeps_shape_dtype_and_none(name: str, dtype: torch.dtype) -> None:
    model = network().to(dtype)
    params = set_gradients(model)
    before = {key: param.grad for key, param in params.items()}
    weights = {key: param.detach().clone() for key, param in params.items()}
    FACTORIES[name]()(params, CONTEXT)
    for key, param in params.items():
        assert param.grad is before[key]
        assert torch.equal(param, weights[key])
        if param.grad is not None:
            assert (param.grad.dtype, param.grad.shape) == (dtype, param.shape)
            assert param.grad.isfinite().all()
            assert not param.grad.requires_grad
    assert model.unused.grad is None


@every_transform
def test_half_precision_is_close_to_double(name: str) -> None:
    rounded = set_gradients(network().half())
    exact = set_gradients(network().half().double())
    for key, param in exact.items():
        if param.grad is not None:
            param.grad.copy_(rounded[key].grad)
    for params in (rounded, exact):
        FACTORIES[name]()(params, CONTEXT)
    if "AddNoise" in repr(FACTORIES[name]()):
        return  # float32 and float64 noise are other draws
    for key, param in exact.items():
        if param.grad is not None:
            torch.testing.assert_close(rounded[key].grad.double(), param.grad, rtol=2e-3, atol=1e-6)


@every_transform
def test_complex_gradients(name: str) -> None:
    weight = nn.Parameter(torch.ones(3, 2, dtype=torch.complex64))
    weight.grad = torch.complex(torch.arange(6.0).reshape(3, 2), torch.ones(3, 2))
    bias = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    bias.grad = torch.tensor([1 + 2j, 3 - 4j])
    FACTORIES[name]()({"weight": weight, "bias": bias}, CONTEXT)
    assert weight.grad.dtype == torch.complex64
    assert weight.grad.isfinite().all()


@every_transform
def test_a_shared_parameter_counts_once(name: str) -> None:
    one = nn.Linear(2, 2, bias=False)
    twin = copy.deepcopy(one)
    for layer in (one, twin):
        layer.weight.grad = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    FACTORIES[name]()({"weight": one.weight}, CONTEXT)
    FACTORIES[name]()({"weight": twin.weight, "again.weight": twin.weight}, CONTEXT)
    assert torch.equal(one.weight.grad, twin.weight.grad)


@every_transform
def test_nothing_to_do_without_gradients(name: str) -> None:
    params = dict(nn.Linear(2, 2).named_parameters())
    FACTORIES[name]()(params, CONTEXT)
    assert all(param.grad is None for param in params.values())


@every_transform
def test_strides_do_not_matter(name: str) -> None:
    plain, strided = (nn.Conv2d(3, 4, 3) for _ in range(2))
    strided.load_state_dict(plain.state_dict())
    params = set_gradients(plain), dict(strided.named_parameters())
    strided.weight.grad = plain.weight.grad.clone(memory_format=torch.channels_last)
    strided.bias.grad = plain.bias.grad.repeat_interleave(2)[::2]
    for given in params:
        FACTORIES[name]()(given, CONTEXT)
    torch.testing.assert_close(strided.weight.grad, plain.weight.grad)
    torch.testing.assert_close(strided.bias.grad, plain.bias.grad)


def _embeddings() -> tuple[nn.Embedding, nn.Embedding]:
    torch.manual_seed(0)
    sparse = nn.Embedding(6, 3, sparse=True)
    dense = nn.Embedding(6, 3, _weight=sparse.weight.detach().clone())
    for layer in (sparse, dense):
        layer(torch.tensor([1, 4, 1])).square().sum().backward()
    return sparse, dense


@every_transform
def test_sparse_gradients_are_as_dense_ones_or_refused(name: str) -> None:
    sparse, dense = _embeddings()
    assert not sparse.weight.grad.is_coalesced()
    if name in REFUSES_SPARSE:
        with pytest.raises(TypeError, match=r"sparse gradient of 'emb.weight'.*Only"):
            FACTORIES[name]()({"emb.weight": sparse.weight}, CONTEXT)
        return
    for layer in (sparse, dense):
        FACTORIES[name]()({"emb.weight": layer.weight}, CONTEXT)
    assert sparse.weight.grad.is_sparse
    torch.testing.assert_close(sparse.weight.grad.to_dense(), dense.weight.grad)


@every_transform
def test_nan_does_not_spread(name: str) -> None:
    model = network()
    params = set_gradients(model)
    model.conv.weight.grad[0, 0, 0, 0] = float("nan")
    model.linear.weight.grad[0, 0] = float("inf")
    transform = FACTORIES[name]()
    for _ in range(3):
        transform(params, CONTEXT)
    if name == "SkipNonFinite":
        assert all(param.grad is None for param in params.values())
        return
    for key, param in params.items():
        if param.grad is not None and key not in ("conv.weight", "linear.weight"):
            assert param.grad.isfinite().all(), key
    assert model.conv.weight.grad.isnan().sum() <= 1
    assert (~model.linear.weight.grad.isfinite()).sum() <= 1


def _run(transform: transforms.Transform, steps: range) -> list[torch.Tensor]:
    results = []
    for step in steps:
        params = set_gradients(network(), step, scale=10.0 if step == 5 else 1.0)
        if step == 6:
            params["linear.bias"].grad[0] = float("nan")
        transform(params, CONTEXT)
        results += [param.grad for param in params.values() if param.grad is not None]
    return results


@every_transform
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_resumed_transform_goes_on_bit_for_bit(name: str, stop: int) -> None:
    whole = _run(FACTORIES[name](), range(12))
    first = FACTORIES[name]()
    begun = _run(first, range(stop))
    state = pickle.loads(pickle.dumps(first.state_dict()))
    again = FACTORIES[name]()
    again.load_state_dict(state)
    begun += _run(again, range(stop, 12))
    assert len(whole) == len(begun)
    assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(whole, begun, strict=True))


@every_transform
def test_state_is_small_a_copy_and_free_of_nonfinite_values(name: str) -> None:
    transform = FACTORIES[name]()
    _run(transform, range(8))
    state = transform.state_dict()
    assert bool(state) == (name in STATEFUL)
    kept = copy.deepcopy(state)
    _run(transform, range(8, 10))
    torch.testing.assert_close(state, kept, rtol=0, atol=0)
    for value in _tensors(state):
        assert value.numel() <= 4
        assert value.isfinite().all()


def _tensors(state: object) -> list[torch.Tensor]:
    if isinstance(state, dict):
        return [tensor for value in state.values() for tensor in _tensors(value)]
    return [state] if isinstance(state, torch.Tensor) else []


@every_transform
def test_a_state_of_another_transform_is_refused(name: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        FACTORIES[name]().load_state_dict({"9": {"unknown": 1}})


class HostReads(TorchDispatchMode):
    """Counts the operations that bring a value to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        copies = func is torch.ops.aten._to_copy.default and kwargs.get("device") not in (None, args[0].device)
        self.count += func is torch.ops.aten._local_scalar_dense.default or copies
        return func(*args, **kwargs)


@every_transform
def test_nothing_is_read_back_to_the_host(name: str) -> None:
    transform = FACTORIES[name]()
    for step in range(4):
        params = set_gradients(network(), step)
        with HostReads() as reads:
            transform(params, CONTEXT)
        assert reads.count == isinstance(transform, SkipNonFinite)


@every_transform
def test_nothing_is_read_back_off_the_cpu_either(name: str) -> None:
    """A meta tensor has no values, so any read raises."""
    transform = FACTORIES[name]()
    if "AddNoise" in repr(transform) or isinstance(transform, SkipNonFinite):
        return  # one has no generator there, the other one reads by design
    params = {"a.weight": nn.Parameter(torch.ones(3, 2, device="meta"))}
    for _ in range(4):
        params["a.weight"].grad = torch.ones(3, 2, device="meta")
        transform(params, CONTEXT)


@every_transform
def test_its_repr_makes_it_again(name: str) -> None:
    transform = FACTORIES[name]()
    _run(transform, range(2))
    again = eval(repr(transform), {**vars(transforms), "inf": float("inf")})
    assert repr(again) == repr(transform)
    assert pickle.loads(pickle.dumps(transform)).state_dict().keys() == transform.state_dict().keys()


@every_transform
def test_docstring_has_every_part(name: str) -> None:
    text = type(FACTORIES[name]()).__doc__
    for part in ("Shapes:", "Non-finite gradients:", "Cost:", "Example:", "References:"):
        assert part in text, part
    places = [text.index(part) for part in ("Shapes:", "Non-finite gradients:", "Cost:", "Example:", "References:")]
    assert places == sorted(places)


@every_transform
def test_a_command_line_can_read_its_types(name: str) -> None:
    """jsonargparse looks all annotations up in the class' own module, inherited ones too."""
    made = type(FACTORIES[name]())
    assert typing.get_type_hints(made, vars(sys.modules[made.__module__])) is not None
