"""Detectors: each looks at a Snapshot and says what is wrong in it."""

from gradwatch.detectors.dead_saturated import Dead, Saturated
from gradwatch.detectors.exploding import Exploding
from gradwatch.detectors.nonfinite import NonFinite
from gradwatch.detectors.not_learning import NotLearning
from gradwatch.detectors.spike import Spike
from gradwatch.detectors.stalled import CutOff, Stalled
from gradwatch.detectors.training_loop import Broadcast, CarriedOver, IdleClip, OutOfSync
from gradwatch.detectors.unmoved import Unmoved
from gradwatch.detectors.vanishing import Vanishing
from gradwatch.records import Detector

__all__ = [
    "Broadcast", "CarriedOver", "CutOff", "Dead", "Exploding", "IdleClip", "NonFinite", "NotLearning", "OutOfSync",
    "Saturated", "Spike", "Stalled", "Unmoved", "Vanishing", "default_detectors",
]  # fmt: skip


def default_detectors() -> list[Detector]:
    """A fresh set of all detectors with their default thresholds."""
    return [
        NonFinite(), Vanishing(), Exploding(), Dead(), Saturated(), Stalled(), CutOff(), Unmoved(), CarriedOver(),
        IdleClip(), OutOfSync(), Broadcast(), Spike(), NotLearning(),
    ]  # fmt: skip
