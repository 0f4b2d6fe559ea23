"""Diffusion, autoencoders, flows and adversaries."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from ecosystem.data import digits, explained, loader, moons
from ecosystem.task import Learner, Program, Rule, Task
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR


def diffusion(kind: str, rate: float = 1e-3, steps: int = 120, **config: Any) -> Task:
    """Predict the noise on digits, as the tutorial of diffusers does."""
    import diffusers

    network = getattr(diffusers, kind)(sample_size=8, in_channels=1, out_channels=1, **config)
    noising, data = diffusers.DDPMScheduler(num_train_timesteps=1000), digits()
    labelled = kind.startswith("DiT")

    def loss(network: Any, batch: list[Tensor]) -> Tensor:
        noise, at = torch.randn_like(batch[0]), torch.randint(0, 1000, (len(batch[0]),))
        labels = {"class_labels": batch[1]} if labelled else {}
        output = network(noising.add_noise(batch[0], noise, at), at, **labels).sample
        return functional.mse_loss(output, noise)

    def score() -> float:
        return float(loss(network, [data.test_inputs, data.test_targets]))

    warm = partial(LambdaLR, lr_lambda=lambda at: min(1.0, (at + 1) / 30))
    learner = Learner(network, loss, partial(AdamW, lr=rate), warm)
    return Task(learner, loader(data.inputs, data.targets), score, steps, {"gradient_clip_val": 1.0})


def autoencoder(steps: int = 100) -> Task:
    """Rebuild digits with the variational autoencoder of diffusers."""
    from diffusers import AutoencoderKL

    network = AutoencoderKL(
        in_channels=1, out_channels=1, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 16), norm_num_groups=4,
        mid_block_add_attention=False,
    )  # fmt: skip
    data = digits(16)

    def loss(network: Any, batch: list[Tensor]) -> Tensor:
        latent = network.encode(batch[0]).latent_dist
        rebuilt = network.decode(latent.sample()).sample
        return functional.mse_loss(rebuilt, batch[0]) + 1e-6 * latent.kl().mean()

    def score() -> float:
        inputs = data.test_inputs[:128]
        return explained(network.decode(network.encode(inputs).latent_dist.mode()).sample, inputs)

    return Task(Learner(network, loss, partial(AdamW, lr=1e-3)), loader(data.inputs, batch=16), score, steps)


class Quantized(nn.Module):
    """The autoencoder of the example of vector-quantize-pytorch."""

    def __init__(self) -> None:
        from vector_quantize_pytorch import VectorQuantize

        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, 1, 1), nn.MaxPool2d(2), nn.GELU(), nn.Conv2d(16, 32, 3, 1, 1), nn.MaxPool2d(2)
        )
        self.quantize = VectorQuantize(32, 64, accept_image_fmap=True)
        self.decoder = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.Conv2d(32, 16, 3, 1, 1), nn.GELU(), nn.Upsample(scale_factor=2),
            nn.Conv2d(16, 1, 3, 1, 1),
        )  # fmt: skip

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        quantized, _, commitment = self.quantize(self.encoder(inputs))
        return self.decoder(quantized).clamp(-1, 1), commitment.sum()


def quantized() -> Task:
    network, data = Quantized(), digits(16)

    def loss(network: Any, batch: list[Tensor]) -> Tensor:
        rebuilt, commitment = network(batch[0])
        return (rebuilt - batch[0]).abs().mean() + 10 * commitment

    def score() -> float:
        return explained(network(data.test_inputs)[0], data.test_inputs)

    return Task(Learner(network, loss, partial(AdamW, lr=3e-4)), loader(data.inputs, batch=64), score, 300)


ADAM = partial(Adam, lr=1e-3)


def flow(make: str, rule: Rule = ADAM, steps: int = 300, **config: Any) -> Task:
    """Learn the density of two moons with a flow of zuko; the score is the negative log likelihood."""
    import zuko

    network, data = getattr(zuko.flows, make)(features=2, **config), moons()

    def loss(network: Any, batch: list[Tensor]) -> Tensor:
        return -network().log_prob(batch[0]).mean()

    def score() -> float:
        return float(loss(network, [data.test_inputs]))

    return Task(Learner(network, loss, rule), loader(data.inputs, batch=64), score, steps)


def real_nvp() -> Task:
    """Learn the density of two moons with the Real NVP of normflows's example."""
    import normflows as nf

    layers: list[nn.Module] = []
    for _ in range(8):
        layers += [nf.flows.AffineCouplingBlock(nf.nets.MLP([1, 64, 64, 2], init_zeros=True)), nf.flows.Permute(2)]
    network, data = nf.NormalizingFlow(nf.distributions.base.DiagGaussian(2), layers), moons()

    def loss(network: Any, batch: list[Tensor]) -> Tensor:
        return network.forward_kld(batch[0])

    def score() -> float:
        return float(loss(network, [data.test_inputs]))

    rule = partial(Adam, lr=5e-4, weight_decay=1e-5)
    return Task(Learner(network, loss, rule), loader(data.inputs, batch=128), score, 250)


