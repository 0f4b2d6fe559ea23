"""Measure transforms beside ``torch.nn.utils.clip_grad_norm_``: medians of interleaved calls in one process.

Run: ``python tests/benchmarks/clip_cost.py [--rounds 300]``
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from jsonargparse import auto_cli
from torch import nn

from gradwatch.transforms import AdaptiveClip, ClipByGlobalNorm, ClipByNorm, PercentileClip, ZScoreClip


def mlp(layers: int = 64, width: int = 128) -> nn.Module:
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(layers)])


class Block(nn.Module):
    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels_in, channels, 3, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, bias=False), nn.BatchNorm2d(channels)
        if channels != channels_in:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, bias=False), nn.BatchNorm2d(channels))


def resnet18() -> nn.Module:
    """The parameters of a ResNet-18; it is never called."""
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    blocks = [Block(a, b) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(nn.Conv2d(3, 64, 7, bias=False), nn.BatchNorm2d(64), *blocks, nn.Linear(512, 1000))


def medians(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median microseconds of each, one call of each in turn."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            begin = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - begin) * 1e6)
    return {name: statistics.median(values[rounds // 10 :]) for name, values in times.items()}


def main(rounds: int = 300) -> None:
    """Measure and print the medians.

    Args:
        rounds: number of calls of each.
    """
    torch.set_num_threads(1)
    for title, model in {"MLP, 64 layers of 128": mlp(), "ResNet-18": resnet18()}.items():
        params = dict(model.named_parameters())
        for param in params.values():
            param.grad = torch.randn_like(param)
        old, new = PercentileClip(), PercentileClip()
        old.load_state_dict({"norms": torch.rand(1000, dtype=torch.float64), "steps": 1_000_000})
        transforms = [ClipByGlobalNorm(1.0), ClipByNorm(1.0), AdaptiveClip(), new, ZScoreClip()]
        baseline = "torch clip_grad_norm_(foreach=True)"
        contenders: dict[str, Callable[[], object]] = {
            baseline: functools.partial(nn.utils.clip_grad_norm_, list(params.values()), 1.0, foreach=True),
            **{repr(t): functools.partial(t, params) for t in transforms},
            "PercentileClip() after 10^6 steps": functools.partial(old, params),
        }
        found = medians(contenders, rounds)
        print(f"{title}: {len(params)} parameters, {sum(p.numel() for p in params.values()):,} entries")
        for name, microseconds in found.items():
            print(f"  {microseconds:9.0f} us  {microseconds / found[baseline]:6.3f}  {name}")


if __name__ == "__main__":
    auto_cli(main)
