"""One run of a case, bare or watched, and the comparison of both."""

from __future__ import annotations

import gc
import random
import re
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo_evidence import (
    Trail,
    assert_same,
    global_hooks,
    global_settings,
    hooks_on,
    mark_graph,
    place_of,
    random_state,
    weights_of,
    with_tensors,
)

import gradwatch
from gradwatch import GradientMonitor, GradientTransform, Snapshot

OPTIONS: dict[str, Any] = {"on_finding": lambda finding: None, "on_error": "raise"}
OFTEN: dict[str, Any] = {"every_n_steps": 1}
SELDOM: dict[str, Any] = {"every_n_steps": 2, "dense_steps": 0, "total_norm_every_step": True}


class Bare:
    """Takes the place of a Watcher, and only steps the optimizer."""

    history: tuple[Snapshot, ...] = ()

    def begin(self) -> None: ...

    def read(self, optimizer: Any, scale: Any = None) -> None: ...

    def read_again(self) -> None: ...

    def end(self, loss: Any = None, **_: Any) -> None: ...

    def step(self, optimizer: Any, loss: Any = None, *, scaler: Any = None, **kwargs: Any) -> None:
        scaler.step(optimizer) if scaler is not None else optimizer.step(**kwargs)


class Run:
    """One run of a case.

    Args:
        how: ``"bare"``; ``"watched"`` in each step; ``"seldom"`` watched; or, in a fit, ``"transformed"``: seldom
            watched, with a transform that does nothing behind the monitor.
        place: where its folder is made once it is asked for.
    """

    def __init__(self, how: str, place: Path) -> None:
        self.how, self.place = how, place
        self.losses: list[float] = []
        self.history: list[Snapshot] = []
        self._kept: list[Any] = []
        self._refs: list[tuple[str, weakref.ref[Any]]] = []
        self._watchers: list[Any] = []
        self.own: list[Callback] | None = None
        self._holds_models = False  # a Watcher does, as its user wants it, and with them what they hold

    def __deepcopy__(self, memo: Any) -> Run:
        return self

    def __reduce__(self) -> Any:
        return Run, (self.how, self.place)

    @property
    def schedule(self) -> dict[str, Any]:
        return OFTEN if self.how == "watched" else SELDOM

    @property
    def folder(self) -> Path:
        """A folder that no other run uses."""
        self.place.mkdir(parents=True, exist_ok=True)
        return self.place

    @property
    def callbacks(self) -> list[Callback]:
        """The watching ones; the same for each Trainer of the run."""
        if self.own is None:
            self.own = self.new_callbacks()
        return self.own

    def new_callbacks(self, **options: Any) -> list[Callback]:
        if self.how == "bare":
            return []
        monitor = GradientMonitor(**{**OPTIONS, **self.schedule, "summary": False, **options})
        self._watchers.append(monitor)
        idle = GradientTransform(lambda params, context: None)
        return [monitor, idle] if self.how == "transformed" else [monitor]

    def trainer(self, *callbacks: Callback, own: Sequence[Callback] | None = None, **settings: Any) -> Trainer:
        """A quiet Trainer; the run's own callbacks come before those of the case."""
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
        defaults = {"accelerator": "cpu", "devices": 1, "log_every_n_steps": 1, "default_root_dir": self.place}
        own = self.callbacks if own is None else own
        return Trainer(callbacks=[*own, *callbacks], **{**defaults, **quiet, **settings})

    def watch(self, model: nn.Module, **options: Any) -> Any:
        self._holds_models = True
        if self.how == "bare":
            return nullcontext(Bare())
        self._watchers.append(gradwatch.watch(model, **{**OPTIONS, **self.schedule, **options}))
        return self._watchers[-1]

    def keep(self, value: Any) -> Any:
        """Have a model or an optimizer compared at the end."""
        self._kept.append(value)
        return value

    def note(self, loss: Tensor, batch: Any = None) -> Tensor:
        """Have a loss compared, and see to it that it, its graph and its batch do not outlive the run."""
        self.losses.append(loss.detach().double().item())
        self._refs += [(name, weakref.ref(value)) for name, value in self._mortals(loss, batch)]
        return loss

    def _mortals(self, loss: Tensor, batch: Any) -> Iterator[tuple[str, Any]]:
        yield "a loss", loss
        yield "a graph", mark_graph(loss)
        for leaf in tree_leaves(batch):
            if isinstance(leaf, Tensor):
                yield "a batch", leaf

    def trail(self, train: Callable[[Run], None]) -> Trail:
        """Train, and return all that can be compared."""
        torch.manual_seed(0), np.random.seed(0), random.seed(0)  # noqa: NPY002
        trail, settings, hooks = Trail(), global_settings(), global_hooks()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                train(self)
            except (Exception, KeyboardInterrupt, SystemExit) as error:
                trail.error, trail.where = self._plain(f"{type(error).__name__}: {error}"), place_of(error)
        trail.warnings = {(warning.category, self._plain(warning.message)) for warning in caught}
        trail.rng = random_state()
        trail.losses = [np.float64(loss).tobytes() for loss in self.losses]
        trail.settings = {"before": settings, "after": global_settings()}
        torch.use_deterministic_algorithms(settings["deterministic"])
        trail.hooks = [f"global: {name}" for name in global_hooks() if name not in hooks]
        self._look_at_what_is_kept(trail)
        trail.alive = self._alive()
        self.history = [snapshot for watcher in self._watchers for snapshot in watcher.history]
        return trail

    def _look_at_what_is_kept(self, trail: Trail) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for i, kept in enumerate(self._kept):
                trail.weights |= {f"{i}.{name}": stored for name, stored in weights_of(kept)}
                trail.hooks += [f"{i}.{hook}" for hook in hooks_on(kept)]
                if not self._holds_models:
                    self._refs += [(type(value).__name__, weakref.ref(value)) for value in with_tensors(kept)]
        if not self._holds_models:
            self._kept.clear()

    def _alive(self) -> set[str]:
        gc.collect()
        if any(ref() is not None for _, ref in self._refs):
            gc.collect()  # what tensors of a cycle held goes a turn later than they
        return {name for name, ref in self._refs if ref() is not None}

    def _plain(self, message: object) -> str:
        return re.sub(r"0x[0-9a-f]+", "0x", str(message)).replace(str(self.place), "FOLDER")


def check(train: Callable[[Run], None], case: Any, place: Path, *watched: str, may_fail: bool = False) -> None:
    """Run a case bare and watched, and compare; ``may_fail`` lets the bare run end with any error."""
    bare = Run("bare", place / case.name / "bare").trail(train)
    if not may_fail:
        assert case.error in bare.error if case.error else not bare.error, f"the bare run ended with {bare.error}"
        assert bare.losses or case.error or case.idle, "the case noted no loss"
    for how in watched:
        run = Run(how, place / case.name / how)
        trail = run.trail(train)
        trail.warnings = {(kind, text) for kind, text in trail.warnings if not case.says or case.says not in text}
        assert_same(bare, trail)
        if case.expect is not None:
            case.expect(run.history)
