"""The causes that an expert calls right for each faulty program of the sealed set, agreed before it is measured.

A cause is right if its name, or the advice that goes with it, sends the user to what the repair changes, or to another
thing that mends the program for good. Several are given where they are equally right: an operation without a guard and
a damaged sample that only that operation meets; a scale and the exponential that it overflows. A cause that only eases
the harm, such as a lower rate for inputs that are not scaled, is not given. A fault that no cause of the list fits has
an empty tuple: then only the finding counts. "not known" is right for none.
"""

from __future__ import annotations

UNGUARDED = ("unguarded operation",)
GUARD_OR_CLEAN = ("unguarded operation", "outlier batch")
CUT_OFF = ("frozen or detached part",)
NONE: tuple[str, ...] = ()

EXPECTED: dict[str, tuple[str, ...]] = {
    # vision
    "raw-pixels": ("unscaled input",),
    "softmax-over-batch": NONE,
    "mixup-two-permutations": NONE,
    "dice-empty-mask": UNGUARDED,
    "box-without-width": GUARD_OR_CLEAN,
    "batchnorm-keras-momentum": NONE,
    "relu-on-standardized-output": ("unscaled target",),  # its form "out of reach": remove the activation at the end
    # tables
    "column-against-row": ("shapes broadcast",),
    "prices-unscaled": ("unscaled target",),
    "log-of-zero-probability": UNGUARDED,
    "nan-times-zero": GUARD_OR_CLEAN,  # the other's form "not finite": clean the data of NaN
    "class-weight-inverted": NONE,
    "weight-of-absent-class": UNGUARDED,
    "poisson-raw-columns": ("unscaled input",),  # a bound on exp would leave no gradient beyond it
    "pinball-sign": NONE,
    "cox-exp-overflow": UNGUARDED,
    "constant-column-in-batch": UNGUARDED,
    "penalty-with-minus": ("unbounded loss",),
    # sequences
    "rnn-small-recurrent-init": ("initialization too small", "recurrent depth"),
    "relu-cell-overflow": ("initialization too large", "recurrent depth"),
    "view-for-transpose": NONE,
    "attention-empty-sentence": GUARD_OR_CLEAN,
    "state-detached-each-step": CUT_OFF,
    "no-causal-mask": NONE,
    "targets-not-shifted": NONE,
    "ids-scaled-then-cast": NONE,
    # graphs
    "degree-of-lonely-node": UNGUARDED,
    "oversmoothed": ("missing normalization or skip",),
    "negatives-are-positives": NONE,
    "root-of-own-distance": UNGUARDED,
    # generative models
    "vae-mean-against-sum": NONE,
    "vae-variance-overflow": ("unguarded operation", "unbounded activation", "outlier batch"),
    "generator-detached": CUT_OFF,
    "penalty-at-zero-slope": UNGUARDED,
    "flow-determinant-sign": ("unbounded loss",),  # its advice: look at the sign of the loss
    "flow-unbounded-scale": ("unbounded activation", "unguarded operation", "unscaled input"),
    "noise-drawn-twice": NONE,
    "codes-without-straight-through": CUT_OFF,
    # reinforcement learning
    "policy-gradient-sign": ("unbounded loss",),  # its advice: look at the sign of the loss
    "episode-of-one-step": UNGUARDED,
    "ratio-without-graph": CUT_OFF,
    "squash-correction": UNGUARDED,
    "bootstrap-past-the-end": NONE,
    "target-never-synced": NONE,
    # audio and time series
    "log-of-silence": UNGUARDED,
    "root-of-silence": UNGUARDED,
    "sigmoids-in-dilated-stack": ("saturating activation",),
    "level-not-removed": ("unscaled target", "unscaled input"),
    "percent-of-closed-day": UNGUARDED,
    "separation-of-silence": UNGUARDED,
    "correlation-of-constant": ("unguarded operation", "initialization too small", "zero-gradient head"),
    "word-longer-than-sound": GUARD_OR_CLEAN,
    # optimizers
    "one-cycle-per-epoch": ("learning rate too low",),
    "decay-per-step": ("learning rate too low",),
    "warmup-whole-division": ("learning rate too low",),
    "only-biases-optimized": CUT_OFF,
    "decay-of-one-in-adam": ("weight decay too strong",),
    "clipped-to-nothing": ("clipping too hard",),
    "average-too-slow": NONE,
    "sam-not-restored": NONE,
    "accumulated-not-divided": ("learning rate too high",),
    # numerics
    "softmax-written-out": UNGUARDED,
    "angle-at-one": UNGUARDED,
    "entropy-of-hard-gate": UNGUARDED,
    "where-hides-division": UNGUARDED,
    "half-weights-adam": ("precision underflow",),
    "bfloat-weights-round-away": ("precision underflow",),
    "infonce-low-temperature": UNGUARDED,
    "hyperbolic-outside-ball": UNGUARDED,
    # training loops
    "gradients-never-cleared": ("gradients are not zeroed",),
    "cleared-before-step": ("step without effect",),
    "encoder-under-no-grad": CUT_OFF,
    "loss-rewrapped": CUT_OFF,
    "last-task-only": CUT_OFF,
    "rounding-stops-gradient": CUT_OFF,
    "backward-branches-swapped": NONE,
    "blocks-in-a-list": CUT_OFF,
    "classes-in-order": NONE,
    "pairs-of-other-meaning": NONE,
    # fine-tuning and deep nets
    "adapter-both-zero": ("initialization too small",),
    "optimizer-of-old-head": CUT_OFF,
    "froze-the-head-too": CUT_OFF,
    "tower-tiny-start": ("initialization too small",),
    "tower-constant-start": NONE,
    "tower-wide-start": ("initialization too large",),
}
