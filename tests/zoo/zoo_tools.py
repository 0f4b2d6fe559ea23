"""Tools that take a model apart, or read what a fit writes, while it is watched."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.ao import quantization
from zoo import WIDTH, Net, Run, Scale, fit, has_columns, in_step, loop, mean_square, mlp, module, rows, sgd
from zoo_learner import TAKES_TRUST
from zoo_manual import FIRST, trains
from zoo_parametrized import at
from zoo_trainers import Usual


def linears() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))


@in_step(linears)
def layers_fused_during_a_run(model: nn.Module, batch: Tensor) -> None:
    """The fused layer takes over the hooks of its parts."""
    if at(1, model):
        quantization.fuse_modules_qat(model, [["0", "1"], ["2", "3"]], inplace=True)


@in_step(linears)
def layers_fused_in_a_copy(model: nn.Module, batch: Tensor) -> None:
    twin = copy.deepcopy(model).eval()
    quantization.fuse_modules(twin, [["0", "1"]])(batch)


@in_step(linears)
def prepared_for_quantization_during_a_run(model: nn.Module, batch: Tensor) -> None:
    """Each layer is swapped for another that takes over its hooks."""
    if at(1, model):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
            quantization.prepare_qat(model, inplace=True)


@in_step(linears)
def quantized_in_a_copy(model: nn.Module, batch: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize_dynamic(copy.deepcopy(model).eval(), {nn.Linear})(batch)


@in_step(linears)
def layers_swapped_with_their_hooks(model: nn.Module, batch: Tensor) -> None:
    """As tools do that replace layers: the new one is given the old one's dict."""
    if at(1, model):
        new = nn.Linear(WIDTH, WIDTH)
        new.__dict__.update(model[0].__dict__)
        model[0] = new


@in_step(linears)
def layers_swapped_for_copies(model: nn.Module, batch: Tensor) -> None:
    if at(1, model):
        model[2] = copy.deepcopy(model[2])


def typed_hook(self: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
    return output * 2


def with_a_typed_hook() -> nn.Module:
    model = linears()
    model[0].register_forward_hook(typed_hook)
    return model


@in_step(with_a_typed_hook)
def scripted_with_a_hook_of_the_users(model: nn.Module, batch: Tensor) -> None:
    assert torch.equal(torch.jit.script(model)(batch), model(batch))


def once(model: nn.Module) -> bool:
    return at(0, model)


@in_step()
def compiled_as_one_graph(model: nn.Module, batch: Tensor) -> None:
    if once(model):
        torch.compile(model, backend="eager", fullgraph=True)(batch)
        torch._dynamo.reset()


@module()
def in_parallel_on_nothing() -> nn.Module:
    return nn.DataParallel(mlp())


class Drawn(Usual):
    """Has an example from which its graph can be drawn."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.example_input_array = torch.ones(2, WIDTH)


@fit(expect=FIRST)
def graph_drawn_in_tensorboard(run: Run) -> None:
    class Draws(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                trainer.logger.experiment.add_graph(pl_module.net, torch.ones(2, WIDTH))

    logger = TensorBoardLogger(run.folder, log_graph=True)
    run.trainer(Draws(), max_epochs=1, logger=logger, enable_model_summary=True).fit(run.keep(Drawn(run)))


class Tells(Callback):
    """Takes the metrics that callbacks see for losses."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        pl_module.run.losses.append(float(trainer.callback_metrics.get("grad_norm_total", -1.0)))

    on_validation_end = on_train_epoch_end = on_train_batch_end


@fit(expect=FIRST)
def metric_of_the_users_that_has_our_name(run: Run) -> None:
    class Logs(Usual):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.log("grad_norm_total", 7.0 - batch_idx)
            return self.loss()

    stop = EarlyStopping("grad_norm_total", patience=1, mode="max", check_on_train_epoch_end=True)
    run.trainer(Tells(), stop, max_epochs=3).fit(run.keep(Logs(run)))


@fit(expect=FIRST)
def callback_of_the_users_that_has_findings(run: Run) -> None:
    class Finds(Callback):
        findings = ("a finding", 3)

    own = [Finds(), *run.callbacks]
    run.trainer(own=own, max_epochs=1).fit(run.keep(Net(run)))


def sick() -> nn.Module:
    """Its gradient vanishes, so that there are findings."""
    return nn.Sequential(*(layer for _ in range(7) for layer in (nn.Linear(WIDTH, WIDTH), nn.Sigmoid())))


@fit(skip="" if TAKES_TRUST else "this Lightning trusts all checkpoints")
def checkpoint_of_a_sick_network_read_as_weights_only(run: Run) -> None:
    """A checkpoint that could be read without trusting it can still be."""
    keep = ModelCheckpoint(run.folder, "last", every_n_train_steps=2)
    run.trainer(keep, max_steps=4, enable_checkpointing=True).fit(run.keep(Net(run, sick())))
    torch.load(run.folder / "last.ckpt", weights_only=True)
    resumed = run.trainer(own=run.new_callbacks(), max_steps=6)
    resumed.fit(run.keep(Net(run, sick())), ckpt_path=run.folder / "last.ckpt", weights_only=True)


@fit()
def checkpoint_resumed_by_default(run: Run) -> None:
    keep = ModelCheckpoint(run.folder, "last", every_n_train_steps=2)
    run.trainer(keep, max_steps=2, enable_checkpointing=True).fit(run.keep(Net(run)))
    run.trainer(own=run.new_callbacks(), max_steps=4).fit(run.keep(Net(run)), ckpt_path=run.folder / "last.ckpt")


@loop()
def model_that_is_copied_by_hand(run: Run) -> None:
    """A copy that shares the hooks' tables with the watched model, as it is made of its dict."""
    model = run.keep(mlp())
    optimizer = run.keep(sgd(model))
    with run.watch(model) as watcher:
        for _ in range(3):
            twin = nn.Sequential.__new__(nn.Sequential)
            twin.__dict__ = model.__dict__.copy()
            twin(rows()).sum().backward()
            optimizer.zero_grad()
            loss = run.note(mean_square(model, rows()))
            loss.backward()
            watcher.step(optimizer, loss)


@loop()
def part_of_a_model_that_is_watched(run: Run) -> None:
    model = run.keep(nn.ModuleDict({"watched": mlp(), "other": Scale()}))
    optimizer = run.keep(sgd(model))
    with run.watch(model["watched"]) as watcher:
        for _ in range(3):
            optimizer.zero_grad()
            loss = run.note(mean_square(model["watched"], model["other"](rows())))
            loss.backward()
            watcher.step(optimizer, loss)


@fit(expect=has_columns("grad_norm", layer="0"))
def edited_by_a_module_that_replaces_its_gradients(run: Run) -> None:
    class Replaces(Net):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            for param in self.parameters():
                param.grad = param.grad.to_sparse() if param.dim() == 2 else param.grad.clone()

        def configure_optimizers(self) -> Any:
            return self.run.keep(torch.optim.SGD(self.parameters(), lr=0.05))

    trains(run, Replaces(run))
