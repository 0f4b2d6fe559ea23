"""The compared runs: each remedy, with the settings of the published experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from gradwatch.examples.baseline import Baseline


@dataclass(frozen=True)
class Run:
    """A remedy and the settings of its training.

    Attributes:
        name: its name for ``--only`` and in all tables.
        family: remedies of one family share a panel of a picture.
        target: ``file.Class`` of this folder, or ``module.Class`` of your own. It is imported when it is built, so that
            one that can't be is a failed run and not the end of all.
        settings: arguments of the class.
        epochs_factor: factor of the number of epochs.
        published: its published test accuracy, on Fashion-MNIST after 100 epochs.

    Example:
        >>> type(find("relu").build(64, 10)).__name__
        'ReLU'
    """

    name: str
    family: str
    target: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    epochs_factor: int = 1
    published: float | None = None

    def build(self, in_features: int, num_classes: int) -> Baseline:
        """Build the network."""
        module, _, name = self.target.rpartition(".")
        path = module if self.family == YOUR_OWN else f"gradwatch.examples.{module}"
        model: Baseline = getattr(import_module(path), name)(in_features, num_classes, **self.settings)
        return model


YOUR_OWN = "your own"

_INIT, _ACTIVATION, _DYING, _OPTIMIZER = "initialization", "activation", "dying ReLU", "optimizer"
_NORM, _SKIP, _STAGES, _GRADIENT = "normalization", "skip connections", "layer by layer", "gradient normalization"
_NO_CURE, _HALF, _ALL = "no cure", "half precision", "combination"

_SMALL = {"init_std": 0.05}
_SMALL_ADAM = {"init_std": 0.05, "lr": 1e-3}


RUNS: tuple[Run, ...] = (
    Run("baseline", "baseline", "baseline.Baseline", published=0.1000),
    Run("baseline-small", "baseline", "baseline.Baseline", _SMALL),  # the one to hold the others with _SMALL against
    Run("normal-1", _INIT, "init_normal.LargerWeights", {"std": 1.0}, published=0.7361),
    Run("normal-10", _INIT, "init_normal.LargerWeights", {"std": 10.0}, published=0.1927),
    Run("xavier", _INIT, "init_xavier.Xavier"),
    Run("he", _INIT, "init_he.He", {"activation": "relu"}),
    Run("orthogonal", _INIT, "init_orthogonal.Orthogonal"),
    Run("relu", _ACTIVATION, "activation_relu.ReLU", _SMALL, published=0.7882),
    Run("elu", _ACTIVATION, "activation_elu.ELU", _SMALL),
    Run("dying-relu", _DYING, "activation_dying_relu.DyingReLU", {"activation": "relu"}),
    Run("dying-leaky-relu", _DYING, "activation_dying_relu.DyingReLU", {"activation": "leaky_relu"}),
    Run("dying-elu", _DYING, "activation_dying_relu.DyingReLU", {"activation": "elu"}),
    Run("dying-selu", _DYING, "activation_dying_relu.DyingReLU", {"activation": "selu"}),
    Run("dying-gelu", _DYING, "activation_dying_relu.DyingReLU", {"activation": "gelu"}),
    Run("adam", _OPTIMIZER, "optimizer_adam.Adam", _SMALL_ADAM, published=0.8591),
    Run("warmup-cosine", _OPTIMIZER, "schedule_cosine.WarmupCosine", _SMALL_ADAM),
    Run("plateau", _OPTIMIZER, "schedule_plateau.ReduceOnPlateau", _SMALL_ADAM),
    Run("batch-norm", _NORM, "norm_batch.BatchNorm", _SMALL, published=0.8785),
    Run("tensor-norm", _NORM, "norm_tensor.TensorNorm", _SMALL, published=0.8443),
    Run("layer-norm", _NORM, "norm_layer.LayerNorm", _SMALL),
    Run("skip", _SKIP, "skip_connection.SkipConnections", _SMALL, published=0.6756),
    Run("residual", _SKIP, "skip_residual.Residual", _SMALL),
    Run("layerwise", _STAGES, "layerwise.LayerByLayer", epochs_factor=3, published=0.80),
    Run("gradient-norm", _GRADIENT, "gradient_normalization.NormalizedGradients", _SMALL, published=0.5373),
    Run("unit-gradients", _GRADIENT, "normalize_by_norm.UnitGradients", _SMALL),
    Run("weight-decay", _NO_CURE, "weight_decay.WeightDecay", _SMALL),
    Run("clipping", _NO_CURE, "clip_vanishing.Clipping", _SMALL),
    Run("ascent", _NO_CURE, "gradient_ascent.GradientAscent", _SMALL),
    Run("fp16", _HALF, "mixed_precision.HalfPrecision", {**_SMALL_ADAM, "loss_scaling": False}),
    Run("fp16-scaled", _HALF, "mixed_precision.HalfPrecision", {**_SMALL_ADAM, "loss_scaling": True}),
    Run("combination", _ALL, "combination.Combination"),
)

_BY_NAME = {run.name: run for run in RUNS}


def find(name: str) -> Run:
    """Return the run of that name; a name with a dot is the import path of a class that you wrote.

    Raises:
        ValueError: when there is none; the message gives similar names.

    Example:
        >>> find("adam").settings, find("my_remedies.Best").family
        ({'init_std': 0.05, 'lr': 0.001}, 'your own')
        >>> find("batchnorm")
        Traceback (most recent call last):
            ...
        ValueError: no remedy is called 'batchnorm'; did you mean batch-norm? Your own class: module.Class
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    if "." in name:
        return Run(name, YOUR_OWN, name)
    alike = get_close_matches(name, _BY_NAME) or list(_BY_NAME)
    raise ValueError(f"no remedy is called {name!r}; did you mean {', '.join(alike)}? Your own class: module.Class")


def published_accuracy(name: str) -> float | None:
    """Return the published accuracy of the run of that name, if there is one."""
    return _BY_NAME[name].published if name in _BY_NAME else None
