"""Updates that are too small to change the weights: by the rate, its schedule, one group's rate, or Adam's epsilon."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gradwatch.diagnosis.evidence import EARLY, Evidence
from gradwatch.diagnosis.ranking import Claim, rule
from gradwatch.progress import DOES_WELL
from gradwatch.records import Finding, Snapshot

USUAL, TINY = 1e-3, 1e-6  # of the weights, a step: what is usual, and what no training can live on
# Of all groups, by Adam, whose steps do not wait for a larger gradient: what is too small for any training of some
# hundred steps. Preference training of language models at a rate of 5e-7 moves by 2.5e-5.
TOO_SMALL = 5e-6
VISIBLE = 1e-5  # what other groups do, where one of them is far too slow
SMALL = 1e-4  # of the weights, a step, where a schedule holds the rate down
HELD_DOWN = 0.01  # of the rate that a schedule starts from
SETTLED_PART = 4  # the first quarter of a history may be a schedule's
GRADIENT_TO_WEIGHT = 1e-4  # with less it is the gradient that is small, as in a run that has converged
OF_RATE = 0.1  # Adam's first step moves each entry by the rate; by less only where epsilon outweighs the gradient
A_FIFTH = 0.2  # share of the first loss
WARMS_UP = 0.8  # of the pairs of successive steps, in which the rate rises


@dataclass(frozen=True)
class GroupSteps:
    """The measured steps of one parameter group.

    Attributes:
        label: its optimizer and number in the last of them.
        params: its parameters.
        steps, rates, initial_rates: of each measured step.
        updates, gradients: norms over that of the weights.
        of_rate: the largest RMS of a parameter's update, over the rate.
    """

    label: str
    params: tuple[str, ...]
    steps: tuple[int, ...]
    rates: tuple[float, ...]
    initial_rates: tuple[float, ...]
    updates: tuple[float, ...]
    gradients: tuple[float, ...]
    of_rate: tuple[float, ...]

    def __str__(self) -> str:
        more = ", ..." if len(self.params) > 2 else ""
        return f"parameter group {self.label} ({', '.join(self.params[:2])}{more})"

    @property
    def share_of_schedule(self) -> float:
        """Largest share of its initial rate that a schedule has given it; NaN without a schedule."""
        shares = [rate / first for rate, first in zip(self.rates, self.initial_rates, strict=True) if first > 0]
        return max(shares, default=float("nan"))

    @property
    def is_adam(self) -> bool:
        """Return True for an Adam, which moves each entry by about the rate."""
        return self.label.startswith(("Adam", "NAdam"))

    @property
    def is_warming_up(self) -> bool:
        """Return True if the rate rises from step to step, and not just now and then, up to the latest."""
        pairs = list(zip(self.steps, self.rates, strict=True))
        rises = [b > a for (i, a), (j, b) in pairwise(pairs) if j == i + 1]
        still = len(self.rates) > 1 and self.rates[-1] > self.rates[-2]
        return still and bool(rises) and sum(rises) >= WARMS_UP * len(rises)

    @property
    def later_updates(self) -> tuple[float, ...]:
        """The updates without those of the first quarter."""
        return self.updates[len(self.updates) // SETTLED_PART :]

    @property
    def gradient_is_small(self) -> bool:
        """Return True if it is the gradient that leaves nothing to step by."""
        return not self.gradients[-1] > GRADIENT_TO_WEIGHT


def groups_of(history: Sequence[Snapshot]) -> list[GroupSteps]:
    """Return the parameter groups of a run, each known by its first parameter."""
    found: dict[str, list[_GroupStep]] = defaultdict(list)
    for snapshot in history:
        if not snapshot.skipped:
            for entry in _groups_in(snapshot):
                found[entry[1][0]].append(entry)
    made = []
    for entries in found.values():
        columns: list[Any] = [*zip(*entries, strict=True)]
        labels, params, rest = columns[0], columns[1], columns[2:]
        made.append(GroupSteps(labels[-1], params[-1], *rest))
    return made


_GroupStep = tuple[str, tuple[str, ...], int, float, float, float, float, float]  # as the fields of GroupSteps


def _groups_in(snapshot: Snapshot) -> Iterator[_GroupStep]:
    for place, label in enumerate(snapshot.groups):
        held = np.array([group == label for group in snapshot.param_groups], np.bool_)
        known = held & np.isfinite(snapshot.param_update_norm) & (snapshot.param_weight_norm > 0)
        if not known.any():
            continue
        update, weight, grad = (
            float(np.sqrt(np.nansum(np.square(column[known]))))
            for column in (snapshot.param_update_norm, snapshot.param_weight_norm, snapshot.param_grad_norm)
        )
        rate, initial = float(snapshot.group_learning_rate[place]), float(snapshot.group_initial_rate[place])
        rms = snapshot.param_update_norm / np.sqrt(np.maximum(snapshot.param_size, 1))
        of_rate = float(np.nanmax(rms[known])) / rate if rate > 0 else float("nan")
        names = tuple(name for name, is_in in zip(snapshot.params, held, strict=True) if is_in)
        yield label, names, snapshot.step, rate, initial, update / weight, grad / weight, of_rate


@rule("learning rate too low", {"": 0.85, "epochs": 0.92, "ended": 0.92, "zero": 0.9, "group": 0.88, "eps": 0.87})
def learning_rate_too_low(evidence: Evidence) -> Claim | None:
    """The updates are too small to change the weights, though the gradient is not."""
    groups = groups_of(evidence.history)
    about = tuple(f for f in evidence.found("unmoved") if f.case in ("rate zero", "rounded away"))
    about = tuple(finding for finding in about if _is_wide(evidence.last, finding))
    if not groups:
        return None
    return (
        _held_down(evidence, groups, about)
        or _ended(evidence, groups, about)
        or _zero_rate(groups, about)
        or _one_group(groups, about)
        or (_large_epsilon(evidence, groups, about) if evidence.saw_start else None)
        or (_all_small(evidence, groups, about) if evidence.saw_start else None)
    )


def _is_wide(snapshot: Snapshot, finding: Finding) -> bool:
    """Return True unless a parameter's half precision is to blame."""
    dtypes: Mapping[str, str] = dict(zip(snapshot.params, snapshot.param_dtypes, strict=False))
    return finding.case != "rounded away" or dtypes.get(finding.layers[0], "float32") not in ("bfloat16", "float16")


