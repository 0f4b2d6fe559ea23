"""Callback that trains the layers of a network one group after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from gradwatch.callbacks.releases_module import ReleasesModule
from gradwatch.checks import require_patterns, require_whole
from gradwatch.layer_kinds import is_batch_norm
from gradwatch.probe.layers import ROOT, find_layers


@dataclass(frozen=True)
class Stage:
    """Layers that are trained together for some epochs.

    Attributes:
        layers: shell patterns of the layers, such as ``encoder.*``.
        epochs: number of epochs; the last stage lasts until the fit ends.

    Example:
        >>> Stage(["encoder.*", "head"], epochs=3).epochs
        3
    """

    layers: Sequence[str]
    epochs: int = 1

    def __post_init__(self) -> None:
        require_patterns(self, layers=self.layers)
        require_whole(self, epochs=self.epochs)


class LayerwiseTraining(BaseFinetuning, ReleasesModule):
    """Train layers in stages, each for some epochs, while all others are frozen.

    Use it where a deep network does not train as a whole, because gradients vanish before they reach the first layers:
    greedy training from the output back, or a warm start of some layers before all are trained together (a last
    ``Stage(["*"])``). A frozen parameter requires no gradient and has none, so the optimizer neither moves it nor makes
    state for it. A gradient still flows through a frozen layer to a trained one before it.

    The optimizer should hold all parameters from the beginning. Parameters that it lacks when their stage begins are
    added to the first optimizer, with the settings of its first group. Parameters frozen before the fit stay frozen.

    Args:
        stages: the stages, in order.
        freeze_statistics: frozen BatchNorm layers normalize with their running statistics and don't update them;
            False lets them update.

    Raises:
        ValueError: when there is no stage; at the start of the fit when a pattern matches no layer, a stage has nothing
            to train, or DDP does not expect parameters without a gradient.

    Example:
        >>> layerwise = LayerwiseTraining([Stage(["head"], 2), Stage(["encoder.*"], 5), Stage(["*"])])
        >>> [layerwise.stage_at(epoch) for epoch in (0, 1, 2, 6, 7, 100)]
        [0, 0, 1, 1, 2, 2]

    References: Bengio, Lamblin, Popovici, Larochelle, Greedy Layer-Wise Training of Deep Networks, 2006.
    """

    def __init__(self, stages: Sequence[Stage], freeze_statistics: bool = True) -> None:
        super().__init__()
        self.stages = list(stages)
        if not self.stages:
            raise ValueError("the list of stages is empty; expected at least one Stage(layers, epochs)")
        self.freeze_statistics = freeze_statistics
        self._trainable: list[nn.Parameter] = []
        self._of_stage: list[set[int]] = []
        self._frozen_norms: list[nn.Module] = []
        self._stage: int | None = None

    def stage_at(self, epoch: int) -> int:
        """Return the index of the stage that an epoch belongs to."""
        for index, stage in enumerate(self.stages):
            epoch -= stage.epochs
            if epoch < 0:
                return index
        return len(self.stages) - 1

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Do nothing yet: strategy and optimizers have to see all parameters, and FSDP2 replaces them later."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the stages' parameters, and check that each stage can train."""
        super().on_fit_start(trainer, pl_module)
        self._trainable = [param for param in pl_module.parameters() if param.requires_grad]
        self._of_stage = [_parameters_of(stage, pl_module) for stage in self.stages]
        for stage, params in zip(self.stages, self._of_stage, strict=True):
            if not params & {id(param) for param in self._trainable}:
                raise ValueError(f"{stage} has no parameter to train: its layers have none, or they are all frozen")
        self._check_strategy(trainer)

    def _check_strategy(self, trainer: Trainer) -> None:
        model = trainer.strategy.model
        freezes = any(len(params) < len(self._trainable) for params in self._of_stage)
        if freezes and isinstance(model, DistributedDataParallel) and not model.find_unused_parameters:
            raise ValueError(
                "LayerwiseTraining leaves parameters without a gradient, for which DDP waits; "
                "expected strategy='ddp_find_unused_parameters_true'"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enter the stage of the current epoch; a run may be resumed in the middle of it."""
        self._stage = None
        for optimizer in trainer.optimizers:
            self.finetune_function(pl_module, trainer.current_epoch, optimizer)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Freeze and unfreeze parameters as the epoch's stage says."""
        stage = self.stage_at(epoch)
        if stage == self._stage:
            return
        self._stage = stage
        chosen = self._of_stage[stage]
        for param in self._trainable:
            param.requires_grad = id(param) in chosen
            if not param.requires_grad:
                param.grad = None
        self._add_missing(pl_module, optimizer, chosen)
        self._set_norms(pl_module, chosen)

    def _add_missing(self, pl_module: LightningModule, optimizer: Optimizer, chosen: set[int]) -> None:
        optimizers = pl_module.optimizers(use_pl_optimizer=False)
        every = optimizers if isinstance(optimizers, list) else [optimizers]
        known = {id(param) for one in every for group in one.param_groups for param in group["params"]}
        missing = [param for param in self._trainable if id(param) in chosen - known]
        if missing and optimizer.param_groups:  # Lightning has an empty one where configure_optimizers returns None
            settings = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
            optimizer.add_param_group({**settings, "params": missing})

    def _set_norms(self, pl_module: LightningModule, chosen: set[int]) -> None:
        norms = [module for module in pl_module.modules() if is_batch_norm(module)]
        frozen = [norm for norm in norms if not any(id(param) in chosen for param in norm.parameters())]
        for norm in self._frozen_norms:
            if norm not in frozen:
                norm.train(pl_module.training)
        self._frozen_norms = [*frozen] if self.freeze_statistics else []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Keep frozen BatchNorm layers out of training mode, which Lightning sets again after a validation."""
        for norm in self._frozen_norms:
            norm.eval()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make trainable again what was trainable before the fit."""
        for param in self._trainable:
            param.requires_grad = True
        for norm in self._frozen_norms:
            norm.train(pl_module.training)
        self._trainable, self._frozen_norms, self._stage = [], [], None
        self.release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Do the same after an error, for which Lightning does not call ``teardown``."""
        self.teardown(trainer, pl_module, "fit")


def _parameters_of(stage: Stage, pl_module: nn.Module) -> set[int]:
    found = set()
    for name, module in find_layers(pl_module, stage.layers).items():
        named = name in stage.layers and name != ROOT  # "encoder" means all that is in it, "encoder.*" its layers
        found |= {id(param) for param in module.parameters(recurse=named)}
    return found
