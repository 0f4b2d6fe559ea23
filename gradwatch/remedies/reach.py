"""What a pass of a copy reaches, under a mode that looks on or changes what torch's functions do."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch
from torch import Tensor

from gradwatch.remedies.randomness import kept_randomness
from gradwatch.remedies.setup import Setup, copy_of
from gradwatch.remedies.tracing import on_device_of, run_forward, run_once


def reached(setup: Setup, mode: AbstractContextManager[object]) -> set[str]:
    """Run a training step, or where it needs a Trainer the forward pass, of a copy on the set-up's batch.

    Returns:
        The parameters that its result depends on; none where it fails.

    Example:
        >>> from contextlib import nullcontext
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> reached(Setup(layer, batch=torch.ones(1, 2)), nullcontext())
        {'weight'}
    """
    for run in (run_once, run_forward):
        module = copy_of(setup.module)
        with suppress(Exception), kept_randomness(), torch.enable_grad(), warnings.catch_warnings(), mode:
            warnings.simplefilter("ignore")
            ends = [end for end in _tensors(run(module, on_device_of(module, setup.batch))) if end.requires_grad]
            named = {name: param for name, param in module.named_parameters() if param.requires_grad}
            grads = torch.autograd.grad([end.sum() for end in ends], [*named.values()], allow_unused=True)
            return {name for name, grad in zip(named, grads, strict=True) if grad is not None}
    return set()


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (Mapping, tuple, list)):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)
