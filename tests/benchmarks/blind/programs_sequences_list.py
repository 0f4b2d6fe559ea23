"""The programs with bugs in recurrent networks and transformers."""

from __future__ import annotations

from functools import partial

from blind.programs_base import Program, bug, digits
from blind.programs_sequences import (
    AtStep,
    Attention,
    Encoder,
    Gated,
    Identity,
    Tagger,
    over_steps,
    padded,
    recalled,
    tags,
)
from torch.nn import functional
from torch.optim import SGD, Adam

adam = partial(Adam, lr=3e-3)
rows_of_digits = digits(8, 8)
DEPTH, RATE, LARGE = "recurrent depth", "learning rate too high", "initialization too large"

SEQUENCES: dict[str, Program] = {
    "the state after the padding": bug(
        "forums: output[:, -1] of a batch padded on the right, without pack_padded_sequence", DEPTH,
        network=partial(AtStep, -1), data=partial(padded, 70), optimizer=adam, repair={"network": partial(AtStep, 9)},
    ),
    "an identity of 1.6": bug(
        "IRNN 1504.00941 with a gain above 1", DEPTH, LARGE,
        network=partial(Identity, 1.6), data=digits(64, 1), optimizer=partial(Adam, lr=1e-3),
        repair={"network": partial(Identity, 1.0)},
    ),
    "a forget gate that is shut": bug(
        "Jozefowicz et al. 2015: the forget gate's bias", DEPTH, "saturating activation",
        network=partial(Gated, forget=-6.0), data=partial(recalled, 12), optimizer=partial(Adam, lr=1e-2),
        repair={"network": partial(Gated, forget=1.0)},
    ),
    "an LSTM with weights of 3": bug(
        "1211.5063: exploding recurrent gradients from large weights", LARGE, DEPTH, "saturating activation",
        network=partial(Gated, forget=1.0, spread=3.0), data=partial(recalled, 12), optimizer=partial(Adam, lr=1e-2),
        repair={"network": partial(Gated, forget=1.0)},
    ),
    "attention times its root": bug(
        "1706.03762: scores divided, not multiplied, by the root of the width", "saturating activation", LARGE,
        network=partial(Attention, 8.0), data=rows_of_digits, optimizer=adam,
        repair={"network": partial(Attention, 1 / 8)},
    ),
    "a deep post-norm transformer at full rate": bug(
        "2002.04745: post-norm needs warm-up", "missing warm-up", RATE,
        network=partial(Encoder, 8), data=rows_of_digits, optimizer=partial(Adam, lr=1e-2),
        repair={"optimizer": partial(Adam, lr=5e-4)},
    ),
    "a transformer without norms": bug(
        "forums: LayerNorms lost in a port", "missing normalization or skip", LARGE,
        network=partial(Encoder, 8, norm=False), data=rows_of_digits, optimizer=partial(Adam, lr=1e-3),
        repair={"network": partial(Encoder, 8)},
    ),
    "a loss summed over 60 steps": bug(
        "forums: reduction='sum' over batch and time with the rate of a mean", RATE,
        network=Tagger, data=tags, loss=over_steps, optimizer=partial(SGD, lr=0.3),
        repair={"loss": functional.binary_cross_entropy_with_logits},
    ),
}  # fmt: skip