def _held_down(evidence: Evidence, groups: Sequence[GroupSteps], about: tuple[Finding, ...]) -> Claim | None:
    """Look for a schedule that keeps the rate far below its own start, and does not raise it from step to step."""
    held = [group for group in groups if group.share_of_schedule < HELD_DOWN and not group.is_warming_up]
    if not held or len(held) < len(groups) or not all(max(group.updates) < SMALL for group in held):
        return None
    if len(held[0].steps) < EARLY or not (about or evidence.is_stuck()):
        return None
    group = held[0]
    by_epoch = evidence.last.schedule_interval == "epoch"
    how = " The schedule advances once an epoch, Lightning's default, not at each step." if by_epoch else ""
    text = (
        f"After {group.steps[-1] + 1} steps the schedule gives {group} a learning rate of {group.rates[-1]:.2g}, "
        f"{group.share_of_schedule:.2%} of {group.initial_rates[-1]:.3g}.{how} {evidence.loss_in_words}"
    )
    return Claim(text, about, "epochs" if by_epoch or group.rates[-1] > 0 else "zero")


def _ended(evidence: Evidence, groups: Sequence[GroupSteps], about: tuple[Finding, ...]) -> Claim | None:
    """Look for a schedule that has brought the rate down to next to nothing by half of the run, and left it there."""
    if not evidence.is_stuck(A_FIFTH):  # a schedule that waits for a plateau ends where the loss has come down
        return None
    since = [_low_since(group) for group in groups]
    group, last = groups[0], evidence.last.step
    if any(step is None or step > last / 2 or last - step < EARLY for step in since) or group.gradient_is_small:
        return None
    text = (
        f"From step {since[0]} on, of {last + 1}, the schedule gives {group} a learning rate of less than "
        f"{HELD_DOWN:.0%} of {max(group.rates):.3g}; at the end it is {group.rates[-1]:.2g}. {evidence.loss_in_words}"
    )
    return Claim(text, about, "ended")