class Adversaries(LightningModule):
    """The GAN of Lightning's tutorial, for two moons."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(8, 64), nn.BatchNorm1d(64, 0.8), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.BatchNorm1d(64, 0.8),
            nn.LeakyReLU(0.2), nn.Linear(64, 2),
        )  # fmt: skip
        self.discriminator = nn.Sequential(
            nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        one, two = self.optimizers()
        real = batch[0]
        judge = functional.binary_cross_entropy_with_logits
        for optimizer, is_generator in ((one, True), (two, False)):
            self.toggle_optimizer(optimizer)
            made = self.generator(torch.randn(len(real), 8))
            yes, no = torch.ones(len(real), 1), torch.zeros(len(real), 1)
            if is_generator:
                loss = judge(self.discriminator(made), yes)
            else:
                loss = (judge(self.discriminator(real), yes) + judge(self.discriminator(made.detach()), no)) / 2
            self.manual_backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return [Adam(part.parameters(), lr=1e-3, betas=(0.5, 0.999)) for part in (self.generator, self.discriminator)]


def adversaries() -> Task:
    """The score is the energy distance of the made points from the real ones."""
    module, data = Adversaries(), moons()

    def score() -> float:
        real, made = data.test_inputs, module.generator(torch.randn(400, 8))
        return float(
            2 * torch.cdist(real, made).mean() - torch.cdist(real, real).mean() - torch.cdist(made, made).mean()
        )

    return Task(module, loader(data.inputs, batch=128), score, 800)


unet = {
    "layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
dit = {"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 8, "num_embeds_ada_norm": 1000, "patch_size": 2}
density = partial(Program, "zuko", "the README's example on two moons")

GENERATIVE: dict[str, Program] = {
    "diffusion UNet": Program(
        "diffusers", "the tutorial on training a diffusion model", partial(diffusion, "UNet2DModel", **unet),
        "loss", 0.4,
    ),
    "DiT": Program(
        "diffusers", "the same tutorial, with the transformer of diffusers",
        partial(diffusion, "DiTTransformer2DModel", **dit), "loss", 0.7,
    ),
    "AutoencoderKL": Program("diffusers", "the example autoencoderkl of diffusers", autoencoder, "R2", 0.6),
    "VQ-VAE": Program("vector_quantize_pytorch", "examples/autoencoder.py", quantized, "R2", 0.3),
    "neural spline flow": density(partial(flow, "NSF", transforms=3, hidden_features=(64, 64)), "loss", 1.4),
    "masked autoregressive flow": density(partial(flow, "MAF", transforms=3, hidden_features=(64, 64)), "loss", 1.6),
    "continuous flow": density(partial(flow, "CNF", steps=60, hidden_features=(32, 32)), "loss", 2.0),
    "Real NVP": Program("normflows", "examples/real_nvp.ipynb", real_nvp, "loss", 1.5),
    "GAN": Program("lightning", "the tutorial basic-gan", adversaries, "distance", 0.15),
}  # fmt: skip
