"""Short watched trainings of a copy, for tests and smoke checks."""

from gradwatch.runs.looped import train_in_a_loop
from gradwatch.runs.result import Run
from gradwatch.runs.trained import train_with_a_trainer

__all__ = ["Run", "train_in_a_loop", "train_with_a_trainer"]
