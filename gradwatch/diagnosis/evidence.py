"""The facts of a run that rules of diagnosis ask for, each worked out once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from gradwatch.causes import InUse
from gradwatch.layer_kinds import is_bounded, is_normalization, is_softmax
from gradwatch.paths import main_path
from gradwatch.progress import BELOW_CHANCE, Progress
from gradwatch.records import Array, Finding, Snapshot

# Where a constant of this room names no source, it follows from the mechanism in its rule and was checked on half
# `develop` of tests/benchmarks/detection.
EARLY = 10  # steps: what is wrong so soon comes from the set-up of the training, not from its course
SETTLED = 2  # steps after which the weights are what training has made of them
MIN_LOSSES = 8  # with fewer nothing is said about the loss
NO_PROGRESS = 0.1  # share of the first loss; a run that has lost less is stuck
_START, _END, _END_PART = 3, 5, 10  # losses at the start; at the end at least so many, or a tenth
_RECENT, _WINDOW = 3, 20  # losses
_RISING, _RISEN = 2.0, 3.0  # recent losses over those of the window, and over the first


class Evidence:
    """Findings and history of a run, with what follows from them. Rules are asked only where there is a Snapshot.

    Example:
        >>> falling = Snapshot(9, ("a",), trace_step=range(10), trace_loss=np.linspace(1.0, 0.1, 10))
        >>> evidence = Evidence((), [falling])
        >>> round(evidence.loss_fall, 2), evidence.is_stuck(), evidence.saw_start
        (0.67, False, True)
    """

    def __init__(self, findings: Sequence[Finding], history: Sequence[Snapshot]) -> None:
        self.findings, self.history = tuple(findings), tuple(history)

    @property
    def first(self) -> Snapshot:
        """The first Snapshot that is kept."""
        return self.history[0]

    @property
    def last(self) -> Snapshot:
        """The latest Snapshot."""
        return self.history[-1]

    @property
    def saw_start(self) -> bool:
        """Return True if the first Snapshot is one of the run's first steps."""
        return bool(self.history) and self.first.step < EARLY

    def nearest(self, step: int) -> Snapshot:
        """Return the Snapshot that is closest to a step."""
        return min(self.history, key=lambda snapshot: abs(snapshot.step - step))

    @cached_property
    def in_use(self) -> InUse:
        """The settings that the run has, as far as Snapshots tell them."""
        if not self.history:
            return InUse()
        first, last = self.first, self.last
        rates = [snapshot.learning_rate for snapshot in self.history if snapshot.learning_rate > 0]
        decays = last.group_weight_decay[~np.isnan(last.group_weight_decay)]
        bounds = [snapshot.clip_max_norm for snapshot in self.history if snapshot.clip == "norm"]
        return InUse(
            optimizer=first.optimizer,
            rate=max(rates, default=float("nan")),
            weight_decay=float(decays.max()) if len(decays) else float("nan"),
            clip=bounds[-1] if bounds else float("nan"),
            warms_up=len(rates) > 1 and self.saw_start and rates[1] > rates[0],
            input_rms=first.input_rms,
            dtype=first.dtype,
        )

    # Findings

    def found(self, *kinds: str) -> tuple[Finding, ...]:
        """Return the findings of some kinds."""
        return tuple(finding for finding in self.findings if finding.kind in kinds)

    def is_over_calls(self, finding: Finding) -> bool:
        """Return True if a finding is about a layer that runs several times a step, as a recurrent cell does."""
        return any(set(finding.layers) <= set(snapshot.calls) for snapshot in self.history[:3])

    @cached_property
    def faded_early(self) -> tuple[Finding, ...]:
        """Gradients that vanish over depth from the first steps on. Later it is the training that made them."""
        if not self.saw_start:
            return ()
        early = (finding for finding in self.found("vanishing") if finding.step <= self.first.step + SETTLED)
        return tuple(finding for finding in early if not self.is_over_calls(finding))

    # The loss

    @cached_property
    def losses(self) -> Array:
        """The known loss of each step, in order; ``inf`` where it was NaN."""
        row = np.concatenate([snapshot.trace_loss for snapshot in self.history]) if self.history else np.empty(0)
        return self._before_nan(np.asarray(row[~np.isnan(row)]))

    @staticmethod
    def _before_nan(row: Array) -> Array:
        """Drop the losses after the one that is NaN for good, and it, where those before it did not grow.

        They are of no training any more, and would make a rise of a loss that fell.
        """
        finite = np.flatnonzero(np.isfinite(row))
        end = int(finite[-1]) + 1 if len(finite) else 0
        is_calm = end >= MIN_LOSSES and np.isfinite(row[:end]).all() and not is_rising(row[:end])
        return row[:end] if is_calm else row

    @cached_property
    def loss_fall(self) -> float:
        """Share of the first loss that is gone: 1 for all, 0 for none, below 0 for a rise; NaN where unknown."""
        row = self.losses
        if len(row) < MIN_LOSSES:
            return float("nan")
        end = max(_END, len(row) // _END_PART)
        first, last = float(np.median(row[:_START])), float(np.median(row[-end:]))
        if not np.isfinite(first) or first == 0:
            return float("nan")
        return (first - last) / abs(first) if np.isfinite(last) else float("-inf")

    def is_stuck(self, least: float = NO_PROGRESS) -> bool:
        """Return True if the loss is known to have lost less than a share."""
        return bool(self.loss_fall < least)

    @cached_property
    def is_at_chance(self) -> bool:
        """Return True if the loss is known to be no better than that of a constant prediction."""
        end = max(_END, len(self.losses) // _END_PART)
        known = [snapshot.chance for snapshot in self.history if snapshot.chance > 0]
        is_known = len(self.losses) >= MIN_LOSSES and bool(known)
        return bool(is_known and np.median(self.losses[-end:]) > BELOW_CHANCE * np.median(known))

    @cached_property
    def still_learns(self) -> bool:
        """Return True if the later half of the losses comes down beyond its noise: a plateau or chance does not."""
        progress = Progress()
        progress.add(self.losses[len(self.losses) // 2 :])
        return progress.judge().course == "learns" and not self.loss_fall < 0

    @cached_property
    def loss_rise(self) -> float:
        """The largest loss over the first; 1 where unknown."""
        return _rise(self.losses)

    @cached_property
    def finite_loss_rise(self) -> float:
        """The largest finite loss over the first; 1 where unknown."""
        return _rise(self.losses[np.isfinite(self.losses)])

    def losses_before(self, step: int) -> Array:
        """Return the finite losses of the steps before one."""
        row = self._losses_from(0, step)
        return np.asarray(row[np.isfinite(row)])

    def losses_after(self, step: int) -> Array:
        """Return the losses of the steps after one."""
        row = self._losses_from(step + 1)
        return np.asarray(row[~np.isnan(row)])

    def _losses_from(self, start: int, stop: float = np.inf) -> Array:
        rows = ((snapshot.trace_step, snapshot.trace_loss) for snapshot in self.history)
        parts = [losses[(steps >= start) & (steps < stop)] for steps, losses in rows]
        return np.concatenate(parts) if parts else np.empty(0)

    @cached_property
    def loss_in_words(self) -> str:
        """The first and the last loss in a sentence; empty where too few are known."""
        if len(self.losses) < MIN_LOSSES:
            return ""
        first, last = self.losses[0], self.losses[-1]
        return f"The loss was {first:.3g} at first and {'NaN or Inf' if np.isinf(last) else f'{last:.3g}'} at the end."

    # Updates, units and gradients

    @cached_property
    def first_updates(self) -> float:
        """The largest of the first updates over the weights, in the median layer; NaN where unknown."""
        rows = [snapshot.update_to_weight for snapshot in self.history if snapshot.step < EARLY]
        if not rows or len({len(row) for row in rows}) > 1:
            return float("nan")
        known = np.array(rows)[:, ~np.isnan(rows[0])]
        known = known[np.isfinite(known).all(axis=1)]
        return float(np.max(np.median(known, axis=1))) if known.size else float("nan")

    @cached_property
    def dead_at_start(self) -> float:
        """Share of dead units in the first layer of rectifiers, in the first steps; 0 where unknown.

        Deeper ones may be off because of what they get: where the signal has faded, biases alone decide.
        """
        for snapshot in self.history:
            known = snapshot.dead_fraction[~np.isnan(snapshot.dead_fraction)]
            if snapshot.step < EARLY and len(known):
                return float(known[0])
        return 0.0

    @cached_property
    def params_with_gradient(self) -> set[str]:
        """The parameters that had a gradient other than zero at some step."""
        pairs = (zip(each.params, each.param_grad_norm.tolist(), strict=True) for each in self.history)
        return {name for params in pairs for name, norm in params if norm > 0}

    @cached_property
    def params_never_reached(self) -> list[str]:
        """The parameters whose ``.grad`` was None in every Snapshot; a head that is used now and then is none."""
        pairs = (zip(each.params, each.param_grad_norm.tolist(), strict=True) for each in self.history)
        reached = {name for params in pairs for name, norm in params if not np.isnan(norm)}
        return [name for name in self.last.params if name not in reached]

    @cached_property
    def normalizes(self) -> bool:
        """Return True if the network has a normalization layer."""
        return any(map(is_normalization, self.first.kinds))


def _rise(losses: Array) -> float:
    return float(np.max(losses[1:]) / losses[0]) if len(losses) > 1 and losses[0] > 0 else 1.0


def is_rising(losses: Array) -> bool:
    """Return True if the last losses are well above those before them, or too few to tell."""
    if len(losses) < _RECENT:
        return True
    recent = float(np.median(losses[-_RECENT:]))
    return recent > _RISING * float(np.median(losses[-_WINDOW:])) or recent > _RISEN * float(np.median(losses[:_START]))


def gain_by_kind(snapshot: Snapshot, column: str = "gain") -> dict[str, tuple[int, float]]:
    """Return for each kind of layer how many have a gain, and their geometric mean gain.

    Example:
        >>> gain_by_kind(Snapshot(0, ("a", "b", "c"), kinds=("Sigmoid", "Sigmoid", "Linear"), gain=[0.2, 0.2, 0.6]))
        {'Sigmoid': (2, 0.2), 'Linear': (1, 0.6)}
    """
    gains: dict[str, list[float]] = defaultdict(list)
    for kind, gain in zip(snapshot.kinds, getattr(snapshot, column).tolist(), strict=True):
        if gain > 0 and np.isfinite(gain):
            gains[kind].append(gain)
    return {kind: (len(values), round(_geometric_mean(np.array(values)), 4)) for kind, values in gains.items()}


def gains_in_words(snapshot: Snapshot) -> str:
    """Return the gains in a sentence, the smallest first, with what the weights alone contribute.

    Example:
        >>> kinds = ("Sigmoid", "Linear")
        >>> gains_in_words(Snapshot(0, ("a", "b"), kinds=kinds, gain=[0.2, 0.6], weight_gain=[np.nan, 0.58]))
        'The Sigmoid multiplies the gradient by 0.2, the Linear by 0.6 (its weights alone: 0.58).'
    """
    gains = sorted(gain_by_kind(snapshot).items(), key=lambda item: item[1][1])
    if not gains:
        return "No gain could be measured."
    of_weights = gain_by_kind(snapshot, "weight_gain")
    parts = []
    for kind, (count, gain) in gains:
        layers, their = (f"the {kind}", "its") if count == 1 else (f"each of the {count} {kind}s", "their")
        weights = f" ({their} weights alone: {of_weights[kind][1]:.2g})" if kind in of_weights else ""
        parts.append(f"{layers} by {gain:.2g}{weights}")
    sentence = ", ".join(parts).replace(" by ", " multiplies the gradient by ", 1)
    return sentence[0].upper() + sentence[1:] + "."


def weights_gain(snapshot: Snapshot) -> float:
    """Return the geometric mean of what the hidden layers' weights alone do to the gradient; NaN without any.

    In the mean a wide layer's large gain and the next one's small gain cancel.

    Example:
        >>> weights_gain(Snapshot(0, ("a", "b", "c"), weight_gain=[9.0, 0.5, 2.0]))
        1.0
    """
    return _geometric_mean(hidden_weight_gains(snapshot))


def hidden_weight_gains(snapshot: Snapshot) -> Array:
    """Return the weight gains of the layers on one path to the loss, but the first, which passes no gradient on."""
    gains = snapshot.weight_gain[main_path(snapshot)]
    known = gains[~np.isnan(gains)][1:]
    return np.asarray(known[(known > 0) & np.isfinite(known)])


def activation_gain(snapshot: Snapshot) -> float:
    """Return the geometric mean gain of the bounded activations; NaN without any."""
    bounded = np.array([is_bounded(kind) or is_softmax(kind) for kind in snapshot.kinds], np.bool_)
    return _geometric_mean(snapshot.gain[bounded & (snapshot.gain > 0) & np.isfinite(snapshot.gain)])


def share_at_first_layer(snapshot: Snapshot) -> float:
    """Return the gradient at the first layer's output over the largest on its path; NaN where it is unknown.

    Example:
        >>> share_at_first_layer(Snapshot(0, ("a", "b"), grad_norm=[1.0, 1.0], grad_output_norm=[0.1, 2.0]))
        0.05
    """
    path = main_path(snapshot)
    norms, of_params = snapshot.grad_output_norm[path], snapshot.grad_norm[path]
    norms = norms[~np.isnan(of_params) & np.isfinite(norms)]
    return float(norms[0] / norms.max()) if len(norms) > 1 and norms.max() > 0 else float("nan")


def gains_and_share_in_words(snapshot: Snapshot) -> str:
    """Return the gains and what they leave for the first layer, as sentences."""
    share = share_at_first_layer(snapshot)
    left = "" if np.isnan(share) else f" {share:.1e} of the largest gradient reaches the first layer."
    return gains_in_words(snapshot) + left


def _geometric_mean(values: Array) -> float:
    return float(np.exp(np.mean(np.log(values)))) if len(values) else float("nan")
