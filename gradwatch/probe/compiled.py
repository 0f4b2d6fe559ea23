"""Layers inside compiled code, where no hook is called, and measured steps without the compiled code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import distributed, nn

from gradwatch.containment import say
from gradwatch.probe.layers import is_scripted, named_modules
from gradwatch.torch_internals import is_compiled_function, is_compiled_in_place


class HookableLayers:
    """The layers that hooks can read: not those in compiled code, unless that is switched off for measured steps.

    A hook that is there while code is compiled becomes a part of that code: it breaks ``fullgraph=True`` and runs even
    after it is removed. A hook that comes later is not called. So none is put there.

    Args:
        eagerly: switch compiled code off, in the whole process, for the length of a measured step.

    Attributes:
        layers: name -> layer that can be read.

    Raises:
        ValueError: when this torch can't switch compiled code off.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], *, eagerly: bool) -> None:
        if eagerly and not hasattr(torch.compiler, "set_stance"):
            raise ValueError(
                f"measure_eagerly=True needs torch 2.6 or newer, this is {torch.__version__}; leave it out"
            )
        self._eagerly = eagerly
        self._switched_off = ExitStack()
        self._hidden = [] if eagerly else compiled_layers(model, layers)
        self._all = list(layers)
        self._has_warned = False
        self.layers = {name: module for name, module in layers.items() if name not in set(self._hidden)}

    def begin_step(self) -> None:
        """Switch compiled code off, where that was asked for."""
        if self._eagerly:
            self._switched_off.enter_context(torch.compiler.set_stance("force_eager"))

    def end_step(self) -> None:
        """Switch compiled code on again; nothing is recompiled."""
        self._switched_off.close()

    def is_blocked(self, *, unseen: bool) -> bool:
        """Return True if hooks can read no layer at all; warn once which layers can't be read, and what to do.

        Args:
            unseen: layers have gradients, and none was called as a module.
        """
        count, lost = len(self._all), unseen and not self._hidden
        if self._hidden and not self._has_warned:
            what = (
                f"{len(self._hidden)} of {count} layers ({_few(self._hidden)}) run inside compiled code, where no hook"
            )
            _warn(f"{what} is called.")
        elif lost and not self._has_warned:
            _warn(
                f"none of {count} layers ({_few(self._all)}) was called as a module: the model was compiled from "
                "outside, as in fast = torch.compile(model), or computes with its parameters directly."
            )
        self._has_warned = self._has_warned or lost or bool(self._hidden)
        return lost


def compiled_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[str]:
    """Return the layers in compiled code, as far as modules show: a function compiled elsewhere leaves no mark on them.

    Args:
        model: the whole module; a part may be compiled by ``torch.compile(part)``, ``part.compile()``, a compiled
            ``forward`` or (a LightningModule) a compiled ``training_step``.
        layers: name -> module.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 1)))
        >>> model[1].compile()
        >>> compiled_layers(model, dict(model.named_modules()))
        ['1', '1.0']
    """
    inside = {id(part) for _, module in named_modules(model) for part in _compiled_parts(module)}
    return [name for name, module in layers.items() if id(module) in inside]


def _compiled_parts(module: nn.Module) -> list[nn.Module]:
    if is_compiled_in_place(module) or _is_compiled(module, "training_step"):
        return [part for _, part in named_modules(module)]
    # The hooks of a module with a compiled forward are called around that, so only its parts are hidden.
    return [part for _, part in named_modules(module)][1:] if _is_compiled(module, "forward") else []


def _is_compiled(module: nn.Module, method: str) -> bool:
    # Past a user's __getattr__; the methods of a script are no functions of Python.
    found = None if is_scripted(module) else module.__dict__.get(method, getattr(type(module), method, None))
    return is_compiled_function(found)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _warn(what: str) -> None:
    if distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0:
        return
    say(
        f"{what} The columns of their outputs (grad_output_norm, gain, output_rms, dead and saturated units) are "
        "missing, and what needs them is not detected; the gradients of their parameters are read. Compiled code is "
        "read too with measure_eagerly=True, which runs the measured steps without it."
    )
