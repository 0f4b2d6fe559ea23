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

from gradwatch.callbacks.either import KeptCallback
from gradwatch.probe.graph import tensors_in
from gradwatch.probe.layers import find_layers
from gradwatch.transforms import Chain, StepContext, Transform, When
from gradwatch.transforms.transform import walk


class BackwardTransform(KeptCallback):
    """Edit the gradient as it flows back through the outputs of chosen layers, with no change to the model.

    All that lies in front of such a layer gets what the transform left. That is then no gradient of the loss any more;
    use it as a remedy for gradients that vanish or explode over depth, or over time in a cell that is called once a
    step. A transform sees the gradient at one output of one call, as this process has it: of its own micro-batch,
    before accumulation and before ranks are averaged.

    Args:
        transforms: a transform, a function of ``(params, context)``, or a list of them. Under ``params`` they find the
            gradient as that of a stand-in with the layer's name. Those with a history keep one for each layer.
        layers: shell patterns of the layers, such as ``encoder.*``.

    Raises:
        ValueError: when a pattern matches no layer, at the start of the fit; for transforms that need weights
            (``AdaptiveClip``, ``ScaleByTrustRatio``), remove gradients (``SkipNonFinite``) or wait for a finding.

    Compiled code takes the hooks in, if it is compiled in the fit; with ``fullgraph=True`` torch refuses them.

    Non-finite gradients: as the transforms.
    Cost: that of the transforms, for each chosen output. Under fp16 the loss scale is read once a batch, a sync:
    gradients are divided by it, edited in float32, and multiplied again.

    Example:
        >>> from gradwatch.transforms import Standardize
        >>> BackwardTransform(Standardize(), layers=["encoder.*"]).transform
        Chain(transforms=(Standardize(eps=1e-10),))
    """

    def __init__(
        self,
        transforms: list[Transform | Callable[..., Any]] | Transform | Callable[..., Any],
        layers: Sequence[str],
    ) -> None:
        self.transform = Chain(transforms if isinstance(transforms, (list, tuple)) else [transforms])
        self.layers = [layers] if isinstance(layers, str) else list(layers)
        _refuse_unsuited(self.transform)
        if not self.layers:
            raise ValueError("layers is empty; expected at least one pattern, such as 'encoder.*'")
        self._chains: dict[str, Chain] = {}
        self._handles: list[RemovableHandle] = []
        self._silent: set[str] = set()
        self._scale: float | None = None
        self._context = StepContext()

    @property
    def state_key(self) -> str:
        """Differs between callbacks for different layers, so that a Trainer may have several."""
        return self._generate_state_key(layers=self.layers)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put a forward hook on each chosen layer."""
        self._remove()
        chosen = find_layers(pl_module, self.layers)
        self.transform.check(list(chosen))
        self._silent = set(chosen)
        for name, module in chosen.items():
            self._handles.append(module.register_forward_hook(self._forward_hook(name)))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Read the loss scale, where there is one."""
        self._context = StepContext(trainer.global_step)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._scale = None if scaler is None else float(scaler.get_scale())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the first batch, say of which layers no gradient came by."""
        if self._silent:
            rank_zero_warn(
                f"in the first batch no gradient came by at the output of {', '.join(sorted(self._silent))}, so "
                "nothing was transformed there: the layer was not called, is frozen with all in front of it, or was "
                "compiled and called before the fit began"
            )
            self._silent = set()

    def _forward_hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def after_forward(module: nn.Module, inputs: Any, output: Any) -> None:
            if module.training or torch.is_grad_enabled():
                for tensor in tensors_in(output):
                    if tensor.requires_grad:
                        tensor.register_hook(lambda grad: self._edit(name, grad))  # type: ignore[no-untyped-call]

        return after_forward

    def _edit(self, name: str, grad: Tensor | None) -> Tensor | None:
        if grad is None:  # of one of several outputs that the loss does not depend on
            return None
        self._silent.discard(name)
        chain = self._chain_of(name)
        stand_in = nn.Parameter(torch.empty_like(grad, dtype=self._working_dtype(grad)), requires_grad=False)
        stand_in.grad = grad.detach().to(stand_in.dtype, copy=True)
        if self._scale is not None:
            stand_in.grad.div_(self._scale)
        chain({name: stand_in}, self._context)
        if self._scale is not None:
            stand_in.grad.mul_(self._scale)
        return stand_in.grad.to(grad.dtype)

    def _working_dtype(self, grad: Tensor) -> torch.dtype:
        return torch.float32 if self._scale is not None and grad.itemsize < 4 else grad.dtype

    def _chain_of(self, name: str) -> Chain:
        if name not in self._chains:
            self._chains[name] = copy.deepcopy(self.transform)
        return self._chains[name]

    def state_dict(self) -> dict[str, Any]:
        """The state of each layer's chain."""
        return {name: chain.state_dict() for name, chain in self._chains.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was made."""
        for name, state in state_dict.items():
            self._chain_of(name).load_state_dict(state)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the hooks."""
        self._remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the hooks."""
        self._remove()
        self.let_go()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _refuse_unsuited(transform: Transform) -> None:
    for part in walk(transform):
        if part.parameters_only or isinstance(part, When):
            raise ValueError(
                f"{part} can't act in the backward pass: it needs weights, removes gradients, or waits for a finding "
                "that the whole backward pass makes; give it to GradientTransform"
            )
