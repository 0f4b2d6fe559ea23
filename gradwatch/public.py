"""The public names: ``gradwatch`` has them all, and loads them from here when the first one is asked for."""

from gradwatch.callbacks.backward import BackwardTransform
from gradwatch.callbacks.layerwise import LayerwiseTraining, Stage
from gradwatch.callbacks.monitor import GradientMonitor
from gradwatch.callbacks.transform import GradientTransform
from gradwatch.detectors import (
    Broadcast,
    CarriedOver,
    CutOff,
    Dead,
    Exploding,
    IdleClip,
    NonFinite,
    NotLearning,
    OutOfSync,
    Saturated,
    Spike,
    Stalled,
    Unmoved,
    Vanishing,
    default_detectors,
)
from gradwatch.pipeline.watcher import Watcher, watch
from gradwatch.preflight import Preflight, diagnose
from gradwatch.records import Diagnosis, Finding, GradientError, GradientWarning, Snapshot

__all__ = [
    "BackwardTransform",
    "Broadcast",
    "CarriedOver",
    "CutOff",
    "Dead",
    "Diagnosis",
    "Exploding",
    "Finding",
    "GradientError",
    "GradientMonitor",
    "GradientTransform",
    "GradientWarning",
    "IdleClip",
    "LayerwiseTraining",
    "NonFinite",
    "NotLearning",
    "OutOfSync",
    "Preflight",
    "Saturated",
    "Snapshot",
    "Spike",
    "Stage",
    "Stalled",
    "Unmoved",
    "Vanishing",
    "Watcher",
    "default_detectors",
    "diagnose",
    "watch",
]
