"""The programs whose gradient does not reach all parameters."""

from __future__ import annotations

from functools import partial

from blind.programs_base import Program, bug, digits, mlp, patients, r_squared, rebuilt
from blind.programs_cuts import (
    Clamped,
    Encoded,
    MadeAnew,
    Quantized,
    Skipped,
    Steps,
    Through,
    adam,
    before_replacement,
    first_word,
    frozen,
    mse,
)
from torch.optim import Adam

CUT = "frozen or detached part"
CUTS: dict[str, Program] = {
    "an encoder under no_grad": bug(
        "forums: torch.no_grad() of the evaluation copied around the encoder", CUT,
        network=partial(Encoded, False), data=digits(1, 8, 8), optimizer=adam,
        repair={"network": partial(Encoded, True)},
    ),
    "only biases left to learn": bug(
        "StackOverflow: the filter on the names of parameters is wrong", CUT,
        network=partial(frozen, True), data=digits(), optimizer=adam, repair={"network": partial(frozen, False)},
    ),
    "a layer made in forward": bug(
        "StackOverflow: nn.Linear constructed in forward has new weights at each call", CUT,
        network=partial(MadeAnew, True), data=digits(), optimizer=adam, repair={"network": partial(MadeAnew, False)},
    ),
    "an optimizer from before the body was replaced": bug(
        "forums: model.encoder = pretrained after the optimizer was made", CUT,
        network=partial(mlp, 64, 4, 10), data=digits(), optimizer=before_replacement,
        repair={"optimizer": partial(Adam, lr=1e-2)},
    ),
    "a skip connection by .data": bug(
        "PyTorch's migration guide for 0.4: .data is unsafe in autograd", CUT,
        network=partial(Skipped, True), data=digits(), optimizer=partial(Adam, lr=1e-2),
        repair={"network": partial(Skipped, False)},
    ),
    "the nearest code, without straight-through": bug(
        "VQ-VAE 1711.00937 needs a straight-through estimate; forums on argmin", CUT,
        network=partial(Quantized, False), data=rebuilt, loss=mse, score=r_squared, optimizer=adam, steps=150,
        repair={"network": partial(Quantized, True)},
    ),
    "a hard threshold inside": bug(
        "1308.3432: a step function has no gradient; forums: (x > 0).float()", CUT,
        network=partial(Through, "threshold"), data=digits(), optimizer=adam,
        repair={"network": partial(Through, "tanh")},
    ),
    "rounding inside": bug(
        "forums: torch.round has a gradient of zero", CUT, "zero-gradient head", "saturating activation",
        network=partial(Through, "round"), data=digits(), optimizer=adam, repair={"network": partial(Through, "")},
    ),
    "an output cut to 0 and 1": bug(
        "forums: clamp passes no gradient outside", "zero-gradient head", "unscaled target", "saturating activation",
        network=partial(Clamped, 0.0, 1.0), data=patients, loss=mse, score=r_squared, optimizer=adam,
        repair={"network": partial(Clamped, -9.0, 9.0)},
    ),
    "a state detached at each step": bug(
        "forums: the hidden state must be detached between batches, not steps", CUT,
        network=partial(Steps, True), data=first_word, optimizer=partial(Adam, lr=1e-2),
        repair={"network": partial(Steps, False)},
    ),
}  # fmt: skip
