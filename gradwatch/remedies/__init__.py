"""Remedies: values that change a copy of a model or its training, and the modules they insert."""

from gradwatch.remedies.activation import ReplaceActivations
from gradwatch.remedies.branches import ScaleBranches, ScaledBranch
from gradwatch.remedies.gradients import Clip, ClipOutliers, NormalizeGradients, RemoveClip, SkipBadSteps
from gradwatch.remedies.guard import GuardOperations
from gradwatch.remedies.head import FixHead, RemoveLastActivation
from gradwatch.remedies.initialization import InitializeAgain
from gradwatch.remedies.normalization import InsertNormalization, NormalizeFirst, ResetNormalization
from gradwatch.remedies.optimizer import ChangeOptimizer, LowerLearningRate, RaiseLearningRate, WarmUp
from gradwatch.remedies.precision import ScaleLoss, UseBfloat16
from gradwatch.remedies.recurrent import LSTMLikeRNN, OrthogonalRecurrence, ReplaceRecurrence, draw_recurrent_
from gradwatch.remedies.remedy import Advice, Combination, NotApplicable, Remedy, Setup
from gradwatch.remedies.residual import AddSkips, Skip
from gradwatch.remedies.scaling import Rescale, RescaleInputs, RescaleTargets, StandardScaler
from gradwatch.remedies.smooth import SmoothSteps
from gradwatch.remedies.unfreeze import KeepGraph, TrainAll, UnfreezeAll

__all__ = [
    "AddSkips", "Advice", "ChangeOptimizer", "Clip", "ClipOutliers", "Combination", "FixHead", "GuardOperations",
    "InitializeAgain", "InsertNormalization", "KeepGraph", "LSTMLikeRNN", "LowerLearningRate", "NormalizeFirst",
    "NormalizeGradients", "NotApplicable", "OrthogonalRecurrence", "RaiseLearningRate", "Remedy", "RemoveClip",
    "RemoveLastActivation", "ReplaceActivations", "ReplaceRecurrence", "Rescale", "RescaleInputs", "RescaleTargets",
    "ResetNormalization", "ScaleBranches", "ScaleLoss", "ScaledBranch", "Setup", "Skip", "SkipBadSteps", "SmoothSteps",
    "StandardScaler", "TrainAll", "UnfreezeAll", "UseBfloat16", "WarmUp", "draw_recurrent_",
]  # fmt: skip
