"""The traces that a run leaves, and the comparison of two runs."""

from __future__ import annotations

import random
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Token:
    """Lives as long as the graph in which it is put."""


@dataclass
class Trail:
    """The traces that a run leaves."""

    weights: dict[str, bytes] = field(default_factory=dict)
    losses: list[bytes] = field(default_factory=list)
    rng: Any = None
    error: str = ""
    where: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    hooks: list[str] = field(default_factory=list)
    alive: set[str] = field(default_factory=set)
    warnings: set[tuple[Any, str]] = field(default_factory=set)


def assert_same(bare: Trail, watched: Trail) -> None:
    """Raise an AssertionError if the traces of the watched run differ from the bare one's."""
    assert watched.error == bare.error, f"ended with {watched.error or 'no error'}, not {bare.error}{watched.where}"
    assert watched.losses == bare.losses, "the losses differ"
    assert list(watched.weights) == list(bare.weights), f"other names of weights: {list(watched.weights)}"
    changed = [name for name, stored in bare.weights.items() if watched.weights[name] != stored]
    assert not changed, f"other weights: {changed}"
    assert watched.hooks == bare.hooks, f"left on the model: {sorted({*watched.hooks} ^ {*bare.hooks})}"
    assert watched.settings == bare.settings, f"other settings: {watched.settings}"
    assert watched.alive <= bare.alive, f"still alive: {watched.alive - bare.alive}"
    assert watched.warnings <= bare.warnings, f"warned: {watched.warnings - bare.warnings}"
    assert watched.rng == bare.rng, "the random state differs"


def place_of(error: BaseException) -> str:
    """The innermost line of gradwatch that an error went through, for the message of a failing test."""
    lines = [f for f in traceback.extract_tb(error.__traceback__) if "/gradwatch/" in f.filename]
    return f", by way of {lines[-1].filename}:{lines[-1].lineno}: {lines[-1].line}" if lines else ""


def modules_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules, even if the model overrides ``named_modules()``."""
    waiting, seen = [("", model)], set()
    while waiting:
        name, module = waiting.pop()
        if id(module) not in seen:
            seen.add(id(module))
            yield name, module
            children = vars(module).get("_modules") or {}
            waiting += [(f"{name}.{key}", child) for key, child in children.items() if isinstance(child, nn.Module)]


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in modules_of(model):
        if isinstance(module, torch.jit.ScriptModule):
            yield from ((f"{name}.{key}", param) for key, param in module.named_parameters())
            continue
        for kind in ("_parameters", "_buffers"):
            items = (vars(module).get(kind) or {}).items()
            yield from ((f"{name}.{key}", tensor) for key, tensor in items if tensor is not None)


def weights_of(kept: Any) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of all parameters, buffers and gradients."""
    for name, tensor in tensors_of(kept) if isinstance(kept, nn.Module) else ():
        yield name, stored(tensor)
        if tensor.is_leaf and tensor.grad is not None:
            yield f"{name}.grad", stored(tensor.grad)


def stored(tensor: Tensor) -> bytes:
    """Kind, shape and values of a tensor; NaN is as good as any other value."""
    if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
        return b"not made yet"
    with torch.no_grad():
        plain = plain_of(tensor)
        words = f"{type(tensor).__name__} {tensor.dtype} {tuple(plain.shape)} {tensor.layout} {tensor.requires_grad}"
        if plain.is_meta or (plain.numel() and not plain.untyped_storage().size()):
            return words.encode()
        return words.encode() + plain.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def plain_of(tensor: Tensor) -> Tensor:
    """An ordinary tensor of the same values."""
    tensor = vars(tensor).get("inner", tensor).detach()  # of a subclass that wraps another
    if hasattr(tensor, "get_mask"):
        tensor = tensor.to_tensor(0.0)
    if tensor.is_nested:
        tensor = tensor.values()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def hooks_on(kept: Any) -> Iterator[str]:
    """The hooks and attributes of a model's modules and parameters, or of an optimizer, in words."""
    for name, module in modules_of(kept) if isinstance(kept, nn.Module) else [("optimizer", kept)]:
        yield f"{name} is a {type(module).__name__} with {sorted(vars(module))}"
        for key, value in vars(module).items():
            if "hook" in key and isinstance(value, dict) and value:
                yield f"{name}.{key}: {len(value)}"
    for name, tensor in tensors_of(kept) if isinstance(kept, nn.Module) else ():
        for key in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            if getattr(tensor, key, None):
                yield f"{name}.{key}: {len(getattr(tensor, key))}"


def with_tensors(kept: Any) -> list[Any]:
    return [kept, *(tensor for _, tensor in tensors_of(kept))] if isinstance(kept, nn.Module) else [kept]


def global_hooks() -> list[str]:
    places = [nn.modules.module, sys.modules[torch.optim.Optimizer.__module__]]
    named = [(key, value) for place in places for key, value in vars(place).items() if key.startswith("_global_")]
    return [f"{key}: {id(hook)}" for key, value in named if isinstance(value, dict) for hook in value.values()]


def global_settings() -> dict[str, Any]:
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "modes": torch._C._len_torch_function_stack(),
        "threads": torch.autograd.is_multithreading_enabled(),
    }


def random_state() -> Any:
    """The states of the random numbers of torch, NumPy and Python."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().numpy().tobytes(), name, keys.tobytes(), rest, random.getstate()


def mark_graph(loss: Tensor) -> Token:
    """Put a token into the nodes of a graph."""
    token, waiting, seen = Token(), [loss.grad_fn], set()
    while waiting and len(seen) < 300:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            node.metadata["token"] = token
            waiting += [before for before, _ in node.next_functions]
    return token
