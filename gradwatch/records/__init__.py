"""The nouns that travel through gradwatch: Snapshot, Finding, Diagnosis."""

from gradwatch.records.diagnosis import Cause, Diagnosis
from gradwatch.records.finding import Detector, Finding, GradientError, GradientWarning, Kind, Severity
from gradwatch.records.snapshot import COLUMNS, NO_VALUES, RECURRENT, Array, Snapshot

__all__ = [
    "COLUMNS",
    "NO_VALUES",
    "RECURRENT",
    "Array",
    "Cause",
    "Detector",
    "Diagnosis",
    "Finding",
    "GradientError",
    "GradientWarning",
    "Kind",
    "Severity",
    "Snapshot",
]
