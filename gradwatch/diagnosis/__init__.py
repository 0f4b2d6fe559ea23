"""Findings and evidence -> causes, ranked, and remedies."""

from gradwatch.diagnosis.ranking import diagnose

__all__ = ["diagnose"]
