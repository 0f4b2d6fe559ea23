"""gradwatch: which layer's gradient is sick, why, and what to do, for PyTorch Lightning and plain PyTorch."""

from gradwatch.callbacks.monitor import GradientMonitor
from gradwatch.detectors import (
    Dead,
    Exploding,
    NonFinite,
    Saturated,
    Spike,
    Stalled,
    Vanishing,
    default_detectors,
)
from gradwatch.records import Diagnosis, Finding, GradientError, GradientWarning, Snapshot
from gradwatch.watch import Watcher, watch

__version__ = "0.1.0"

__all__ = [
    "Dead",
    "Diagnosis",
    "Exploding",
    "Finding",
    "GradientError",
    "GradientMonitor",
    "GradientWarning",
    "NonFinite",
    "Saturated",
    "Snapshot",
    "Spike",
    "Stalled",
    "Vanishing",
    "Watcher",
    "default_detectors",
    "watch",
]
