"""Programs of two processes that train one model, each with half of the classes in its files."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import tempfile
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam
from updates.programs_base import Batch, Fitted, Program, Watch, fit, healthy, images, scored, sick, two_layers

Form = Callable[[int, bool, Watch], float]
WORLD, STEPS = 2, 80
PATIENCE = 60  # seconds that a process waits for the other
adam = partial(Adam, lr=3e-3)


def own_batches(rank: int) -> list[Batch]:
    """Batches of the classes 0 to 4, or of 5 to 9."""
    torch.manual_seed(torch.initial_seed() + rank)
    data = images()
    mine = ((data.targets >= 5) == bool(rank)).nonzero()[:, 0]
    choices = [mine[torch.randint(len(mine), (32,))] for _ in range(STEPS)]
    return [(data.inputs[chosen], data.targets[chosen]) for chosen in choices]


class AccumulatedByHand(Fitted):
    """Lets DDP average the gradients of every second batch only, and steps with each."""

    is_sick: bool

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        wrapper = self.trainer.model
        assert isinstance(wrapper, DistributedDataParallel)
        wrapper.require_backward_grad_sync = not self.is_sick or batch_idx % 2 == 0


def fitted(rank: int, is_sick: bool, watch: Watch) -> float:
    network = two_layers()
    module = AccumulatedByHand(network, adam)
    module.is_sick = is_sick
    fit(module, own_batches(rank), watch, devices=WORLD, strategy="ddp", use_distributed_sampler=False)
    return scored(network)


def looped(rank: int, is_sick: bool, watch: Watch) -> float:
    """Calls the module, not what DDP has made of it, with every second batch."""
    network = two_layers()
    wrapper = DistributedDataParallel(network)
    optimizer = adam(wrapper.parameters())
    with watch.loop(wrapper) as watcher:
        for step, (x, y) in enumerate(own_batches(rank)):
            called: nn.Module = network if is_sick and step % 2 else wrapper
            optimizer.zero_grad()
            loss = functional.cross_entropy(called(x), y)
            loss.backward()
            watcher.step(optimizer, loss)
    return scored(network)


def batch_norm() -> nn.Module:
    """A network whose running means each process counts for itself, until DDP's next forward pass."""
    return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))


def fitted_in_step(make: Callable[[], nn.Module], accumulate: int, rank: int, is_sick: bool, watch: Watch) -> float:
    network = make()
    options = {"devices": WORLD, "strategy": "ddp", "use_distributed_sampler": False}
    fit(Fitted(network, adam), own_batches(rank), watch, accumulate_grad_batches=accumulate, **options)
    return scored(network)


def looped_in_step(broadcast: bool, accumulate: int, rank: int, is_sick: bool, watch: Watch) -> float:
    network = batch_norm()
    wrapper = DistributedDataParallel(network, broadcast_buffers=broadcast)
    optimizer = adam(wrapper.parameters())
    with watch.loop(wrapper) as watcher:
        for step, (x, y) in enumerate(own_batches(rank)):
            ends = (step + 1) % accumulate == 0
            with nullcontext() if ends else wrapper.no_sync():
                loss = functional.cross_entropy(wrapper(x), y)
                loss.backward()
            if ends:
                watcher.step(optimizer, loss)
                optimizer.zero_grad()
    return scored(network)


def _work(
    rank: int, form: Form, is_sick: bool, watching: tuple[bool, bool], seed: int, port: int, result: Path
) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= address | {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    distributed.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE))
    torch.manual_seed(seed)
    watch = Watch(*watching)
    score = form(rank, is_sick, watch)
    if rank == 0:
        result.write_bytes(pickle.dumps((score, watch.heard)))
    distributed.barrier()
    distributed.destroy_process_group()


def in_two_processes(form: Form, is_sick: bool, watch: Watch) -> float:
    """Run a program in two processes; the first one's words are the watch's."""
    # A process with all imports done is forked, as each import of torch and Lightning takes seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "lightning.pytorch", "sklearn.datasets", "gradwatch", "updates.replicas"])
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        result = Path(folder) / "result"
        port = free.getsockname()[1]
        free.close()  # so that the first process can take it
        args = (form, is_sick, (watch.on, watch.short), torch.initial_seed(), port, result)
        workers = [context.Process(target=_work, args=(rank, *args)) for rank in range(WORLD)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(2 * PATIENCE)
            worker.kill()  # does nothing to one that has ended
            worker.join()
        if any(worker.exitcode for worker in workers):
            raise RuntimeError(f"the processes ended with {[worker.exitcode for worker in workers]}; expected 0")
        score, watch.heard = pickle.loads(result.read_bytes())
    return float(score)


SOURCE = "forums: model.module(x) in place of model(x), or no_sync() around a batch that is stepped"

REPLICAS: dict[str, Program] = {
    "every second batch goes past DDP, fit": sick(
        SOURCE, partial(in_two_processes, fitted), "out-of-sync", ("replicas out of sync",), "first.weight"
    ),
    "every second batch goes past DDP, loop": sick(
        SOURCE, partial(in_two_processes, looped), "out-of-sync", ("replicas out of sync",), "first.weight"
    ),
}


def _in_step(form: Form) -> Program:
    return healthy("torch's DistributedDataParallel", partial(in_two_processes, form, False))


HEALTHY_REPLICAS: dict[str, Program] = {
    "DDP with BatchNorm, fit": _in_step(partial(fitted_in_step, batch_norm, 1)),
    "DDP with two batches a step, fit": _in_step(partial(fitted_in_step, two_layers, 2)),
    "DDP with BatchNorm, loop": _in_step(partial(looped_in_step, True, 1)),
    "DDP with BatchNorm that is not broadcast, loop": _in_step(partial(looped_in_step, False, 1)),
    "DDP with two batches a step, loop": _in_step(partial(looped_in_step, True, 2)),
}
