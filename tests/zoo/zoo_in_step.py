"""Uses of a model while a step is open: it is scripted, traced, exported, copied, saved, loaded, counted, profiled."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import warnings

import torch
from lightning.pytorch.utilities.model_summary import ModelSummary
from torch import Tensor, fx, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.nn.utils.fusion import fuse_linear_bn_eval
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker
from zoo import UNCALLED, WIDTH, has_columns, in_step, mlp, module, rows, sgd

FIRST = has_columns("grad_norm", "grad_output_norm", "output_rms", layer="0")


def normalized() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


@in_step(expect=FIRST)
def scripted(model: nn.Module, batch: Tensor) -> None:
    assert torch.jit.script(model)(batch).shape == (8, 2)


@in_step(expect=FIRST)
def traced(model: nn.Module, batch: Tensor) -> None:
    assert torch.jit.trace(model, batch)(batch).shape == (8, 2)


@in_step(normalized)
def traced_and_frozen_for_inference(model: nn.Module, batch: Tensor) -> None:
    model.eval()
    torch.jit.freeze(torch.jit.trace(model, batch))(batch)
    model.train()


class Recurrent(nn.Module):
    """Puts out the states of a recurrent network alone."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


@in_step(Recurrent)
def scripted_lstm(model: nn.Module, batch: Tensor) -> None:
    torch.jit.script(model)(batch)


@in_step(Recurrent)
def traced_lstm(model: nn.Module, batch: Tensor) -> None:
    torch.jit.trace(model, batch)(batch)


@module()
def script_module_as_a_part() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), torch.jit.script(nn.Linear(WIDTH, WIDTH)), nn.ReLU(), nn.Linear(WIDTH, 2)
    )


@module()
def traced_module_as_a_part() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), torch.jit.trace(mlp(), rows()), nn.ReLU(), nn.Linear(2, 2))


@module(says=UNCALLED)
def script_module_as_the_model() -> nn.Module:
    return torch.jit.script(mlp())


@module()
def graph_module_as_a_part() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), fx.symbolic_trace(mlp()), nn.ReLU())


@in_step(expect=FIRST)
def traced_symbolically(model: nn.Module, batch: Tensor) -> None:
    assert fx.symbolic_trace(model)(batch).shape == (8, 2)


@in_step()
def exported(model: nn.Module, batch: Tensor) -> None:
    if not hasattr(model, "exported"):  # once: an export takes a while
        model.exported = [torch.export.export(model, (batch,)).graph_signature is not None]


@in_step()
def traced_into_an_fx_graph(model: nn.Module, batch: Tensor) -> None:
    if not hasattr(model, "traced"):
        model.traced = fx.experimental.proxy_tensor.make_fx(lambda x: model(x).sum())(batch) is not None


@in_step(normalized, expect=FIRST)
def copied_deeply_and_trained(model: nn.Module, batch: Tensor) -> None:
    twin = copy.deepcopy(model)
    optimizer = sgd(twin)
    twin(batch).sum().backward()
    optimizer.step()


@in_step()
def copied_shallowly_and_called(model: nn.Module, batch: Tensor) -> None:
    copy.copy(model)(batch)


@in_step(expect=FIRST)
def pickled_and_called(model: nn.Module, batch: Tensor) -> None:
    pickled = pickle.dumps(model)
    assert b"gradwatch" not in pickled, "who reads the file may not have it"
    twin = pickle.loads(pickled)
    twin(batch).sum().backward()
    assert not any(param.grad is None for param in twin.parameters())


@in_step()
def saved_whole_and_loaded(model: nn.Module, batch: Tensor) -> None:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    torch.load(file, weights_only=False)(batch)


@in_step(normalized)
def state_saved_and_loaded(model: nn.Module, batch: Tensor) -> None:
    state = {name: value.clone() * 0.9 for name, value in model.state_dict().items() if value.is_floating_point()}
    model.load_state_dict(state, strict=False)


def owned(model: nn.Module) -> torch.optim.Optimizer:
    model.owner = [sgd(model)]
    return model.owner[0]


@in_step(expect=has_columns("grad_norm", layer="0"), optimizer=owned)
def state_assigned_and_the_optimizer_updated(model: nn.Module, batch: Tensor) -> None:
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    model.owner[0].param_groups[0]["params"] = list(model.parameters())


@in_step()
def state_assigned_and_the_optimizer_not_updated(model: nn.Module, batch: Tensor) -> None:
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)


@in_step()
def parameters_swapped(model: nn.Module, batch: Tensor) -> None:
    for param in list(model.parameters()):
        torch.utils.swap_tensors(param, nn.Parameter(param.detach() * 0.9))


@in_step()
def parameters_through_a_vector(model: nn.Module, batch: Tensor) -> None:
    vector_to_parameters(parameters_to_vector(model.parameters()).detach() * 0.9, model.parameters())


@in_step(normalized)
def fused_for_inference(model: nn.Module, batch: Tensor) -> None:
    twin = copy.deepcopy(model).eval()
    fuse_linear_bn_eval(twin[0], twin[1])(batch)


@in_step(expect=FIRST)
def summarized(model: nn.Module, batch: Tensor) -> None:
    from lightning.pytorch import LightningModule

    class Shell(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.example_input_array = copy.deepcopy(model), batch

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    str(ModelSummary(Shell()))


@in_step()
def counted(model: nn.Module, batch: Tensor) -> None:
    with FlopCounterMode(model, display=False) as counter:
        model(batch)
    assert counter.get_total_flops() == 2 * 8 * (WIDTH * WIDTH * 2 + WIDTH * 2)


@in_step()
def tracked(model: nn.Module, batch: Tensor) -> None:
    with ModuleTracker():
        model(batch).sum().backward()
    model.zero_grad()


@in_step()
def profiled(model: nn.Module, batch: Tensor) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]), warnings.catch_warnings():
        model(batch)


@in_step()
def called_in_a_thread(model: nn.Module, batch: Tensor) -> None:
    def infer() -> None:
        with torch.no_grad():
            model(batch[:2])

    thread = threading.Thread(target=infer)
    thread.start()
    thread.join()


@in_step()
def trained_in_a_thread(model: nn.Module, batch: Tensor) -> None:
    thread = threading.Thread(target=lambda: model(batch[:2]).sum().backward())
    thread.start()
    thread.join()
    model.zero_grad()


@in_step()
def called_in_inference_mode(model: nn.Module, batch: Tensor) -> None:
    with torch.inference_mode():
        model(batch)


@in_step(lambda: nn.Sequential(nn.Linear(WIDTH, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2)))
def switched_to_evaluation_and_back(model: nn.Module, batch: Tensor) -> None:
    model.eval()
    with torch.no_grad():
        model(batch)
    model.train()


@in_step()
def moved_to_another_precision_and_back(model: nn.Module, batch: Tensor) -> None:
    model.double()(batch.double())
    model.float()


@in_step(says=UNCALLED)
def forgotten_by_everyone_who_hooked(model: nn.Module, batch: Tensor) -> None:
    for each in model.modules():
        each._forward_hooks.clear()
        each._forward_pre_hooks.clear()


@in_step()
def its_gradients_made_by_hand(model: nn.Module, batch: Tensor) -> None:
    for param in model.parameters():
        param.grad = torch.zeros_like(param)


@in_step()
def layer_given_other_hooks_by_force(model: nn.Module, batch: Tensor) -> None:
    model[0]._forward_hooks = type(model[0]._forward_hooks)()
