"""Choosing remedies, trying them on copies of a model, and the result."""

from gradwatch.trial.result import Row, Trial
from gradwatch.trial.suggestion import suggest
from gradwatch.trial.trial import try_remedies

__all__ = ["Row", "Trial", "suggest", "try_remedies"]
