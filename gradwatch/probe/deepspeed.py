"""Tells models and optimizers of DeepSpeed, whose gradients cannot be read, so that they are refused."""

from __future__ import annotations

from typing import Any

from torch import nn

from gradwatch.containment import SettingError
from gradwatch.probe.layers import named_modules, named_parameters

# Of DeepSpeed, of Accelerate around it, and of Lightning. By name, as none of them is imported here.
_NAMES = ("DeepSpeedEngine", "DeepSpeedEngineWrapper", "DeepSpeedOptimizerWrapper", "DeepSpeedStrategy")
# What ZeRO puts on the parameters: its own number (stage 3), and the way to its copy in float32 (stages 1 and 2).
_MARKS = ("ds_id", "_hp_mapping")
WAY_OUT = (
    "DeepSpeed keeps gradients to itself: .grad is None when the optimizer steps, so there is nothing to {what}; use "
    "DDP or FSDP2, or train some hundred steps without DeepSpeed to see what is wrong"
)


def refuse_deepspeed(model: nn.Module) -> None:
    """Raise a SettingError for a model that DeepSpeed trains: its engine, a module in it, or the parameters of ZeRO.

    Without it a sound run would be called ``stalled``: with ZeRO no parameter has a gradient, and the optimizer holds
    none of them.

    Example:
        >>> class DeepSpeedEngine(nn.Module):
        ...     pass
        >>> refuse_deepspeed(DeepSpeedEngine())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        gradwatch.containment.SettingError: the model is a DeepSpeedEngine (deepspeed.initialize, or Accelerate ...
    """
    engine = next((module for _, module in named_modules(model) if is_of_deepspeed(module)), None)
    if engine is not None:
        kind = type(engine).__name__
    elif any(_is_marked(param) for _, param, _ in named_parameters(model)):
        kind = "module with parameters of ZeRO"
    else:
        return
    how = "deepspeed.initialize, or Accelerate with a deepspeed_plugin"
    raise SettingError(f"the model is a {kind} ({how}). {WAY_OUT.format(what='watch')}")


def refuse_optimizer(optimizer: Any) -> None:
    """Raise a NotImplementedError for an optimizer of DeepSpeed, whose groups hold pieces of joined parameters."""
    if is_of_deepspeed(optimizer):
        raise NotImplementedError(f"the optimizer is a {type(optimizer).__name__}. {WAY_OUT.format(what='watch')}")


def is_of_deepspeed(value: object) -> bool:
    """Return True for an object of DeepSpeed, or a wrapper of one in another library, by the names of its classes."""
    kinds = type(value).__mro__
    is_zero = any(kind.__module__.split(".")[:2] == ["deepspeed", "runtime"] for kind in kinds)
    return is_zero or any(kind.__name__ in _NAMES for kind in kinds)


def _is_marked(param: nn.Parameter) -> bool:
    return any(getattr(param, mark, None) is not None for mark in _MARKS)
