"""Findings and evidence -> a cause and remedies."""

from gradwatch.diagnosis.causes import diagnose

__all__ = ["diagnose"]
