"""Shows a fit in the loggers of a Trainer, each through what it offers; docs/loggers.md has the table."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gradwatch.records import Diagnosis, Finding, Snapshot
from gradwatch.reporting.keys import scalars
from gradwatch.reporting.pictures import Picture
from gradwatch.reporting.sink import Sink
from gradwatch.reporting.tensorboard import TensorBoardReport
from gradwatch.reporting.text import evidence_beyond, findings_text, in_words, listed, number

FINDINGS, VERDICT, CAUSES, REPORT = (f"gradwatch/{name}" for name in ("findings", "verdict", "causes", "report"))
_MOST_METRICS = 1000  # in one call of MLflow, which refuses more; Lightning does not split them
_NOT_IN_MLFLOW = re.compile(r"[^\w/. -]+", re.ASCII)  # Lightning takes them out too, with a warning for each key
_LONGEST_TITLE = 63  # characters of an alert of Weights & Biases
_TABLE = ("kind", "layers", "since step", "until step", "value", "threshold", "message", "cause", "what to do")


class AnyLogger(Sink):
    """Gives a logger of Lightning the numbers, which is all that every logger takes."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def snapshot(self, snapshot: Snapshot) -> None:
        """Write the numbers."""
        self._logger.log_metrics(scalars(snapshot), step=snapshot.step)


class Wandb(AnyLogger):
    """Shows a fit in Weights & Biases."""

    shows_pictures = True

    def findings(self, findings: Sequence[Finding], diagnoses: Sequence[Diagnosis], step: int, note: str) -> None:
        """Write a table with a row for each finding, and for each cause without one."""
        rows = table_rows(findings, diagnoses)
        if rows:
            self._logger.log_table(FINDINGS, columns=[*_TABLE], data=rows, step=step)
        if note:
            self._logger.experiment.summary["gradwatch/note"] = note

    def pictures(self, pictures: Mapping[str, Picture], step: int) -> None:
        """Write each as an image, of which the workspace shows the steps."""
        with TemporaryDirectory() as folder:
            for place, (tag, picture) in enumerate(pictures.items()):
                path = Path(folder, f"{place}.png")
                path.write_bytes(picture.content)
                self._logger.log_image(tag, [str(path)], step=step)

    def alert(self, finding: Finding, text: str) -> None:
        """Send an alert; the user's settings say if it becomes a mail."""
        level = "ERROR" if finding.severity == "error" else "WARN"
        self._logger.experiment.alert(_title(finding)[:_LONGEST_TITLE], text, level=level)

    def verdict(self, sentence: str, causes: Sequence[str]) -> None:
        """Set two values of the summary, which are columns in the table of runs."""
        self._logger.experiment.summary.update({VERDICT: sentence, CAUSES: ", ".join(causes)})

    def report(self, path: Path) -> None:
        """Show the page in the workspace, and keep it as an artifact."""
        import wandb

        run = self._logger.experiment
        self._logger.log_metrics({REPORT: wandb.Html(str(path), inject=False)})
        artifact = wandb.Artifact(f"gradwatch-{run.id}", type="report")
        artifact.add_file(str(path), name="gradwatch.html")
        run.log_artifact(artifact)


class MLflow(AnyLogger):
    """Shows a fit in MLflow."""

    shows_pictures = True

    def snapshot(self, snapshot: Snapshot) -> None:
        """Write the numbers, as many at once as MLflow takes, under names that it takes."""
        values = iter([(_NOT_IN_MLFLOW.sub("", key), value) for key, value in scalars(snapshot).items()])
        while part := dict(islice(values, _MOST_METRICS)):
            self._logger.log_metrics(part, step=snapshot.step)

    def findings(self, findings: Sequence[Finding], diagnoses: Sequence[Diagnosis], step: int, note: str) -> None:
        """Write a file that the next one replaces."""
        text = findings_text(findings, diagnoses, note)
        self._logger.experiment.log_text(self._logger.run_id, text, f"{FINDINGS}.md")

    def pictures(self, pictures: Mapping[str, Picture], step: int) -> None:
        """Write each as an image with its step."""
        from PIL import Image

        for tag, picture in pictures.items():
            image, key = Image.open(BytesIO(picture.content)), _NOT_IN_MLFLOW.sub("", tag)
            self._logger.experiment.log_image(self._logger.run_id, image, key=key, step=step)

    def verdict(self, sentence: str, causes: Sequence[str]) -> None:
        """Set two tags, which are columns in the table of runs."""
        for key, text in ((VERDICT, sentence), (CAUSES, ", ".join(causes))):
            self._logger.experiment.set_tag(self._logger.run_id, key.replace("/", "."), text)

    def report(self, path: Path) -> None:
        """Keep the page as an artifact, which MLflow shows."""
        self._logger.experiment.log_artifact(self._logger.run_id, str(path), "gradwatch")


