"""One object of every exported transform, for the tests that run over all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import nn

from gradwatch import transforms
from gradwatch.transforms import (
    AdaptiveClip,
    AddNoise,
    Centralize,
    Chain,
    ClipByGlobalNorm,
    ClipByNorm,
    ClipByValue,
    NormalizeByGlobalNorm,
    NormalizeByNorm,
    Only,
    PercentileClip,
    ScaleByTrustRatio,
    SkipNonFinite,
    Standardize,
    StepContext,
    Transform,
    When,
    ZeroNonFinite,
    ZScoreClip,
)

CONTEXT = StepContext(open_kinds=frozenset({"exploding"}))

FACTORIES: dict[str, Callable[[], Transform]] = {
    "ClipByValue": lambda: ClipByValue(0.1),
    "ClipByValue-interval": lambda: ClipByValue(lowest=-0.05, highest=0.1),
    "ClipByNorm": lambda: ClipByNorm(0.1),
    "ClipByGlobalNorm": lambda: ClipByGlobalNorm(0.1),
    "ClipByGlobalNorm-1": lambda: ClipByGlobalNorm(0.1, p=1),
    "ClipByGlobalNorm-inf": lambda: ClipByGlobalNorm(0.1, p=float("inf")),
    "AdaptiveClip": lambda: AdaptiveClip(0.01),
    "PercentileClip": lambda: PercentileClip(10, history=4),
    "ZScoreClip": lambda: ZScoreClip(warmup=2),
    "NormalizeByGlobalNorm": lambda: NormalizeByGlobalNorm(),
    "NormalizeByNorm": lambda: NormalizeByNorm(),
    "NormalizeByNorm-layer": lambda: NormalizeByNorm(by_layer=True),
    "ScaleByTrustRatio": lambda: ScaleByTrustRatio(0.1),
    "Standardize": lambda: Standardize(),
    "Centralize": lambda: Centralize(),
    "SkipNonFinite": lambda: SkipNonFinite(),
    "ZeroNonFinite": lambda: ZeroNonFinite(),
    "AddNoise": lambda: AddNoise(),
    "Chain": lambda: Chain([Centralize(), PercentileClip(50, history=4), AddNoise()]),
    "When": lambda: When("exploding", ZScoreClip(warmup=2)),
    "Only": lambda: Only("*weight", AddNoise()),
}
EXPORTED = {
    name
    for name in transforms.__all__
    if inspect.isclass(getattr(transforms, name))
    and issubclass(getattr(transforms, name), Transform)
    and not inspect.isabstract(getattr(transforms, name))
}
REFUSES_SPARSE = {"Standardize", "AddNoise", "Chain", "Only"}
STATEFUL = {"PercentileClip", "ZScoreClip", "SkipNonFinite", "AddNoise", "Chain", "When", "Only"}


def network() -> nn.Module:
    """Linear, convolution and embedding parameters, a scalar, an empty one, and one that never gets a gradient."""
    torch.manual_seed(0)
    model = nn.Module()
    model.linear = nn.Linear(5, 3)
    model.conv = nn.Conv2d(2, 4, 3)
    model.embedding = nn.Embedding(6, 2)
    model.scale = nn.Parameter(torch.tensor(0.5))
    model.empty = nn.Parameter(torch.zeros(0, 3))
    model.unused = nn.Parameter(torch.ones(2))
    return model


def set_gradients(model: nn.Module, step: int = 0, scale: float = 1.0) -> dict[str, nn.Parameter]:
    """Seeded gradients for all but ``unused``; returns the named parameters."""
    generator = torch.Generator().manual_seed(step)
    for name, param in model.named_parameters():
        if name != "unused":
            noise = torch.randn(param.shape, generator=generator, dtype=torch.float32) * scale
            param.grad = noise.to(param.dtype).view_as(param)
    return dict(model.named_parameters())
