"""Images: classification, segmentation, boxes and reconstruction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from sealed.base import Program, Setup, batches, digits, explained, hits, outputs, rng
from torch import Tensor, nn


class PixelNet(LightningModule):
    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.lr = lr
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(32 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def raw_pixels(faulty: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    scale = 255.0 if faulty else 1.0
    return Setup(PixelNet(), batches(x * scale, y, seed=seed), hits(a * scale, b), epochs=4)


class BatchwiseSoftmax(PixelNet):
    def __init__(self, dim: int) -> None:
        super().__init__(lr=0.02)
        self.out = nn.LogSoftmax(dim=dim)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, y = batch
        return F.nll_loss(self.out(self(x)), y)


def softmax_dim(faulty: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    return Setup(BatchwiseSoftmax(0 if faulty else 1), batches(x, y, seed=seed), hits(a, b), epochs=4)


class Mixup(PixelNet):
    def __init__(self, faulty: bool) -> None:
        super().__init__(lr=0.05)
        self.faulty = faulty

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, y = batch
        lam = torch.distributions.Beta(1.0, 1.0).sample().item()
        mate = torch.randperm(len(x))
        mixed = lam * x[mate] + (1 - lam) * x if self.faulty else lam * x + (1 - lam) * x[mate]
        if self.faulty:
            mate = torch.randperm(len(x))
        out = self(mixed)
        return lam * F.cross_entropy(out, y) + (1 - lam) * F.cross_entropy(out, y[mate])


def mixup(faulty: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    return Setup(Mixup(faulty), batches(x, y, seed=seed), hits(a, b), epochs=5)


class Segmenter(LightningModule):
    """Finds blobs; a third of the images have none."""

    def __init__(self, smooth: float) -> None:
        super().__init__()
        self.smooth = smooth
        self.net = nn.Sequential(nn.Conv2d(1, 12, 5, padding=2), nn.ReLU(), nn.Conv2d(12, 1, 5, padding=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def dice(self, logits: Tensor, mask: Tensor) -> Tensor:
        hard = (logits > 0).float()
        prob = torch.sigmoid(logits) * hard
        over = 2 * (prob * mask).sum((1, 2, 3)) + self.smooth
        return 1 - over / (prob.sum((1, 2, 3)) + mask.sum((1, 2, 3)) + self.smooth)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, mask = batch
        logits = self(x)
        return F.binary_cross_entropy_with_logits(logits, mask) + self.dice(logits, mask).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def blobs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    g = rng(seed)
    rows = torch.arange(16.0)
    centre = torch.randint(3, 13, (count, 2), generator=g).float()
    far = (rows[None, :, None] - centre[:, :1, None]) ** 2 + (rows[None, None] - centre[:, 1:, None]) ** 2
    mask = (far < 7).float() * (torch.rand(count, 1, 1, generator=g) > 0.33)
    return (mask + 0.4 * torch.randn(count, 16, 16, generator=g))[:, None], mask[:, None]


def iou(x: Tensor, mask: Tensor):
    def score(module: LightningModule) -> float:
        out = outputs(module, x)
        if not torch.isfinite(out).all():
            return float("nan")
        hard = out > 0
        return ((hard & (mask > 0)).sum() / (hard | (mask > 0)).sum()).item()

    return score


def dice_empty(faulty: bool, seed: int) -> Setup:
    return Setup(
        Segmenter(0.0 if faulty else 1.0), batches(*blobs(800, 5), seed=seed, size=16), iou(*blobs(200, 6)), epochs=3
    )


class BoxHead(LightningModule):
    """Regresses a box's place and log size, as detectors do."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 64), nn.ReLU()
        )
        self.delta = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.delta(self.net(x))

    def encode(self, box: Tensor) -> Tensor:
        size = box[:, 2:] - box[:, :2]
        if not self.faulty:
            size = size.clamp(min=1.0)
        return torch.cat([(box[:, :2] + box[:, 2:]) / 16 - 1, torch.log(size / 8)], 1)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, box = batch
        return F.mse_loss(self(x), self.encode(box))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def boxes(count: int, seed: int, thin: bool) -> tuple[Tensor, Tensor]:
    g = rng(seed)
    low = torch.randint(0, 9, (count, 2), generator=g).float()
    size = torch.randint(2, 7, (count, 2), generator=g).float()
    if thin:
        size[::250, 0] = 0.0  # a slip of an annotator: a box without width
    box = torch.cat([low, low + size], 1)
    at = torch.arange(16.0)
    inside = ((at >= box[:, :1]) & (at < box[:, 2:3]))[:, None, :] & ((at >= box[:, 1:2]) & (at < box[:, 3:]))[
        ..., None
    ]
    return (inside.float() + 0.1 * torch.randn(count, 16, 16, generator=g))[:, None], box


def box_log(faulty: bool, seed: int) -> Setup:
    module = BoxHead(faulty)
    x, box = boxes(300, 8, False)
    return Setup(module, batches(*boxes(1500, 7, True), seed=seed), explained(x, BoxHead(False).encode(box)), epochs=4)


