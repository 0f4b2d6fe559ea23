"""What one forward and backward pass tells before any training."""

from gradwatch.preflight.before_training import diagnose
from gradwatch.preflight.result import Preflight

__all__ = ["Preflight", "diagnose"]
