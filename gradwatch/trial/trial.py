"""Training copies of a model, each with one remedy, on the same batches, and ranking the results."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from gradwatch.checks import require_whole
from gradwatch.remedies.activation import ReplaceActivations
from gradwatch.remedies.gradients import CLIP, Clip
from gradwatch.remedies.initialization import InitializeAgain
from gradwatch.remedies.recurrent import OrthogonalRecurrence, ReplaceRecurrence
from gradwatch.remedies.remedy import Advice, Combination, NotApplicable, Remedy, Setup, copy_of
from gradwatch.remedies.scaling import LOSS_IN_UNIT
from gradwatch.short_runs.batches import first_batch, with_same_batches
from gradwatch.short_runs.run import Interrupted, Run
from gradwatch.short_runs.trainer import train_with_a_trainer
from gradwatch.trial.result import (
    TRAIN_LOSS,
    UNTREATED,
    Row,
    Trial,
    choose_metric,
    first_and_last,
    is_better_higher,
    rank,
    short_name,
)
from gradwatch.trial.suggestion import bounding, patch_or_nothing, suggest, usual

OnProgress = Callable[[str, int, int], object]
"""Called after each optimizer step with what is trained, the steps done so far, and those of the whole trial."""


def try_remedies(
    module: nn.Module | Setup,
    datamodule: Any,
    *,
    remedies: Sequence[Remedy] | None = None,
    steps: int = 200,
    seed: int = 0,
    metric: str | None = None,
    most: int = 6,
    on_progress: OnProgress | None = None,
) -> Trial:
    """Train copies of a module for a short time, one with each remedy and one without, and rank them.

    All start from the same seed and see the same batches in the same order, on the CPU. Nothing is written to disk, and
    the module, the data and the random numbers are not changed. A remedy that crashes is a row with its error. Ctrl+C
    ends the trial with the rows so far.

    Each training is the first steps of the real run: a schedule keeps the length of the run, as ``max_epochs`` or
    ``max_steps`` in the :class:`Setup`'s options give it (else Lightning's 1000 epochs). So the trial sees a warm-up as
    the run will have it, but hardly anything of a cosine's decay: a remedy that helps only there is not found.

    Args:
        module: a LightningModule, or a :class:`Setup` where it comes with transforms and options of the Trainer.
        datamodule: a LightningDataModule, or the loader of the training batches.
        remedies: to try; None takes what :func:`suggest` makes of the untreated training's diagnosis, or what helps
            most often where nothing was found; what else the layers suggest where no row beats the untreated one;
            and then the two best changes of the model together.
        steps: optimizer steps of each training.
        seed: of every training and of the batches.
        metric: to rank by, as the module logs it in validation; None takes its accuracy, else its ``val_loss``, else
            the mean training loss over the last tenth of the steps.
        most: how many suggested remedies are tried; as many again where none of them helps.
        on_progress: called after each step with what is trained, the steps done, and those of the whole trial.

    Raises:
        ValueError: for a number out of range, or a metric that no training has logged.
        TypeError: when the module is no LightningModule.

    Example:
        >>> from gradwatch.examples.baseline import Baseline
        >>> from gradwatch.examples.data import ImageData
        >>> trial = try_remedies(Baseline(64, depth=1), ImageData(), remedies=[InitializeAgain()], steps=2)
        >>> sorted(row.name for row in trial.rows)
        ["InitializeAgain(scheme='auto')", 'untreated']
    """
    require_whole("try_remedies", steps=steps, most=most)
    setup = module if isinstance(module, Setup) else Setup(module)
    if not setup.trains_itself:
        raise TypeError(f"module is a {type(setup.module).__name__}; expected a LightningModule, which trains itself")
    batch = setup.batch if setup.batch is not None else first_batch(datamodule, seed)
    on_host = replace(setup, module=copy_of(setup.module).cpu(), batch=batch)
    session = _Session(on_host, datamodule, steps, seed, on_progress)
    try:
        session.run(remedies, most)
    except KeyboardInterrupt:
        if not session.done:
            raise
        session.interrupted = True
    return session.trial(metric)


@dataclass
class _Session:
    """The trainings so far, each as its row and the metrics of its validation."""

    setup: Setup
    data: Any
    steps: int
    seed: int
    on_progress: OnProgress | None
    done: list[tuple[Row, Mapping[str, float]]] = field(default_factory=list)
    diagnoses: tuple[Any, ...] = ()
    interrupted: bool = False
    advice: tuple[Advice, ...] = ()
    error: Exception | None = None
    _planned: int = 1

    def run(self, remedies: Sequence[Remedy] | None, most: int) -> None:
        """Train without a remedy, then with each, then with the best two together where none were given."""
        untreated = self._train(None)
        self.diagnoses, self.error = untreated.diagnoses, untreated.error
        if remedies is None and untreated.is_hopeless:
            return
        chosen = [*remedies] if remedies is not None else self._suggested(untreated, most)
        self._planned = 1 + len(chosen) + (remedies is None and len(chosen) > 1)
        for remedy in chosen:
            self._train(remedy)
        if remedies is None and self.trial(None).best is None:
            self._try_more(untreated, chosen, most)
        if remedies is None and (both := self._best_two()) is not None:
            self._train(both)

    def _try_more(self, untreated: Run, tried: Sequence[Remedy], most: int) -> None:
        """Try what the layers suggest, not only the cause: no row so far beats the untreated one."""
        losses = [snapshot.loss for snapshot in untreated.history]
        broke = bool(untreated.trouble) or any(not math.isfinite(loss) for loss in losses)
        found = [*(bounding(self.setup, untreated.history) if broke else ()), *usual(self.setup)]
        more = [remedy for remedy in dict.fromkeys(found) if remedy not in tried and self._acts(remedy)][:most]
        self._planned += len(more)
        for remedy in more:
            self._train(remedy)

    def _suggested(self, untreated: Run, most: int) -> list[Remedy]:
        found = suggest(untreated.diagnoses, self.setup, untreated.history)
        self.advice = tuple(remedy for remedy in found if isinstance(remedy, Advice))
        chosen = [remedy for remedy in found if not isinstance(remedy, Advice)] or usual(self.setup)
        chosen = [remedy for remedy in chosen if self._acts(remedy)][:most]
        # Over many steps gates that keep the state are not enough alone: a single large step closes them again.
        gated = next(
            (remedy for remedy in chosen if isinstance(remedy, (ReplaceRecurrence, OrthogonalRecurrence))), None
        )
        return [*chosen, *([Combination((gated, Clip()))] if gated and not self.setup.options.get(CLIP) else [])]

    def _acts(self, remedy: Remedy) -> bool:
        """Return True if the trial is long enough to see what the remedy does."""
        return remedy.acts_after < self.steps

    def _train(self, remedy: Remedy | None) -> Run:
        started = time.monotonic()
        name = short_name(remedy) if remedy else UNTREATED
        losses = _Losses(lambda steps: self._tell(name, steps))
        run, error, interrupt = Run(name), "", None
        try:
            run = self._short_run(remedy.apply(self.setup) if remedy else self.setup, losses)
            error = _in_words(run.error) if run.error else "" if losses.steps else run.trouble
        except NotApplicable as refused:
            error = f"not applicable: {refused}"
        except Interrupted as raised:
            run, error, interrupt = raised.run, "broken off", raised
        except Exception as raised:  # a row, and not the end
            error = _in_words(raised)
        self.done.append((self._row(remedy, run, losses.at_the_end(), time.monotonic() - started, error), run.metrics))
        if interrupt is not None:
            raise interrupt
        return run

    def _short_run(self, setup: Setup, losses: _Losses) -> Run:
        module: Any = setup.module  # a LightningModule, by its methods
        options = {**setup.options}
        return train_with_a_trainer(
            module,
            with_same_batches(self.data, self.seed),
            self.steps,
            callbacks=options.pop("callbacks", ()),
            options=options,
            transforms=setup.transforms,
            after_batch=losses.add,
            seed=self.seed,
            every_n_steps=max(self.steps // 20, 1),
            validate=True,
        )

    def _tell(self, name: str, steps: int) -> None:
        if self.on_progress is not None:
            self.on_progress(name, len(self.done) * self.steps + steps, self._planned * self.steps)

    def _row(self, remedy: Remedy | None, run: Run, loss: float, seconds: float, error: str) -> Row:
        first, last = first_and_last(run.history)
        findings = tuple(finding for finding in run.findings if finding.is_open)
        code = "" if remedy is None or error else patch_or_nothing(remedy, self.setup)
        return Row(remedy, math.nan, loss, findings, first, last, seconds, error, code)

    def trial(self, metric: str | None) -> Trial:
        """Return the rows, ranked."""
        chosen = self._metric(metric)
        higher = is_better_higher(chosen)
        rows = [replace(row, result=_result(row, metrics, chosen)) for row, metrics in self.done]
        ranked = rank(rows, higher)
        told = self.diagnoses, self.interrupted, self.advice, self.error
        return Trial(ranked, chosen, higher, self.steps, self.seed, *told)

    def _metric(self, metric: str | None) -> str:
        finished = [metrics for row, metrics in self.done if not row.error]
        known = sorted(set.intersection(*map(set, finished))) if finished else []
        if metric is not None and metric != TRAIN_LOSS and finished and metric not in known:
            raise ValueError(f"no training logged {metric!r} in validation; logged were: {', '.join(known) or 'none'}")
        return metric or choose_metric(known)

    def _best_two(self) -> Remedy | None:
        """Combine the two best changes of the model that beat the untreated training, where they go together."""
        better: list[Remedy] = []  # of the model
        for row in self.trial(None).rows:
            if row.remedy is None:
                break
            if row.remedy.changes_model and not row.error and type(row.remedy) not in map(type, better):
                better.append(row.remedy)
        # Weights are drawn last, for the layers that the other remedy leaves behind.
        pair = sorted(better[:2], key=lambda remedy: isinstance(remedy, InitializeAgain))
        drawn_twice = {type(remedy) for remedy in pair} == {ReplaceActivations, InitializeAgain}
        return Combination(tuple(pair)) if len(pair) == 2 and not drawn_twice else None


class _Losses:
    """The loss of each batch, in the untreated training's unit."""

    def __init__(self, on_step: Callable[[int], None]) -> None:
        self._on_step, self.steps = on_step, 0
        self._values: list[Tensor] = []

    def add(self, steps: int, outputs: Any) -> None:
        """Keep a batch's loss; with the first batch that ends a step, report the steps done."""
        found = outputs if isinstance(outputs, Mapping) else {"loss": outputs}
        loss = found.get(LOSS_IN_UNIT, found.get("loss"))
        if isinstance(loss, Tensor):
            self._values.append(loss.detach().float().mean())
        if steps > self.steps:
            self.steps = steps
            self._on_step(steps)

    def at_the_end(self) -> float:
        """Return the mean over the last tenth of the batches; NaN where there is none."""
        last = self._values[-max(len(self._values) // 10, 1) :]
        return sum(value.item() for value in last) / len(last) if last else math.nan


def _result(row: Row, metrics: Mapping[str, float], metric: str) -> float:
    if row.error:
        return math.nan
    return row.loss if metric == TRAIN_LOSS else metrics.get(metric, math.nan)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