class Comet(AnyLogger):
    """Shows a fit in Comet."""

    shows_pictures = True

    def findings(self, findings: Sequence[Finding], diagnoses: Sequence[Diagnosis], step: int, note: str) -> None:
        """Write a text with its step."""
        self._logger.experiment.log_text(findings_text(findings, diagnoses, note), step=step)

    def pictures(self, pictures: Mapping[str, Picture], step: int) -> None:
        """Write each as an image with its step."""
        for tag, picture in pictures.items():
            self._logger.experiment.log_image(BytesIO(picture.content), name=tag, step=step)

    def alert(self, finding: Finding, text: str) -> None:
        """Send a notification; the user's settings say if it becomes a mail."""
        self._logger.experiment.send_notification(_title(finding), finding.severity, {"finding": text})

    def verdict(self, sentence: str, causes: Sequence[str]) -> None:
        """Set two of the experiment's other values."""
        self._logger.experiment.log_other(VERDICT, sentence)
        self._logger.experiment.log_other(CAUSES, ", ".join(causes))

    def report(self, path: Path) -> None:
        """Keep the page as an asset."""
        self._logger.experiment.log_asset(str(path), file_name="gradwatch.html", overwrite=True)


class Lit(AnyLogger):
    """Shows a fit in LitLogger, on lightning.ai."""

    shows_pictures = True

    def snapshot(self, snapshot: Snapshot) -> None:
        """Write the numbers that are finite; LitLogger leaves the others out with a warning for each."""
        finite = {key: value for key, value in scalars(snapshot).items() if math.isfinite(value)}
        self._logger.log_metrics(finite, step=snapshot.step)

    def findings(self, findings: Sequence[Finding], diagnoses: Sequence[Diagnosis], step: int, note: str) -> None:
        """Write a text with its step."""
        from litlogger import Text

        self._logger.experiment[FINDINGS].append(Text(findings_text(findings, diagnoses, note)), step=step)

    def pictures(self, pictures: Mapping[str, Picture], step: int) -> None:
        """Write each as an image with its step."""
        from litlogger import Image as LitImage
        from PIL import Image

        for tag, picture in pictures.items():
            self._logger.experiment[tag].append(LitImage(Image.open(BytesIO(picture.content))), step=step)

    def verdict(self, sentence: str, causes: Sequence[str]) -> None:
        """Set two of the experiment's metadata."""
        self._logger.log_metadata({VERDICT: sentence, CAUSES: ", ".join(causes)})

    def report(self, path: Path) -> None:
        """Keep the page as a file."""
        from litlogger import File

        self._logger.experiment[REPORT] = File(str(path))


def _tensorboard(logger: Any) -> Sink:
    def has_hparams() -> bool:
        return bool(getattr(logger, "hparams", None))  # that of Fabric keeps none

    return TensorBoardReport(logger.experiment, has_hparams=has_hparams)


_SINKS: Mapping[str, Callable[[Any], Sink]] = {
    "TensorBoardLogger": _tensorboard,
    "WandbLogger": Wandb,
    "MLFlowLogger": MLflow,
    "CometLogger": Comet,
    "LitLogger": Lit,
}


def sink_of(logger: Any) -> Sink:
    """Return the place where a logger of Lightning shows a fit.

    Loggers are told by the names of their classes: ``pytorch_lightning`` has others than ``lightning.pytorch``.
    """
    known = (_SINKS[kind.__name__] for kind in type(logger).__mro__ if kind.__name__ in _SINKS)
    return next(known, AnyLogger)(logger)


def alert_text(finding: Finding, diagnoses: Iterable[Diagnosis]) -> str:
    """Return a finding with its likeliest cause and what to try first.

    Example:
        >>> finding = Finding("vanishing", ("fc",), step=3, value=1e-7, threshold=1e-3, message="It vanishes.")
        >>> cause = Diagnosis("saturating activation", "The Sigmoid takes 0.2.", 0.9, (finding,), ("use ReLU",))
        >>> alert_text(finding, [cause])
        'It vanishes. Likely cause: saturating activation. The Sigmoid takes 0.2. Try first: use ReLU'
    """
    cause = next((d for d in diagnoses if finding in d.findings), None)
    if cause is None:
        return finding.message
    first = f"Try first: {cause.remedies[0]}" if cause.remedies else ""
    evidence = evidence_beyond(cause, finding.message)
    return " ".join(filter(None, (finding.message, f"Likely cause: {cause.cause}.", evidence, first)))


def table_rows(findings: Sequence[Finding], diagnoses: Sequence[Diagnosis]) -> list[list[Any]]:
    """Return a row for each finding, the open ones first, then one for each cause that has led to none.

    Numbers are texts, as a table of Weights & Biases takes no infinite one.
    """
    rows: list[list[Any]] = []
    for finding in sorted(findings, key=lambda finding: not finding.is_open):
        until = "open" if finding.closed_step is None else str(finding.closed_step)
        limits = [number(finding.value), number(finding.threshold)]
        cause = next((d for d in diagnoses if finding in d.findings), None)
        why = [cause.cause, "; ".join(cause.remedies)] if cause else ["", ""]
        rows.append([finding.kind, listed(finding.layers), str(finding.step), until, *limits, in_words(finding), *why])
    alone = [d for d in diagnoses if not d.findings]
    return [*rows, *(["no finding yet", *[""] * 5, d.evidence, d.cause, "; ".join(d.remedies)] for d in alone)]


def _title(finding: Finding) -> str:
    return f"gradwatch: {finding.kind} at step {finding.step}"
