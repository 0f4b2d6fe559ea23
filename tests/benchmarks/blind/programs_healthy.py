"""Programs that learn, and that experts call sound, though some of them look suspicious."""

from __future__ import annotations

from functools import partial

from blind.programs_base import Program, cnn, digits, healthy, mlp, patients, r_squared, rebuilt, rows, standard
from blind.programs_heads import Twins, contrastive, near, pairs
from blind.programs_healthy_parts import (
    Deep,
    Squeezed,
    Tuned,
    balanced,
    focal,
    heavy,
    mixed,
    noisy,
    rare,
    sparse,
    trained,
    zero_head,
)
from blind.programs_optimizers import clipped, scheduled
from blind.programs_scales import Texts, topics
from blind.programs_sequences import Encoder, Gated, Tagger, recalled, tags
from sklearn.datasets import load_breast_cancer, load_iris
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR

adam, sgd = partial(Adam, lr=1e-3), partial(SGD, lr=0.1)
small, images = partial(mlp, 64, 64, 10), digits(1, 8, 8)
logits = functional.binary_cross_entropy_with_logits

HEALTHY: dict[str, Program] = {
    "sparse one-hot words": healthy(
        "a bag of words", network=partial(mlp, 300, 32, 3), data=sparse, optimizer=partial(Adam, lr=3e-3),
    ),
    "rare words": healthy(
        "embeddings that most batches do not touch", network=partial(Texts, 1.0), data=topics,
        optimizer=partial(Adam, lr=3e-3), batch=8,
    ),
    "a frozen body in eval mode": healthy(
        "the usual transfer learning", network=Tuned, data=images, optimizer=partial(Adam, lr=3e-3),
    ),
    "a network that has learned": healthy(
        "training is resumed near its end", network=lambda: trained(small(), digits()(), 300), data=digits(),
        optimizer=partial(SGD, lr=0.01),
    ),
    "a third of the labels random": healthy(
        "noisy labels", network=small, data=noisy(0.33), optimizer=adam, steps=150,
    ),
    "batches of 512": healthy(
        "large batches", network=cnn, data=images, optimizer=partial(Adam, lr=3e-3), batch=512, steps=60,
    ),
    "batches of two": healthy(
        "tiny batches", network=small, data=digits(), optimizer=partial(SGD, lr=0.02), batch=2, steps=150,
    ),
    "twenty normed residual blocks": healthy(
        "deep, with norm", network=Deep, data=digits(), optimizer=adam, steps=60,
    ),
    "LayerScale of 0.0001": healthy(
        "CaiT 2103.17239", network=partial(Deep, 1e-4, 12), data=digits(), optimizer=adam,
    ),
    "post-norm with warm-up": healthy(
        "2002.04745: the warm-up that it needs", network=partial(Encoder, 3), data=digits(8, 8), steps=120,
        optimizer=scheduled(partial(Adam, lr=3e-3), partial(LambdaLR, lr_lambda=lambda at: min(1.0, (at + 1) / 60))),
    ),
    "label smoothing": healthy(
        "1512.00567", network=partial(cnn, norm=True), data=images,
        loss=partial(functional.cross_entropy, label_smoothing=0.2), optimizer=partial(SGD, lr=0.05, momentum=0.9),
    ),
    "mixup": healthy(
        "1710.09412", network=small, data=mixed, optimizer=partial(Adam, lr=3e-3),
    ),
    "weight decay of 0.05": healthy(
        "as for vision transformers", network=partial(Encoder, 2, first=True), data=digits(8, 8),
        optimizer=partial(AdamW, lr=3e-3, weight_decay=0.05),
    ),
    "an LSTM with its gradients clipped": healthy(
        "the usual clip at 1", network=partial(Gated, forget=1.0), data=partial(recalled, 10),
        optimizer=clipped(partial(Adam, lr=1e-2), 1.0),
    ),
    "a head that starts at zero": healthy(
        "fine-tuning recipes", network=zero_head, data=digits(), optimizer=sgd,
    ),
    "gated channels": healthy(
        "squeeze and excitation 1709.01507", network=Squeezed, data=images, optimizer=partial(Adam, lr=1e-2),
    ),
    "heavy tails and a robust loss": healthy(
        "Huber", network=partial(mlp, 8, 64, 1), data=heavy, loss=functional.huber_loss, score=r_squared,
        optimizer=partial(Adam, lr=1e-2), steps=150,
    ),
    "focal loss of a rare class": healthy(
        "1708.02002", network=partial(mlp, 10, 32, 1), data=rare, loss=focal, score=balanced,
        optimizer=partial(Adam, lr=1e-2), steps=150,
    ),
    "dropout of a half": healthy(
        "Srivastava et al. 2014",
        network=lambda: nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 10)),
        data=digits(), optimizer=sgd,
    ),
    "an autoencoder with a bottleneck": healthy(
        "Hinton and Salakhutdinov 2006", network=partial(mlp, 64, 48, 8, 48, 64), data=rebuilt,
        loss=functional.mse_loss, score=r_squared, optimizer=partial(Adam, lr=1e-2), steps=150,
    ),
    "a contrastive loss mostly satisfied": healthy(
        "a margin", network=Twins, data=pairs, loss=contrastive(True), score=near, optimizer=partial(Adam, lr=3e-3),
        steps=150,
    ),
    "a GRU that answers at each step": healthy(
        "tagging", network=Tagger, data=partial(tags, 20), loss=logits, optimizer=partial(Adam, lr=1e-2),
    ),
    "three flowers": healthy(
        "a tiny data set", network=partial(mlp, 4, 16, 3, act=nn.Tanh), data=rows(load_iris), optimizer=sgd, batch=16,
    ),
    "few features, a linear model": healthy(
        "logistic regression", network=partial(nn.Linear, 30, 1), data=rows(load_breast_cancer, standard, False),
        loss=logits, optimizer=sgd,
    ),
    "patients": healthy(
        "weak signal", network=partial(mlp, 10, 32, 1), data=patients, loss=functional.mse_loss, score=r_squared,
        optimizer=partial(SGD, lr=0.02),
    ),
}  # fmt: skip
