"""The vanishing case in a loop of your own: no Trainer, no callback.

- Symptom: as in ``baseline.py``.
- The change: ``with gradwatch.watch(model)`` around the loop, ``watcher.step`` in the place of ``optimizer.step``, and
  one line that prints the layers and what was found.
- Measured: one finding on digits with seed 42, at step 0: the gradient vanishes, and the Sigmoids are the cause.
  ``python examples/plain_pytorch.py --fast``
- When not to use it: in a Trainer; give that ``callbacks=[gradwatch.GradientMonitor()]``.
"""

from __future__ import annotations

from itertools import islice, pairwise

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import gradwatch
from gradwatch.examples.data import ImageData
from gradwatch.examples.run import FAST_BATCHES, FAST_EPOCHS, load_data, make_parser
from gradwatch.reporting.terminal import print_summary


def make_network(in_features: int, num_classes: int = 10, width: int = 128, depth: int = 7) -> nn.Sequential:
    """The network of ``baseline.py``: Flatten, blocks of Linear and Sigmoid, and a Linear to the logits."""
    blocks = [(nn.Linear(*pair), nn.Sigmoid()) for pair in pairwise([in_features, *[width] * depth])]
    return nn.Sequential(nn.Flatten(), *(layer for block in blocks for layer in block), nn.Linear(width, num_classes))


def train(model: nn.Module, data: ImageData, epochs: int, batches: int | None = None) -> gradwatch.Watcher:
    """Train by plain SGD and watch it; the data module only serves batches here."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    loader = data.train_dataloader()
    with gradwatch.watch(model) as watcher:
        for _ in range(epochs):
            for images, labels in islice(loader, batches):
                optimizer.zero_grad()
                loss = cross_entropy(model(images), labels)
                loss.backward()
                watcher.step(optimizer, loss=loss)  # reads the gradients, then steps the optimizer
    return watcher


def main(args: list[str] | None = None) -> gradwatch.Watcher:
    """Run the example from the command line."""
    parser = make_parser("Train the baseline's network in plain PyTorch.")
    options = parser.parse_args(args)
    data = load_data(parser, options)
    torch.manual_seed(options.seed)
    model = make_network(data.in_features, data.num_classes)
    epochs, batches = options.max_epochs, None
    if options.fast:
        epochs, batches = min(epochs, FAST_EPOCHS), FAST_BATCHES
    watcher = train(model, data, epochs, batches)
    print_summary(watcher.history[-1], watcher.findings, watcher.diagnosis())
    return watcher


if __name__ == "__main__":
    main()
