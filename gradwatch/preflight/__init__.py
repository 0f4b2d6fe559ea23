"""Checks of a model before training, from one forward and backward pass."""

from gradwatch.preflight.before_training import Preflight, diagnose

__all__ = ["Preflight", "diagnose"]
