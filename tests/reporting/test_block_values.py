"""A network of thousands of layers is logged by block, and what was found by layer."""

from pathlib import Path

import numpy as np
import pytest

from gradwatch import Finding, Snapshot
from gradwatch.reporting.block_values import MOST_LAYERS, BlockValues
from gradwatch.reporting.keys import scalars
from gradwatch.reporting.tensorboard import TensorBoardReport

BLOCKS = 600
LAYERS = ("embed", *(f"layers.{i}.{end}" for i in range(BLOCKS) for end in ("attn", "mlp")), "head")


def snapshot(step: int = 0, layers: tuple[str, ...] = LAYERS) -> Snapshot:
    norms = np.arange(len(layers), dtype=float) + step
    known = {"total_norm": 5.0, "total_norm_after": 1.0}
    return Snapshot(step, layers, grad_norm=norms, grad_output_norm=np.where(norms % 2, norms, np.nan), **known)


def found(*layers: str, step: int = 0) -> Finding:
    return Finding("vanishing", layers, step, 1e-7, 1e-3, "it vanishes")


def test_blocks_have_a_median_and_ends_and_single_layers_their_value() -> None:
    values = scalars(BlockValues()(snapshot(), []))
    attention = np.arange(1, 2 * BLOCKS, 2, dtype=float)
    assert values["grad_norm/embed"] == 0.0
    assert values["grad_norm/layers.0-599.attn median"] == np.median(attention)
    assert values["grad_norm/layers.0-599.attn lowest"] == attention.min()
    assert values["grad_norm/layers.0-599.mlp highest"] == 2 * BLOCKS
    assert values["grad_norm_total"], values["clip_coefficient"] == (5.0, 0.2)
    assert "grad_output_norm/layers.0-599.mlp median" not in values  # none has one
    assert len(values) < 20


def test_layers_with_a_finding_are_logged_by_name_from_then_on() -> None:
    blocks = BlockValues()
    assert "grad_norm/layers.7.mlp" not in scalars(blocks(snapshot(0), []))
    assert scalars(blocks(snapshot(1), [found("layers.7.mlp", "loss")]))["grad_norm/layers.7.mlp"] == 17.0
    assert scalars(blocks(snapshot(2), []))["grad_norm/layers.7.mlp"] == 18.0  # its chart goes on
    many = found(*LAYERS[1:])
    assert len(scalars(blocks(snapshot(3), [many]))) < 250


@pytest.mark.parametrize("count", [1, MOST_LAYERS])
def test_a_network_that_loggers_can_take_is_logged_by_layer(count: int) -> None:
    small = snapshot(layers=tuple(map(str, range(count))))
    assert BlockValues()(small, []) is small


def test_a_network_that_repeats_nothing_is_logged_by_stretches() -> None:
    letters = "abcdefghijkl"
    names = tuple(f"{a}{b}{c}" for a in letters for b in letters for c in letters)
    values = scalars(BlockValues()(snapshot(layers=names), []))
    assert values["grad_norm/aaa to abf median"] == 8.5
    assert len(values) < 700


def test_tags_of_tensorboard_stay_when_a_finding_opens(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    blocks, writer = BlockValues(), SummaryWriter(tmp_path)
    report = TensorBoardReport(writer)
    for step in range(4):
        report.snapshot(blocks(snapshot(step), [found("layers.3.mlp")] if step >= 2 else []))
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("grad_norm/")}
    assert {tag for tag in tags if len(events.Scalars(tag)) < 4} == {"grad_norm/008 layers.3.mlp"}
    assert "grad_norm/001 layers.0-599.attn median" in tags