class SlowNorm(LightningModule):
    def __init__(self, momentum: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 1
        for wide in (16, 16, 32):
            layers += [nn.Conv2d(width, wide, 3, padding=1), nn.BatchNorm2d(wide, momentum=momentum), nn.ReLU()]
            width = wide
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def keras_momentum(faulty: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    x, a = x * 16, a * 16
    return Setup(SlowNorm(0.0005 if faulty else 0.1), batches(x, y, seed=seed), hits(a, b), epochs=4)


class Reconstructor(LightningModule):
    """Compresses standardized images."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 24))
        last: list[nn.Module] = [nn.ReLU()] if faulty else []
        self.decoder = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64), *last)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[0].flatten(1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def relu_output(faulty: bool, seed: int) -> Setup:
    x, _, a, _ = digits()
    mean, std = x.mean(0), x.std(0) + 0.05
    x, a = (x - mean) / std, (a - mean) / std
    return Setup(Reconstructor(faulty), batches(x, seed=seed), explained(a, a.flatten(1)), epochs=6)


class Bottleneck(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(wide)
        self.two = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.last = nn.BatchNorm2d(wide)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.last(self.two(F.relu(self.norm(self.one(x))))))


class ZeroResNet(LightningModule):
    """Starts each residual branch at zero, as large ResNets do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Bottleneck(16), nn.MaxPool2d(2), Bottleneck(16), Bottleneck(16))
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).flatten(1))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1], label_smoothing=0.1)

    def configure_optimizers(self) -> dict:
        opt = torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 172)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


def zero_resnet(_: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    return Setup(ZeroResNet(), batches(x, y, seed=seed), hits(a, b), epochs=4)


class LeNetTanh(LightningModule):
    """Old style: tanh, average pooling, sigmoid in the penultimate layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 3, padding=1), nn.Tanh()
        )
        self.tail = nn.Sequential(nn.Flatten(), nn.Linear(256, 84), nn.Sigmoid(), nn.Linear(84, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.net(x * 2 - 1))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1], reduction="sum")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.004, momentum=0.9)


def lenet(_: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    return Setup(LeNetTanh(), batches(x, y, seed=seed), hits(a, b), epochs=6)


class RareFocal(Segmenter):
    """Finds rare pixels with the focal loss and a bias at their prior."""

    def __init__(self) -> None:
        super().__init__(1.0)
        nn.init.constant_(self.net[2].bias, -4.0)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        logits, mask = self(batch[0]), batch[1]
        each = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
        return ((1 - torch.exp(-each)) ** 2 * each).sum() / mask.sum().clamp(min=1)


def focal(_: bool, seed: int) -> Setup:
    return Setup(RareFocal(), batches(*blobs(800, 5), seed=seed, size=16), iou(*blobs(200, 6)), epochs=4)


def noisy_labels(_: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    g = rng(3)
    y = torch.where(torch.rand(len(y), generator=g) < 0.3, torch.randint(0, 10, (len(y),), generator=g), y)
    return Setup(PixelNet(0.02), batches(x, y, seed=seed), hits(a, b), epochs=4)


PROGRAMS = (
    Program("raw-pixels", "vision", "practice", raw_pixels,
            "Pixels of 0..255 go into a net and rate made for 0..1, so the first steps of SGD throw the weights away.",
            "Scales the pixels to 0..1."),
    Program("softmax-over-batch", "vision", "https://runebook.dev/en/docs/pytorch/generated/torch.nn.softmax",
            softmax_dim, "LogSoftmax runs over the batch (dim=0) and not over the classes.", "Uses dim=1."),
    Program("mixup-two-permutations", "vision", "", mixup,
            "Mixup mixes the images with one permutation and weight and the labels with another.",
            "Mixes images and labels with the same permutation and weight."),
    Program("dice-empty-mask", "vision", "practice of Dice losses without smoothing", dice_empty,
            "Dice divides 0 by 0 for images without a mask where nothing is predicted.", "Adds a smoothing term.",
            "div in Segmenter.dice"),
    Program("box-without-width", "vision", "practice of detectors with degenerate boxes", box_log,
            "The logarithm of the size of a box without width is -inf.", "Clamps the size to a pixel.",
            "log in BoxHead.encode"),
    Program("batchnorm-keras-momentum", "vision", "Keras and torch define momentum the other way round",
            keras_momentum, "BatchNorm's momentum is so small that the running statistics stay near their start.",
            "Uses momentum 0.1."),
    Program("relu-on-standardized-output", "vision", "", relu_output,
            "A ReLU ends the decoder while half the targets are negative.", "Ends with a linear layer."),
    Program("zero-init-resnet", "vision", "Goyal et al. 2017", zero_resnet),
    Program("lenet-tanh-sum", "vision", "", lenet),
    Program("focal-rare-pixels", "vision", "Lin et al. 2017", focal),
    Program("noisy-labels", "vision", "", noisy_labels),
)  # fmt: skip
