"""Activation checkpointing, and other ways to keep what the backward pass needs."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint import checkpoint_wrapper as wrapper
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)
from zoo import WIDTH, Expect, has_columns, loss_of, mean_square, module

aten = torch.ops.aten
INNER = has_columns("grad_norm", "grad_output_norm", "output_rms", layer="blocks.1.0")


def block() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, WIDTH), nn.Tanh())


class Blocks(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(block() for _ in range(3)), nn.Linear(WIDTH, 2)
        self.options, self.embed = options, nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for each in self.blocks:
            x = checkpoint(each, x, **self.options)
        return self.head(x)


def never(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.PREFER_RECOMPUTE


def products(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Saves the results of matrix products; anything else that it meets is an error."""
    known = {aten.addmm.default, aten.t.default, aten.relu.default, aten.tanh.default, aten.detach.default}
    dropout = {aten.native_dropout.default, aten.bernoulli_.float, aten.div_.Scalar, aten.mul.Tensor}
    if op not in known | dropout and "empty" not in str(op):
        raise RuntimeError(f"the policy was asked about {op}")
    return CheckpointPolicy.MUST_SAVE if op is aten.addmm.default else CheckpointPolicy.PREFER_RECOMPUTE


def checkpointed(name: str, expect: Expect | None = INNER, **options: Any) -> None:
    make = partial(Blocks, **options)
    make.__name__ = f"checkpointed_{name}"  # type: ignore[attr-defined]
    module(expect=expect)(make)


checkpointed("reentrant", use_reentrant=True)
checkpointed("not_reentrant", use_reentrant=False)
checkpointed("without_the_random_state", use_reentrant=False, preserve_rng_state=False)
checkpointed(
    "with_a_policy_that_saves_products",
    use_reentrant=False,
    context_fn=partial(create_selective_checkpoint_contexts, products),
)
checkpointed(
    "with_a_policy_that_saves_nothing",
    use_reentrant=False,
    context_fn=partial(create_selective_checkpoint_contexts, never),
)
checkpointed(
    "with_a_list_of_operations",
    use_reentrant=False,
    context_fn=partial(create_selective_checkpoint_contexts, [aten.addmm.default, aten.tanh.default]),
)
checkpointed(
    "with_a_list_that_has_the_norm",
    use_reentrant=False,
    context_fn=partial(create_selective_checkpoint_contexts, [aten.linalg_vector_norm.default, aten.mul.Tensor]),
)


@module(expect=INNER)
class CheckpointedWithoutAnEarlyStop(Blocks):
    def __init__(self) -> None:
        super().__init__(use_reentrant=False)

    def forward(self, x: Tensor) -> Tensor:
        with set_checkpoint_early_stop(False):
            return super().forward(x)


class Nested(Blocks):
    def forward(self, x: Tensor) -> Tensor:
        def inner(x: Tensor) -> Tensor:
            return checkpoint(self.blocks[2], checkpoint(self.blocks[1], x, **self.options), **self.options)

        return self.head(checkpoint(lambda x: inner(self.blocks[0](x)), self.embed(x), **self.options))


@module(expect=INNER)
def checkpoints_inside_of_checkpoints() -> nn.Module:
    return Nested(use_reentrant=False)


@module()
def reentrant_checkpoints_inside_of_checkpoints() -> nn.Module:
    return Nested(use_reentrant=True)


@module(expect=INNER)
class CheckpointedInSegments(Blocks):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint_sequential(list(self.blocks), 2, x, use_reentrant=False))


@module()
class CheckpointedInReentrantSegments(Blocks):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint_sequential(list(self.blocks), 2, self.embed(x), use_reentrant=True))


@module()
class CheckpointedWhole(Blocks):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False) if not torch.is_grad_enabled() else self.whole(x)

    def whole(self, x: Tensor) -> Tensor:
        return checkpoint(lambda x: self.head(self.blocks[1](x)), x, use_reentrant=False)


@module()
class CheckpointOfALayerCalledTwice(Blocks):
    def forward(self, x: Tensor) -> Tensor:
        shared = self.blocks[0]
        return self.head(checkpoint(shared, checkpoint(shared, x, use_reentrant=False), use_reentrant=False))


@module()
class CheckpointOfACellOverTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros_like(x)
        for _ in range(4):
            state = checkpoint(self.cell, x, state, use_reentrant=False)
        return self.head(state)


@module()
class CheckpointOfAnLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = checkpoint(self.lstm, x.view(2, 4, WIDTH), use_reentrant=False)
        return self.head(out[:, -1])


@module()
class CheckpointOfANormalizationInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


@module()
def wrapped_by_the_checkpoint_wrapper() -> nn.Module:
    return nn.Sequential(wrapper.checkpoint_wrapper(block()), wrapper.checkpoint_wrapper(block()), nn.Linear(WIDTH, 2))


@module()
def wrapped_by_the_offload_wrapper() -> nn.Module:
    return nn.Sequential(wrapper.offload_wrapper(block()), nn.Linear(WIDTH, 2))


@loss_of(block)
def saved_on_the_cpu(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return mean_square(model, batch)


@loss_of(block)
def saved_by_number(model: nn.Module, batch: Tensor) -> Tensor:
    """Each tensor that is saved for the backward pass is packed; how many there were changes the loss."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> int:
        saved.append(tensor.detach())
        return len(saved) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, saved.__getitem__):
        loss = mean_square(model, batch)
        return loss * (1 + len(saved))


@loss_of(block)
def saved_tensors_may_be_changed(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        out = model(batch)
        loss = out.square().mean()
        out.detach().mul_(2)
        loss.backward(retain_graph=True)
        model.zero_grad()
    return mean_square(model, batch)


@loss_of(block)
def saved_without_hooks(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.autograd.graph.disable_saved_tensors_hooks("no hooks here"):
        return mean_square(model, batch)
