"""Modes and settings that hold for all of a step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker
from zoo import WIDTH, has_columns, loss_of, mean_square, mlp

FIRST = has_columns("grad_norm", "grad_output_norm", "output_rms", layer="0")


class CountsFunctions(TorchFunctionMode):
    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


class CountsOperations(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


class DrawsWithEach(TorchDispatchMode):
    """Draws a random number with each operation, as modes that add noise do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        torch.rand(1)
        return func(*args, **(kwargs or {}))


@loss_of(expect=FIRST)
def mode_that_counts_functions(model: nn.Module, batch: Tensor) -> Tensor:
    with CountsFunctions() as mode:
        loss = mean_square(model, batch)
        loss.backward(retain_graph=True)
    return loss * mode.calls


@loss_of(expect=FIRST)
def mode_that_counts_operations(model: nn.Module, batch: Tensor) -> Tensor:
    with CountsOperations() as mode:
        loss = mean_square(model, batch)
        loss.backward(retain_graph=True)
    return loss * mode.calls


@loss_of(expect=FIRST)
def mode_that_draws_numbers(model: nn.Module, batch: Tensor) -> Tensor:
    with DrawsWithEach():
        return mean_square(model, batch)


@loss_of(expect=FIRST)
def modes_inside_of_modes(model: nn.Module, batch: Tensor) -> Tensor:
    with CountsOperations() as outer, CountsFunctions() as functions, CountsOperations() as inner:
        loss = mean_square(model, batch)
    return loss * (outer.calls + inner.calls + functions.calls)


@loss_of(expect=FIRST)
def counter_of_operations(model: nn.Module, batch: Tensor) -> Tensor:
    with FlopCounterMode(display=False) as counter:
        loss = mean_square(model, batch)
        loss.backward(retain_graph=True)
    return loss * counter.get_total_flops()


@loss_of(expect=FIRST)
def fake_tensors_in_between(model: nn.Module, batch: Tensor) -> Tensor:
    with FakeTensorMode(allow_non_fake_inputs=True):
        model(torch.empty(4, WIDTH))
    return mean_square(model, batch)


@loss_of(expect=FIRST)
def meta_device_as_the_default(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.device("meta"):
        loss = mean_square(model, batch)
        loss.backward(retain_graph=True)
    return loss


@loss_of(expect=FIRST)
def double_as_the_default(model: nn.Module, batch: Tensor) -> Tensor:
    torch.set_default_dtype(torch.float64)
    try:
        loss = mean_square(model, batch)
        loss.backward(retain_graph=True)
    finally:
        torch.set_default_dtype(torch.float32)
    return loss


def within(name: str, context: Any) -> None:
    """The forward and a backward pass inside of a context."""

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        with context():
            loss = mean_square(model, batch)
            loss.backward(retain_graph=True)
        return loss

    loss.__name__ = name
    loss_of(mlp, expect=FIRST)(loss)


@contextlib.contextmanager
def deterministic(warn_only: bool = False) -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def flushed() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


within("deterministic_algorithms", deterministic)
within("deterministic_algorithms_that_warn", lambda: deterministic(warn_only=True))
within("subnormal_numbers_flushed", flushed)
within("autocast_to_bfloat16", lambda: torch.autocast("cpu", torch.bfloat16))
within("autocast_without_a_cache", lambda: torch.autocast("cpu", torch.float16, cache_enabled=False))
within("profiler_of_torch", torch.profiler.profile)
within("profiler_of_autograd", lambda: torch.autograd.profiler.profile(record_shapes=True))
within("named_region", lambda: torch.profiler.record_function("step"))
within("anomalies_detected", lambda: torch.autograd.detect_anomaly(check_nan=True))
within("module_tracker", ModuleTracker)
within("random_state_forked", torch.random.fork_rng)
within("sparse_tensors_checked", torch.sparse.check_sparse_tensor_invariants)
within("subclasses_disabled", torch._C.DisableTorchFunctionSubclass)
within("functions_disabled", torch._C.DisableTorchFunction)
within("one_thread_for_backward_passes", lambda: torch.autograd.set_multithreading_enabled(False))
within("attention_by_mathematics", lambda: nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH))
