"""Remedies: values that change a copy of a model or its training, and what they are made of."""

from gradwatch.remedies.activation import ReplaceActivations
from gradwatch.remedies.detached import UnfreezeAll
from gradwatch.remedies.initialization import InitializeAgain
from gradwatch.remedies.normalization import InsertNormalization, NormalizeFirst
from gradwatch.remedies.recurrent import LSTMLikeRNN, OrthogonalRecurrence, ReplaceRecurrence, draw_recurrent_
from gradwatch.remedies.remedy import Advice, Combination, Remedy
from gradwatch.remedies.residual import AddSkips, Skip
from gradwatch.remedies.setup import NotApplicable, Setup

__all__ = [
    "AddSkips",
    "Advice",
    "Combination",
    "InitializeAgain",
    "InsertNormalization",
    "LSTMLikeRNN",
    "NormalizeFirst",
    "NotApplicable",
    "OrthogonalRecurrence",
    "Remedy",
    "ReplaceActivations",
    "ReplaceRecurrence",
    "Setup",
    "Skip",
    "UnfreezeAll",
    "draw_recurrent_",
]
