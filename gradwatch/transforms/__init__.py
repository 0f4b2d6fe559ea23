"""Transforms: callables that edit gradients in place, and the classes to write one."""

from gradwatch.transforms.adaptive import AdaptiveClip
from gradwatch.transforms.clip import ClipByGlobalNorm, ClipByNorm, ClipByValue
from gradwatch.transforms.clip_by_history import PercentileClip, ZScoreClip
from gradwatch.transforms.compose import Chain, Only, When
from gradwatch.transforms.gradients import Gradients
from gradwatch.transforms.noise import AddNoise
from gradwatch.transforms.nonfinite import SkipNonFinite, ZeroNonFinite
from gradwatch.transforms.normalize import NormalizeByGlobalNorm, NormalizeByNorm, ScaleByTrustRatio
from gradwatch.transforms.standardize import Centralize, Standardize
from gradwatch.transforms.transform import GradientEdit, Outcome, StepContext, Transform

__all__ = [
    "AdaptiveClip", "AddNoise", "Centralize", "Chain", "ClipByGlobalNorm", "ClipByNorm", "ClipByValue", "GradientEdit",
    "Gradients", "NormalizeByGlobalNorm", "NormalizeByNorm", "Only", "Outcome", "PercentileClip", "ScaleByTrustRatio",
    "SkipNonFinite", "Standardize", "StepContext", "Transform", "When", "ZScoreClip", "ZeroNonFinite",
]  # fmt: skip
