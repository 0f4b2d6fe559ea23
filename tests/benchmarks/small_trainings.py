"""Healthy small networks for the short checks, each with its data and its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import small_cnns as cnns
import small_data as data
import small_networks as nets
import small_structures as parts
import torch
from detection.networks import Characters, Recurrent
from small_data import labels, learned, next_word, noise, numbers, words
from small_networks import Gpt, mlp
from torch import Tensor, nn
from torch.nn import functional
from workloads import resnet18

mse, yes_no = functional.mse_loss, functional.binary_cross_entropy_with_logits
probability, huber = functional.binary_cross_entropy, functional.smooth_l1_loss
cells = partial(Recurrent, 8, 2, width=32)
IMAGE, SMALL, CHARACTERS = noise(3, 32, 32, n=96), noise(3, 16, 16), words(50)


@dataclass(frozen=True)
class Training:
    """The arguments of a smoke test."""

    network: Callable[[], nn.Module]
    data: Callable[[], data.Samples]
    loss: Callable[[Any, Any], Tensor] = functional.cross_entropy


TRAININGS: dict[str, Training] = {
    "two layers": Training(partial(mlp, 4, 8, 1), numbers(4), mse),
    "two layers, a sum": Training(
        partial(mlp, 4, 8, 1), learned(lambda: torch.randn(data.SAMPLES, 4), lambda x: x.sum(1, keepdim=True)), mse
    ),
    "two layers, zero targets": Training(partial(mlp, 4, 8, 1), numbers(4, 0.0), mse),
    "one linear": Training(partial(nn.Linear, 4, 1), numbers(4), mse),
    "BoringModel": Training(partial(nn.Linear, 32, 2), lambda: (torch.randn(64, 32), torch.zeros(64, 2)), mse),
    "MLP 2": Training(partial(mlp, 20, 64, 10), noise(20)),
    "MLP 3": Training(partial(mlp, 20, 128, 64, 5), noise(20, classes=5)),
    "MLP 6": Training(partial(mlp, 20, 64, 64, 64, 64, 64, 5), noise(20, classes=5)),
    "MLP, one sample": Training(partial(mlp, 16, 64, 10), noise(16, n=1)),
    "MNIST MLP": Training(lambda: nn.Sequential(nn.Flatten(), mlp(784, 128, 10)), data.bright(1, 28, 28)),
    "MNIST MLP 512": Training(lambda: nn.Sequential(nn.Flatten(), mlp(784, 512, 512, 10)), data.bright(1, 28, 28)),
    "MLP, digits": Training(partial(mlp, 64, 64, 32, 10), data.digits(64)),
    "Tanh": Training(partial(mlp, 10, 32, 32, 32, 2, act=nn.Tanh), noise(10, classes=2)),
    "Sigmoid": Training(partial(mlp, 10, 32, 32, 2, act=nn.Sigmoid), noise(10, classes=2)),
    "SELU": Training(partial(mlp, 10, 32, 32, 32, 2, act=nn.SELU), noise(10, classes=2)),
    "SiLU": Training(partial(mlp, 10, 128, 128, 2, act=nn.SiLU), noise(10, classes=2)),
    "GELU": Training(partial(mlp, 16, 64, 64, 10, act=nn.GELU), noise(16)),
    "PReLU": Training(partial(mlp, 16, 64, 64, 10, act=nn.PReLU), noise(16)),
    "ELU": Training(partial(mlp, 16, 64, 64, 10, act=nn.ELU), noise(16)),
    "Mish": Training(partial(mlp, 16, 64, 64, 10, act=nn.Mish), noise(16)),
    "Hardswish": Training(partial(mlp, 16, 64, 64, 10, act=nn.Hardswish), noise(16)),
    "LeakyReLU": Training(partial(mlp, 16, 64, 64, 10, act=nn.LeakyReLU), noise(16)),
    "BatchNorm": Training(partial(nets.normed, nn.BatchNorm1d), noise(16)),
    "LayerNorm": Training(partial(nets.normed, nn.LayerNorm), noise(16)),
    "Dropout": Training(
        lambda: nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10)), noise(16)
    ),
    "weight norm": Training(nets.weight_normed, noise(20, classes=5)),
    "regression": Training(partial(mlp, 10, 64, 64, 1), numbers(10), mse),
    "regression, learnable": Training(
        partial(mlp, 10, 64, 64, 1),
        learned(lambda: torch.randn(data.SAMPLES, 10), lambda x: x[:, :1].sin() + x[:, 1:2] * x[:, 2:3]),
        mse,
    ),
    "Huber": Training(partial(mlp, 10, 64, 64, 1), numbers(10, 2.0, 3.0), huber),
    "quantiles": Training(partial(mlp, 10, 64, 64, 3), numbers(10), data.quantiles),
    "PINN": Training(parts.Pinn, learned(lambda: 2 * torch.rand(data.SAMPLES, 1), lambda x: (-x).exp()), parts.decay),
    "yes or no": Training(partial(mlp, 10, 32, 1), labels(10), yes_no),
    "yes or no, Sigmoid": Training(partial(mlp, 10, 32, 16, 1, last=nn.Sigmoid), labels(10), probability),
    "2 % yes": Training(partial(mlp, 10, 64, 32, 1), labels(10, share=0.02), yes_no),
    "2 % yes, weighted": Training(
        partial(mlp, 10, 64, 32, 1), labels(10, share=0.02), partial(yes_no, pos_weight=torch.tensor(49.0))
    ),
    "many labels": Training(partial(mlp, 30, 64, 12), labels(30, 12), yes_no),
    "distillation": Training(partial(mlp, 20, 64, 10), data.lessons, data.distilled),
    "two heads": Training(parts.TwoHeads, data.both, parts.two_tasks),
    "contrastive": Training(partial(parts.Siamese, False), data.pairs, parts.contrastive),
    "InfoNCE": Training(partial(parts.Siamese, True), partial(data.pairs, 0.5), parts.info_nce),
    "tabular": Training(parts.Tabular, data.table, yes_no),
    "autoencoder of 4": Training(partial(mlp, 64, 16, 4, 16, 64), data.rebuilt(64, torch.randn), mse),
    "autoencoder of 4, Sigmoid": Training(
        partial(mlp, 64, 16, 4, 16, 64, last=nn.Sigmoid), data.rebuilt(64), probability
    ),
    "Lightning's autoencoder": Training(
        lambda: nn.Sequential(mlp(784, 64, 3), mlp(3, 64, 784)), data.rebuilt(784), mse
    ),
    "autoencoder, digits": Training(partial(mlp, 64, 32, 8, 32, 64), data.digit_images, mse),
    "VAE": Training(parts.Vae, data.rebuilt(64), parts.vae_loss),
    "VAE, digits": Training(parts.Vae, data.digit_images, parts.vae_loss),
    "small CNN": Training(cnns.small_cnn, noise(1, 28, 28, n=8)),
    "small CNN, bright": Training(cnns.small_cnn, data.bright(1, 28, 28)),
    "CNN, digits": Training(cnns.digits_cnn, data.digits(1, 8, 8)),
    "LeNet": Training(cnns.lenet, IMAGE),
    "LeNet, Tanh": Training(partial(cnns.lenet, nn.Tanh, nn.AvgPool2d), IMAGE),
    "VGG": Training(lambda: cnns.vgg(None, cnns.head()), IMAGE),
    "VGG, BatchNorm": Training(lambda: cnns.vgg(nn.BatchNorm2d, nn.Linear(256, 10)), IMAGE),
    "VGG, GroupNorm": Training(lambda: cnns.vgg(partial(nn.GroupNorm, 4), nn.Linear(256, 10)), IMAGE),
    "fine-tuned head": Training(cnns.fine_tuned, IMAGE),
    "residual": Training(cnns.residual, SMALL),
    "ResNet-18": Training(partial(resnet18, 16), noise(3, 16, 16, n=96)),
    "MobileNet": Training(cnns.mobilenet, SMALL),
    "ConvNeXt": Training(cnns.convnext, SMALL),
    "ViT": Training(nets.Vit, SMALL),
    "U-Net": Training(cnns.UNet, data.masks, yes_no),
    "critic": Training(cnns.critic, data.real_or_not, yes_no),
    "time series": Training(cnns.waves, noise(4, 64, classes=3)),
    "bag of embeddings": Training(nets.bag, words(1000, 8, 10)),
    "encoder": Training(partial(nets.encoders, 32, 10, 2, 64, 10), noise(10, 32)),
    "encoder 512": Training(partial(nets.encoders, 512, 5, 1, 512, 4), noise(5, 512, classes=4, n=64)),
    "encoder-decoder": Training(nets.Translator, data.sentences, next_word),
    "GPT": Training(partial(Gpt, 64, 2, 65), words(65), next_word),
    "GPT, GPT-2's weights": Training(partial(Gpt, 64, 3, 65, 0.02), words(65), next_word),
    "GPT, tied": Training(partial(Gpt, 64, 2, 65, 0.02, tied=True), words(65), next_word),
    "GPT, post-norm": Training(partial(Gpt, 64, 2, 65, pre=False), words(65), next_word),
    "GPT 256": Training(partial(Gpt, 256, 2, 500, 0.02), words(500, 12), next_word),
    "GPT, learnable": Training(
        partial(Gpt, 64, 2, 65),
        learned(lambda: torch.randint(65, (data.SAMPLES, 16)), lambda x: (x + 1) % 65),
        next_word,
    ),
    "LSTM": Training(partial(Characters, 50), CHARACTERS, next_word),
    "GRU": Training(partial(Characters, 50, cell="GRU"), CHARACTERS, next_word),
    "RNN": Training(partial(Characters, 50, cell="RNN"), CHARACTERS, next_word),
    "LSTM, last": Training(partial(cells, cell="LSTM", fused=True), noise(20, 8, classes=2)),
    "LSTM, last, learnable": Training(
        partial(cells, cell="LSTM", fused=True),
        learned(lambda: torch.randn(data.SAMPLES, 20, 8), lambda x: (x[:, -5:, 0].sum(1) > 0).long()),
    ),
    "GRU, 2 layers, last": Training(partial(cells, cell="GRU", fused=True, layers=2), noise(20, 8, classes=2)),
    "LSTMCell": Training(partial(cells, cell="LSTM"), noise(15, 8, classes=2)),
    "GRUCell": Training(partial(cells, cell="GRU"), noise(15, 8, classes=2)),
    "RNNCell": Training(partial(cells, cell="RNN"), noise(5, 8, classes=2)),
    "LSTM both ways": Training(parts.BothWays, words(200, 20, 4)),
    "CTC": Training(parts.Speech, data.letters, parts.ctc),
    "graph": Training(parts.Graph, data.graphs),
}
