"""The programs with bugs in operations, losses, heads and precision."""

from __future__ import annotations

from functools import partial

import torch
from blind.programs_base import Program, bug, digits, mlp, patients, r_squared, rows
from blind.programs_heads import (
    Divided,
    Rounded,
    Twins,
    contrastive,
    first_only,
    likely,
    near,
    pairs,
    with_head,
    yes_and_no,
)
from blind.programs_operations import (
    Angles,
    Directions,
    Distances,
    OwnNorm,
    Pooled,
    Roots,
    answered,
    by_hand,
    counts,
    normal_likelihood,
    one_left,
    padded_words,
)
from blind.programs_scales import learned_only, with_some
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam

bce, nll, logits = functional.binary_cross_entropy, functional.nll_loss, functional.binary_cross_entropy_with_logits
adam, faster, sgd = partial(Adam, lr=1e-3), partial(Adam, lr=1e-2), partial(SGD, lr=0.1)
cells, small = rows(load_breast_cancer, long=False), partial(mlp, 64, 64, 10)
UNGUARDED, UNBOUNDED = "unguarded operation", "unbounded loss"
BATCH, SMALL, HEAD = "outlier batch", "precision underflow", "zero-gradient head"


LOSSES: dict[str, Program] = {
    "cross-entropy by hand": bug(
        "DeepLocalize 2103.03376: numerical error in the loss; log(0)", UNGUARDED,
        network=partial(mlp, 30, 64, 1), data=cells, loss=by_hand(0.0), optimizer=partial(Adam, lr=0.05),
        repair={"loss": by_hand(1e-6)},
    ),
    "directions of empty documents": bug(
        "forums: x / x.norm() of a row of zeros", UNGUARDED, BATCH,
        network=partial(Directions, 0.0), data=counts, optimizer=faster, repair={"network": partial(Directions, 1e-6)},
    ),
    "distances to oneself": bug(
        "forums: the gradient of a root at a distance of 0", UNGUARDED,
        network=partial(Distances, 0.0), data=digits(), optimizer=faster, repair={"network": partial(Distances, 1e-6)},
    ),
    "a last batch of one sample": bug(
        "forums: a deviation over a batch of one, drop_last forgotten", UNGUARDED, BATCH,
        network=partial(OwnNorm, False), data=one_left, optimizer=sgd, repair={"network": partial(OwnNorm, True)},
    ),
    "angles by acos": bug(
        "ArcFace re-implementations: acos at 1 has an infinite gradient", UNGUARDED,
        network=partial(Angles, 0.0), data=digits(), optimizer=faster, steps=150,
        repair={"network": partial(Angles, 1e-4)},
    ),
    "attention over no word": bug(
        "allennlp#890, pytorch#31829: softmax of a row of -inf", UNGUARDED, BATCH,
        network=partial(Pooled, -float("inf")), data=padded_words, optimizer=faster,
        repair={"network": partial(Pooled, -1e9)},
    ),
    "where around a root": bug(
        "PyTorch forums: torch.where passes the NaN of the branch not taken", UNGUARDED,
        network=partial(Roots, False), data=digits(), optimizer=faster, repair={"network": partial(Roots, True)},
    ),
    "a deviation below zero": bug(
        "forums: a normal likelihood whose sigma is not made positive", UNGUARDED, UNBOUNDED,
        network=partial(mlp, 10, 32, 2), data=patients, loss=normal_likelihood(True), score=first_only,
        optimizer=faster,
        repair={"loss": normal_likelihood(False)},
    ),
    "unknown targets masked too late": bug(
        "pytorch#121416: the loss of NaN targets masked after the difference", UNGUARDED, BATCH,
        network=partial(mlp, 10, 32, 1), data=lambda: learned_only(patients(with_some(float("nan"), 0.1))),
        score=r_squared,
        loss=answered(False), optimizer=faster, repair={"loss": answered(True)},
    ),
    "Adam in float16": bug(
        "PyTorch forums: model.half() with Adam, whose epsilon rounds to zero", SMALL,
        network=partial(Rounded, torch.float16), data=digits(), optimizer=adam,
        repair={"network": partial(Rounded, torch.float32)},
    ),
    "small steps in bfloat16": bug(
        "2010.06192: updates below half a unit of bfloat16 weights are lost", SMALL, "learning rate too low",
        network=partial(Rounded, torch.bfloat16), data=digits(), optimizer=partial(Adam, lr=1e-4), steps=150,
        repair={"network": partial(Rounded, torch.float32)},
    ),
    "NLLLoss of logits": bug(
        "StackOverflow: nll_loss wants log-probabilities", UNBOUNDED,
        network=small, data=digits(), loss=nll, optimizer=sgd, repair={"loss": functional.cross_entropy},
    ),
    "contrast without a margin": bug(
        "forums: the hinge of the contrastive loss forgotten", UNBOUNDED,
        network=Twins, data=pairs, loss=contrastive(False), score=near, optimizer=adam,
        repair={"loss": contrastive(True)},
    ),
    "labels of -1 and 1 for BCE": bug(
        "StackOverflow: BCE with targets below 0", UNBOUNDED, "unscaled target",
        network=partial(mlp, 30, 32, 1), data=partial(yes_and_no, False), loss=logits, optimizer=faster, steps=150,
        repair={"data": partial(yes_and_no, True)},
    ),
    "a softmax of one output": bug(
        "AUTOTRAINER (ICSE 2021), StackOverflow: softmax over one unit is always 1", HEAD,
        network=lambda: nn.Sequential(mlp(30, 32, 1), nn.Softmax(1)), data=cells, loss=bce, score=likely,
        optimizer=faster,
        repair={"network": lambda: nn.Sequential(mlp(30, 32, 1), nn.Sigmoid())},
    ),
    "a ReLU on the logits": bug(
        "UMLAUT (CHI 2021): no ReLU before the softmax", HEAD, "dead ReLU",
        network=partial(with_head, nn.ReLU()), data=digits(), optimizer=partial(SGD, lr=0.5),
        repair={"network": partial(with_head, nn.Identity())},
    ),
    "a temperature of 0.001": bug(
        "forums on distillation and contrastive losses", "learning rate too high", "initialization too large", HEAD,
        network=partial(Divided, 1e-3), data=digits(), optimizer=partial(SGD, lr=0.05),
        repair={"network": partial(Divided, 1.0)},
    ),
}  # fmt: skip
