"""A loss that does not come down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gradwatch.progress import Judgement, Learning, finding_of
from gradwatch.records import Finding, Snapshot


@dataclass
class NotLearning:
    """The loss has not come below its start, beyond its own noise, in enough steps to expect it.

    Enough are 20 steps where the updates are of the size of the weights, 60 where they are next to nothing though there
    is a gradient, and 300 otherwise, as a plateau may come first. While the learning rate grows, none count, unless 300
    steps have moved nothing.

    Nothing is said where the loss is no measure of progress: it is negative, it has been lower and has risen since, it
    rises under ordinary updates, several optimizers step, or the run was resumed. Nor is anything said of a loss that
    stays where it is under ordinary updates: the training may be a fine-tune at its end. Where the loss of a constant
    prediction is known, and the loss stays there, it is said: ``ln C`` of a cross-entropy over C classes, the variance
    of the targets of a mean squared error, the entropy of the labels of a binary cross-entropy.

    Example:
        >>> losses = {"trace_step": range(30), "trace_loss": [2.31, 2.5] * 15}
        >>> found = NotLearning()(Snapshot(9, ("fc",), update_to_weight=[2.0], **losses))
        >>> [finding.message for finding in found]
        ['not learning: loss 2.31 -> 2.5 in 30 steps.']

        Under ordinary updates the same losses may be those of a plateau:

        >>> detector = NotLearning()
        >>> list(detector(Snapshot(9, ("fc",), update_to_weight=[1e-3], **losses)))
        []
        >>> str(detector.judgement)
        'too few steps to tell whether it learns: 30 of 300'

    References:
        No published rule. The trend is that of Mann, Nonparametric tests against trend, 1945.
    """

    needs: ClassVar[tuple[str, ...]] = ("updates",)
    of_losses: ClassVar[bool] = True
    patience: int = field(default=1, init=False)
    _learning: Learning = field(default_factory=Learning, init=False, repr=False)

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield one finding about the loss."""
        self._learning.add(snapshot)
        finding = finding_of(self.judgement, snapshot.step)
        if finding is not None:
            yield finding

    @property
    def judgement(self) -> Judgement:
        """The judgement of all steps so far."""
        return self._learning.judge()

    def state_dict(self) -> dict[str, Any]:
        """The course of the loss so far, for a checkpoint."""
        return self._learning.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the course of an earlier run."""
        self._learning.load_state_dict(state)
