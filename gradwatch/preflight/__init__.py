"""What one forward and backward pass tells before any training."""

from gradwatch.preflight.before_training import Preflight, diagnose

__all__ = ["Preflight", "diagnose"]
