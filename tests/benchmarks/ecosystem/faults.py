"""Faulty programs: each is a sound one with one thing changed."""

from __future__ import annotations

import torch
from ecosystem import mutations as change
from ecosystem.task import Fault, Task
from torch import nn

RATE, FROZEN = "learning rate too high", "frozen or detached part"
DEFORM = "DEForm's operators for transformers"
TRAINCHECK = "TrainCheck (OSDI'25)"
GRIST = "GRIST (ICSE'21), bugs that end in NaN"
LISTS = "the lists of AUTOTRAINER and TheDeepChecker"


def _collapsed(task: Task) -> None:
    """Weigh the divergence of a VGAE by 1, not by the number of nodes."""
    own, kl = task.module.loss, task.network.kl_loss
    task.module.loss = lambda network, batch: own(network, batch) + 3 * kl()


class _Exp(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp()


def _exponential(task: Task) -> None:
    task.network.gnn.act = _Exp()


def _far_off(task: Task) -> None:
    change.weights(1000.0, "Embedding")(task)
    change.without("LayerNorm")(task)


def _no_norm(name: str) -> bool:
    return "norm" not in name and "ln_" not in name


def _random_head(task: Task) -> None:
    """Break the tie of head and embeddings, and freeze a random head."""
    task.network.lm_head = nn.Linear(64, 95, bias=False).requires_grad_(False)


FAULTS: dict[str, Fault] = {
    "GPT-2, rate of 1": Fault("GPT-2", LISTS, change.settings(lr=1.0), (RATE,)),
    "GPT-2, all frozen but the norms": Fault("GPT-2", TRAINCHECK, change.frozen(_no_norm), (FROZEN,)),
    "GPT-2, a random head that is frozen": Fault("GPT-2", DEFORM, _random_head, (FROZEN,)),
    "GPT-2, copies in the optimizer": Fault(
        "GPT-2", TRAINCHECK, change.stale, ("step without effect", FROZEN),
    ),
    "Llama, rate of 1e-7": Fault("Llama", LISTS, change.settings(lr=1e-7), ("learning rate too low",)),
    "Llama, a schedule that ends at step 10": Fault(
        "Llama", TRAINCHECK, change.schedule(lambda at: max(0.0, 1 - at / 10)),
        ("learning rate too low", "step without effect"),
    ),
    "Llama, weight decay of 100": Fault(
        "Llama", LISTS, change.settings(weight_decay=100.0), ("weight decay too strong",),
    ),
    "x-transformers, weights times 20": Fault(
        "x-transformers, decoder", DEFORM, change.weights(20.0), ("initialization too large",),
    ),
    "RWKV, rate of 0.3": Fault("RWKV", LISTS, change.settings(lr=0.3), (RATE,)),
    "LoRA whose second matrix is frozen": Fault(
        "Llama with LoRA", DEFORM, change.frozen(lambda name: "lora_B" in name), (FROZEN,),
    ),
    "BERT, a mask turned around": Fault(
        "BERT, topics", DEFORM, change.loss(change.first_word_alone), ("attention mask wrong", "not learning"),
    ),
    "BERT, scores of attention times 1000": Fault(
        "BERT, topics", DEFORM, change.attributes("scaling", 1000.0),
        ("saturating activation", "attention not scaled", "saturated attention"),
    ),
    "BERT, labels shuffled": Fault(
        "BERT, topics", "TrainCheck (OSDI'25), faults of data", change.batches(change.shuffled),
        ("labels do not fit the inputs", "not learning"),
    ),
    "DistilBERT, embeddings times 1000, no norms": Fault(
        "DistilBERT, topics", DEFORM,
        _far_off,
        ("initialization too large", "missing normalization or skip", "unscaled input"),
    ),
    "BART, the decoder alone in the optimizer": Fault(
        "BART", TRAINCHECK, change.only_given(lambda name: "decoder.layers" in name), (FROZEN,),
    ),
    "ResNet without norms": Fault(
        "ResNet of transformers", DEFORM, change.without("BatchNorm2d"),
        ("missing normalization or skip", RATE, "initialization too large"),
    ),
    "ResNet, gradients kept": Fault(
        "ResNet of transformers", TRAINCHECK, change.keeps_gradients, ("gradients are not zeroed",),
    ),
    "ResNet, clipped to 1e-4": Fault(
        "ResNet of transformers", LISTS, change.options(gradient_clip_val=1e-4), ("clipping too hard",),
    ),
    "MobileNetV2, norms that start at 0.02": Fault(
        "MobileNetV2 of transformers", "EfficientNet of transformers, which draws them so",
        change.weights(0.02, "BatchNorm2d"), ("initialization too small",),
    ),
    "ConvNeXt, rate of 1": Fault("ConvNeXt", LISTS, change.settings(lr=1.0), (RATE,)),
    "ViT of MONAI, probabilities to the cross-entropy": Fault(
        "ViT of MONAI", LISTS, change.loss(change.of_probabilities), ("zero-gradient head",),
    ),
    "DenseNet, its own cross-entropy": Fault(
        "DenseNet of MONAI", GRIST, change.loss(change.own_cross_entropy), ("unguarded operation",),
    ),
    "UNet, sigmoid twice": Fault(
        "UNet of MONAI", LISTS, change.loss(change.twice_squashed), ("zero-gradient head", "saturating activation"),
    ),
    "SegResNet, rate of 1": Fault("SegResNet of MONAI", LISTS, change.settings(lr=1.0), (RATE,)),
    "triplets, the root of a distance": Fault(
        "triplets", GRIST, change.loss(change.root_of_distance), ("unguarded operation",),
    ),
    "FT-Transformer, inputs times 10,000": Fault(
        "FT-Transformer", LISTS, change.scaled(1e4), ("unscaled input",),
    ),
    "TabNet, rate of 10": Fault("TabNet", LISTS, change.settings(lr=10.0), (RATE,)),
    "ResNet of RTDL, a rate of zero after warm-up": Fault(
        "ResNet of RTDL", TRAINCHECK, change.schedule(lambda at: 0.0), ("learning rate too low", "step without effect"),
    ),
    "GCN of 22 layers": Fault(
        "GCN", "over-smoothing (1801.07606)", change.deeper,
        ("over-smoothing", "missing normalization or skip", "initialization too small"),
    ),
    "GIN with exp": Fault("GIN", GRIST, _exponential, ("unbounded activation", "unguarded operation")),
    "VGAE, divergence too heavy": Fault("VGAE", "posterior collapse (1511.06349)", _collapsed, ("posterior collapse",)),
    "Gaussian process, rate of 10": Fault("variational Gaussian process", LISTS, change.settings(lr=10.0), (RATE,)),
    "TFT, rate of 3": Fault("TFT", LISTS, change.hyper(learning_rate=3.0), (RATE,)),
    "DeepAR, rate of 1e-7": Fault("DeepAR", LISTS, change.hyper(learning_rate=1e-7), ("learning rate too low",)),
    "PatchTST, divided by a deviation of 0": Fault(
        "PatchTST", GRIST, change.loss(change.by_deviation), ("unguarded operation", "outlier batch"),
    ),
    "PatchTST, output and target broadcast": Fault(
        "PatchTST", LISTS, change.loss(change.broadcast), ("output and target are broadcast", "not learning"),
    ),
    "diffusion UNet, copies in the optimizer": Fault(
        "diffusion UNet", TRAINCHECK, change.stale, ("step without effect", FROZEN),
    ),
    "spline flow, rate of 1": Fault("neural spline flow", LISTS, change.settings(lr=1.0), (RATE,)),
    "VQ-VAE, inputs times 1000": Fault("VQ-VAE", LISTS, change.scaled(1000.0), ("unscaled input", "unscaled target")),
    "DQN, rate of 1": Fault("DQN", LISTS, change.settings(lr=1.0), (RATE,)),
    "spiking network, a threshold never reached": Fault(
        "spiking network", "the tutorial's warning of dead neurons", change.silent,
        ("dead ReLU", "saturating activation", "silent neurons", FROZEN),
    ),
    "neural ODE, weights times 30": Fault(
        "neural ODE", LISTS, change.weights(30.0), ("initialization too large",),
    ),
    "CfC, outliers among the batches": Fault(
        "liquid network, CfC", LISTS, change.outliers(1e6), ("outlier batch",),
    ),
}  # fmt: skip