def _low_since(group: GroupSteps) -> int | None:
    """Return the measured step from which on the rate is a hundredth of its highest, or less; None where it is not."""
    step = None
    for number, rate in zip(reversed(group.steps), reversed(group.rates), strict=True):
        if not rate < HELD_DOWN * max(group.rates):
            break
        step = number
    return step


def _zero_rate(groups: Sequence[GroupSteps], about: tuple[Finding, ...]) -> Claim | None:
    zero = tuple(finding for finding in about if finding.case == "rate zero")
    if not zero:
        return None
    others = any(max(group.rates) > 0 for group in groups)
    which = [str(group) for group in groups if max(group.rates) == 0][:1]
    text = f"The learning rate of {which[0] if which else ', '.join(zero[0].layers[:3])} is 0."
    return Claim(text, zero, "group" if others else "zero")


def _one_group(groups: Sequence[GroupSteps], about: tuple[Finding, ...]) -> Claim | None:
    """Look for a group whose updates are lost in the rounding of its weights, beside one that moves."""
    fast = [group for group in groups if np.median(group.updates) > VISIBLE]
    slow = [
        group
        for group in groups
        if len(group.steps) >= EARLY
        and max(group.updates) < TINY
        and not (group.is_warming_up or group.gradient_is_small)
        and group.rates[-1] > 0
    ]
    if not fast or not slow:
        return None
    group, other = slow[0], fast[0]
    text = (
        f"At a learning rate of {group.rates[-1]:.3g} the updates of {group} are at most {max(group.updates):.1e}x its "
        f"weights; those of {other}, at {other.rates[-1]:.3g}, are {np.median(other.updates):.1e}x."
    )
    return Claim(text, tuple(f for f in about if set(f.layers) & set(group.params)), "group")


def _large_epsilon(evidence: Evidence, groups: Sequence[GroupSteps], about: tuple[Finding, ...]) -> Claim | None:
    """Look for an Adam that moves no entry by more than a little of its rate, from the first step on."""
    for group in groups:
        shares = np.array(group.of_rate)
        is_held = len(shares) >= EARLY and bool((shares < OF_RATE).all()) and not group.gradient_is_small
        if group.is_adam and is_held and evidence.is_stuck(A_FIFTH):
            text = (
                f"At a learning rate of {group.rates[-1]:.3g} no parameter of {group} moves by more than "
                f"{shares.max():.1e}x the rate, where {group.label.split()[0]} moves each entry by about the rate: its "
                f"eps is larger than the gradients. {evidence.loss_in_words}"
            )
            return Claim(text, about, "eps")
    return None


def _all_small(evidence: Evidence, groups: Sequence[GroupSteps], about: tuple[Finding, ...]) -> Claim | None:
    """Look for a run in which no group moves, though the gradient is not small and the loss has not fallen."""
    if len(evidence.losses) < EARLY or not evidence.is_stuck() or evidence.loss_fall > DOES_WELL:
        return None
    for group in groups:
        is_small = max(group.later_updates) < (TOO_SMALL if group.is_adam else TINY)
        if not is_small or group.is_warming_up or group.gradient_is_small or not group.rates[-1] > 0:
            return None
    group = groups[0]
    return Claim(
        f"The gradient is {group.gradients[-1]:.2g}x the size of the weights, but {group.label.split()[0]}'s updates "
        f"at a learning rate of {np.median(group.rates):.3g} are at most {max(group.later_updates):.1e}x (typical: "
        f"{USUAL:g}x). {evidence.loss_in_words}",
        about,
    )
