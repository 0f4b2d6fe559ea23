"""Callback that runs transforms on the gradients at chosen layers' outputs, during the backward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradwatch.callbacks.releases_module import ReleasesModule
from gradwatch.containment import Containment, OnError, SettingError
from gradwatch.probe.call_log import tensors_in
from gradwatch.probe.layers import find_layers, is_scripted
from gradwatch.probe.module_hooks import ModuleHook
from gradwatch.torch_internals import is_transformed
from gradwatch.transforms import Chain, StepContext, Transform, When
from gradwatch.transforms.transform import walk

_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)  # came after torch 2.4


class BackwardTransform(ReleasesModule):
    """Edit the gradient as it flows back through the outputs of chosen layers, with no change to the model.

    All layers before a chosen one get the edited gradient, which is no longer the gradient of the loss. Use it as a
    remedy for gradients that vanish or explode over depth, or over time in a cell that is called once a time step. A
    transform sees the gradient at one output of one call in this process: of its own micro-batch, before accumulation
    and before ranks are averaged.

    Args:
        transforms: a transform, a function of ``(params, context)``, or a list of them. ``params`` holds one parameter,
            with the layer's name, whose ``.grad`` is the gradient. Transforms with a history keep one for each layer.
        layers: shell patterns of the layers, such as ``encoder.*``.
        on_error: ``"warn"`` skips a layer from the step on at which its output can't be edited, ``"raise"`` ends the
            fit; None takes the environment variable ``GRADWATCH_ON_ERROR``, and ``"warn"`` where it is not set. An
            error of a transform always ends the fit.

    Raises:
        ValueError: when a pattern matches no layer, or the name of a layer a TorchScript module, at the start of the
            fit; for transforms that need weights (``AdaptiveClip``, ``ScaleByTrustRatio``), remove gradients
            (``SkipNonFinite``) or wait for a finding; for an unknown ``on_error``.

    Code that is compiled during the fit contains the hooks; with ``fullgraph=True`` torch refuses them. Gradients are
    not edited under ``torch.func`` and tracing, of empty and nested tensors, and in a backward pass with
    ``create_graph=True`` (a gradient penalty), whose gradients are part of the loss.

    Non-finite gradients: see the transforms.
    Cost: one call of the transforms for each chosen output. Under fp16 gradients are divided by the loss scale, edited
    in float32, and multiplied again; the scale is read once a batch, which is a sync.

    Example:
        >>> from gradwatch.transforms import Standardize
        >>> BackwardTransform(Standardize(), layers=["encoder.*"]).transform
        Chain(transforms=(Standardize(eps=1e-10),))
    """

    def __init__(
        self,
        transforms: list[Transform | Callable[..., Any]] | Transform | Callable[..., Any],
        layers: Sequence[str],
        on_error: OnError | None = None,
    ) -> None:
        self.transform = Chain(transforms if isinstance(transforms, (list, tuple)) else [transforms])
        self.layers = [layers] if isinstance(layers, str) else list(layers)
        _refuse_unsuited(self.transform)
        if not self.layers:
            raise ValueError("layers is empty; expected at least one pattern, such as 'encoder.*'")
        self._containment = Containment(on_error)
        self._chains: dict[str, Chain] = {}
        self._handles: list[RemovableHandle] = []
        self._leaves: list[tuple[str, Tensor, RemovableHandle]] = []
        self._silent: set[str] = set()
        self._scale: float | None = None
        self._context = StepContext()

    @property
    def state_key(self) -> str:
        """Key with the layers in it, so that a Trainer may have several of these callbacks."""
        return self._generate_state_key(layers=self.layers)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put a forward hook on each chosen layer."""
        self._remove()
        chosen = self._hookable(find_layers(pl_module, self.layers))
        self.transform.check(list(chosen))
        self._containment = Containment(self._containment.on_error, speaks=trainer.is_global_zero)
        self._silent = set()
        for name, module in chosen.items():
            self._containment.run(f"layer {name}", self._hook_module, name, module)

    def _hookable(self, chosen: dict[str, nn.Module]) -> dict[str, nn.Module]:
        scripted = [name for name, module in chosen.items() if is_scripted(module)]
        by_name = [name for name in scripted if name in self.layers]
        if by_name or (scripted and len(scripted) == len(chosen)):
            raise SettingError(
                f"layers={self.layers} chooses {(by_name or scripted)[0]!r}, a TorchScript module, which takes no "
                "hooks; expected a Python module, such as the layer before it"
            )
        if scripted:
            rank_zero_warn(f"nothing is transformed at {', '.join(scripted)}: TorchScript modules take no hooks")
        return {name: module for name, module in chosen.items() if name not in scripted}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Read the loss scale, if there is one."""
        self._context = StepContext(trainer.global_step)
        self._containment.step = trainer.global_step
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._scale = None if scaler is None else float(scaler.get_scale())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remove hooks that would outlive the batch; after the first one, warn of layers without a gradient."""
        self._remove_from_leaves()
        if self._silent:
            rank_zero_warn(
                f"in the first batch no gradient reached the output of {', '.join(sorted(self._silent))}, so nothing "
                "was transformed there: the layer was not called, is frozen with all layers before it, or was "
                "compiled and called before the fit began"
            )
            self._silent = set()

    def _hook_module(self, name: str, module: nn.Module) -> None:
        self._handles.append(module.register_forward_hook(ModuleHook(self._after_forward, name)))
        self._silent.add(name)

    def _after_forward(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if torch.compiler.is_compiling():  # this code is then compiled too, and has to stay plain
            if not _is_exporting():
                for tensor in tensors_in(output):
                    if tensor.requires_grad:
                        tensor.register_hook(lambda grad: self._edit(name, grad))  # type: ignore[no-untyped-call]
        elif torch.is_grad_enabled() and not is_transformed():
            self._containment.run(f"layer {name}", self._hook_output, name, output)

    def _hook_output(self, name: str, output: Any) -> None:
        for tensor in tensors_in(output):
            if tensor.grad_fn is not None:
                tensor.register_hook(lambda grad: self._edit(name, grad))  # type: ignore[no-untyped-call]
            elif tensor.requires_grad:
                self._hook_leaf(name, tensor)

    def _hook_leaf(self, name: str, leaf: Tensor) -> None:
        """Hook a parameter or input that a layer returns; it outlives the batch, so its hook is removed afterwards."""
        if not any(known is leaf and of == name for of, known, _ in self._leaves):
            hook = ModuleHook(self._edit, name)
            self._leaves.append((name, leaf, leaf.register_hook(hook)))  # type: ignore[no-untyped-call]

    def _edit(self, name: str, grad: Tensor | None) -> Tensor | None:
        if grad is None or not _is_editable(grad):  # None: the loss does not depend on this output
            return None
        self._silent.discard(name)
        param = self._containment.run(f"layer {name}", self._as_parameter, grad)
        if param is None or param.grad is None:
            return None
        self._chain_of(name)({name: param}, self._context)
        if self._scale is not None:
            param.grad.mul_(self._scale)
        return param.grad.to(grad.dtype)

    def _as_parameter(self, grad: Tensor) -> nn.Parameter:
        """Return a parameter whose ``.grad`` is a copy of a gradient, divided by the loss scale."""
        dtype = torch.float32 if self._scale is not None and grad.itemsize < 4 else grad.dtype
        param = nn.Parameter(torch.empty_like(grad, dtype=dtype), requires_grad=False)
        param.grad = grad.detach().to(param.dtype, copy=True)
        if self._scale is not None:
            param.grad.div_(self._scale)
        return param

    def _chain_of(self, name: str) -> Chain:
        if name not in self._chains:
            self._chains[name] = copy.deepcopy(self.transform)
        return self._chains[name]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each layer's chain."""
        return {name: chain.state_dict() for name, chain in self._chains.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was made."""
        for name, state in state_dict.items():
            self._chain_of(name).load_state_dict(state)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the hooks."""
        self._remove()

    def release(self) -> None:
        """Remove the hooks, and drop all references to the module."""
        self._remove()
        super().release()

    def __getstate__(self) -> dict[str, Any]:
        """A copy, pickled or deep, has no hooks."""
        return {**super().__getstate__(), "_handles": [], "_leaves": []}

    def _remove(self) -> None:
        self._remove_from_leaves()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _remove_from_leaves(self) -> None:
        for _, _, handle in self._leaves:
            handle.remove()
        self._leaves.clear()


def _is_editable(grad: Tensor) -> bool:
    if torch.compiler.is_compiling():  # this runs in the forward pass, whose modes say nothing
        return True
    # A backward pass runs with gradient tracking only for create_graph=True.
    return not (torch.is_grad_enabled() or grad.is_nested or grad.numel() == 0 or is_transformed())


def _refuse_unsuited(transform: Transform) -> None:
    for part in walk(transform):
        if part.parameters_only or isinstance(part, When):
            raise ValueError(
                f"{part} can't act in the backward pass: it needs weights, removes gradients, or waits for a finding, "
                "which needs the whole backward pass; give it to GradientTransform"
            )
