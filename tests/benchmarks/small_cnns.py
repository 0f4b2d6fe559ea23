"""Small convolutional networks as users write them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from small_networks import mlp
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm
from workloads import Block


def lenet(act: Callable[[], nn.Module] = nn.ReLU, pool: Callable[[int], nn.Module] = nn.MaxPool2d) -> nn.Module:
    """LeNet-5 on images of 3 x 32 x 32."""
    convs = (nn.Conv2d(3, 6, 5), act(), pool(2), nn.Conv2d(6, 16, 5), act(), pool(2))
    return nn.Sequential(*convs, nn.Flatten(), mlp(400, 120, 84, 10, act=act))


def vgg(norm: Callable[[int], nn.Module] | None, head: nn.Module, images: int = 3) -> nn.Module:
    """Four convolutions of 3 x 3, each with a pooling."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((images, 16), (16, 32), (32, 32), (32, 64)):
        normed = [norm(outputs)] if norm else []
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), *normed, nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), head)


def head() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10))


def fine_tuned() -> nn.Module:
    """A new head on convolutions that stay as they are."""
    network = vgg(nn.BatchNorm2d, nn.Linear(256, 10))
    return nn.Sequential(network[:-1].requires_grad_(False), network[-1])


def small_cnn() -> nn.Module:
    convs = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(400, 10))


def digits_cnn() -> nn.Module:
    convs = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def waves() -> nn.Module:
    """Convolutions over a time series of four channels."""
    convs = nn.Conv1d(4, 16, 5, padding=2), nn.ReLU(), nn.Conv1d(16, 32, 5, 2, 2), nn.ReLU()
    return nn.Sequential(*convs, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 3))


def residual() -> nn.Module:
    stem = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
    return nn.Sequential(
        *stem, Block(16, 16, 1), Block(16, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )


class UNet(nn.Module):
    """One level down and up, with the connection across."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.down(x).relu()
        deep = self.deep(functional.max_pool2d(wide, 2)).relu()
        return self.out(torch.cat([wide, self.up(deep).relu()], 1))


class Scaled(nn.Module):
    """A ConvNeXt block (Liu et al. 2022): its LayerScale starts at 1e-6, which nearly shuts the branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.feed = mlp(width, 4 * width, width, act=nn.GELU)
        self.scale = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.feed(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + (self.scale * branch).permute(0, 3, 1, 2)


def convnext(width: int = 16) -> nn.Module:
    end = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(width), nn.Linear(width, 10))
    return nn.Sequential(nn.Conv2d(3, width, 4, 4), *(Scaled(width) for _ in range(3)), *end)


def mobilenet() -> nn.Module:
    """Depthwise and pointwise convolutions with ReLU6 (Howard et al. 2017)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
    for inputs, outputs, stride in ((8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2)):
        layers += [nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs)]
        layers += [nn.ReLU6(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def critic() -> nn.Module:
    """A discriminator with spectral norms (Miyato et al. 2018)."""
    convs = [spectral_norm(nn.Conv2d(a, b, 4, 2, 1)) for a, b in ((3, 16), (16, 32))]
    end = (nn.Flatten(), spectral_norm(nn.Linear(512, 1)))
    return nn.Sequential(convs[0], nn.LeakyReLU(0.2), convs[1], nn.LeakyReLU(0.2), *end)
