"""Changes for the worse, each of which can be made to more than one program."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from ecosystem.task import Task
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Change = Callable[[Task], None]


def settings(**changed: Any) -> Change:
    """Change settings of the optimizer."""

    def change(task: Task) -> None:
        task.module.rule = partial(task.module.rule, **changed)

    return change


def hyper(**changed: Any) -> Change:
    """Change hyperparameters of a module of pytorch-forecasting."""

    def change(task: Task) -> None:
        task.module.hparams.update(changed)

    return change


def options(**changed: Any) -> Change:
    """Change options of the Trainer."""

    def change(task: Task) -> None:
        task.options = {**task.options, **changed}

    return change


def loss(other: Callable[[Callable[..., Tensor], Any, Any], Tensor]) -> Change:
    """Put another loss in the place of the program's, which it may call."""

    def change(task: Task) -> None:
        task.module.loss = partial(other, task.module.loss)

    return change


def batches(other: Callable[[Any], Any]) -> Change:
    """Change each batch before it is learned from."""

    def changed(own: Callable[..., Tensor], network: Any, batch: Any) -> Tensor:
        return own(network, other(batch))

    return loss(changed)


def scaled(factor: float, part: int = 0) -> Change:
    """Multiply the inputs or the targets."""
    return batches(lambda batch: [factor * one if at == part else one for at, one in enumerate(batch)])


def outliers(factor: float, every: int = 25) -> Change:
    """Multiply the inputs of a batch now and then."""
    seen = [0]

    def changed(batch: list[Tensor]) -> list[Tensor]:
        seen[0] += 1
        return [factor * batch[0], *batch[1:]] if seen[0] % every == 12 else batch

    return batches(changed)


def shuffled(batch: list[Tensor]) -> list[Tensor]:
    return [batch[0], batch[1][torch.randperm(len(batch[1]))]]


def weights(factor: float, *kinds: str) -> Change:
    """Multiply the weights, by default of all matrices and convolutions."""

    def change(task: Task) -> None:
        for part in task.network.modules():
            own = getattr(part, "weight", None)
            if (
                type(part).__name__ in (kinds or ("Linear", "Conv1D", "Conv1d", "Conv2d", "Embedding"))
                and own is not None
            ):
                own.data.mul_(factor)

    return change


def attributes(name: str, value: Any, *kinds: str) -> Change:
    """Set an attribute of all modules that have it."""

    def change(task: Task) -> None:
        for part in task.network.modules():
            if name in vars(part) and (not kinds or type(part).__name__ in kinds):
                setattr(part, name, value)

    return change


def silent(task: Task) -> None:
    """Raise the threshold of spiking neurons out of reach."""
    for part in task.network.modules():
        if "threshold" in dict(part.named_buffers(recurse=False)):
            part.threshold.fill_(1e4)


def without(*kinds: str) -> Change:
    """Leave modules out."""

    def change(task: Task) -> None:
        for parent in list(task.network.modules()):
            for name, child in list(parent.named_children()):
                if type(child).__name__ in kinds:
                    setattr(parent, name, nn.Identity())

    return change


def frozen(chosen: Callable[[str], bool]) -> Change:
    """Freeze parameters by name."""

    def change(task: Task) -> None:
        for name, own in task.network.named_parameters():
            if chosen(name):
                own.requires_grad_(False)

    return change


def only_given(chosen: Callable[[str], bool]) -> Change:
    """Give the optimizer some of the parameters, by name."""

    def change(task: Task) -> None:
        rule, network = task.module.rule, task.network
        task.module.rule = lambda _: rule([own for name, own in network.named_parameters() if chosen(name)])

    return change


def stale(task: Task) -> None:
    """Let the optimizer hold copies, as after wrapping or moving a model too late."""
    rule = task.module.rule

    def wrong(own: Iterable[nn.Parameter]) -> Optimizer:
        return rule([nn.Parameter(one.detach().clone()) for one in own])

    task.module.rule = wrong


def keeps_gradients(task: Task) -> None:
    """Never set a gradient to zero."""
    task.module.optimizer_zero_grad = lambda *_: None


def schedule(factor: Callable[[int], float]) -> Change:
    def change(task: Task) -> None:
        task.module.schedule = partial(LambdaLR, lr_lambda=factor)

    return change


def deeper(task: Task) -> None:
    """Put 20 more layers into a network of torch_geometric, between its two."""
    from torch_geometric.nn import GCNConv

    network = task.network
    network.convs = nn.ModuleList([network.convs[0], *(GCNConv(16, 16) for _ in range(20)), network.convs[1]])
    network.norms = nn.ModuleList(nn.Identity() for _ in network.convs)
    network.num_layers = len(network.convs)


def first_word_alone(own: Callable[..., Tensor], network: Any, batch: list[Tensor]) -> Tensor:
    """Let a classifier see the first word alone, as with a mask that is turned around."""
    seen = torch.zeros_like(batch[0])
    seen[:, 0] = 1
    return network(input_ids=batch[0], attention_mask=seen, labels=batch[1]).loss


def of_probabilities(own: Callable[..., Tensor], network: Any, batch: list[Tensor]) -> Tensor:
    """Take the cross-entropy, which expects logits, of probabilities."""
    from ecosystem.images import logits_of

    return functional.cross_entropy(logits_of(network(batch[0])).softmax(-1), batch[1])


def own_cross_entropy(own: Callable[..., Tensor], network: Any, batch: list[Tensor]) -> Tensor:
    """Take the logarithm of a softmax of large logits, unguarded."""
    from ecosystem.images import logits_of

    chances = (100 * logits_of(network(batch[0]))).softmax(-1)
    return -(functional.one_hot(batch[1], chances.shape[-1]) * chances.log()).sum(-1).mean()


def by_deviation(own: Callable[..., Tensor], network: Any, batch: list[Tensor]) -> Tensor:
    """Divide the series by its deviation, which is 0 for a series that is constant."""
    rows = batch[0].clone()
    rows[torch.rand(len(rows)) < 0.01] = 0.0
    return own(network, [rows / rows.std(1, keepdim=True)])


def broadcast(own: Callable[..., Tensor], network: Any, batch: list[Tensor]) -> Tensor:
    """Compare (N, 8, 1) with (N, 1, 8): each with each."""
    output = network(past_values=batch[0][:, :32]).prediction_outputs
    return functional.mse_loss(output, batch[0][:, 32:].transpose(1, 2))


def twice_squashed(own: Callable[..., Tensor], network: Any, batch: list[Tensor]) -> Tensor:
    """Give probabilities to a Dice loss that applies a sigmoid itself."""
    return own(lambda inputs: (10 * network(inputs)).sigmoid(), batch)


def root_of_distance(own: Callable[..., Tensor], network: Any, batch: list[Tensor]) -> Tensor:
    """Add the distance of each embedding from itself, whose root has no slope at 0."""
    made = network(batch[0])
    return own(network, batch) + (made[:, None] - made[None]).square().sum(-1).sqrt().mean()
