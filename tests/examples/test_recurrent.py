"""The recurrent examples run from their command lines, and do to the gradient over time what their cards say."""

import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gradwatch.examples import recurrent_cells
from gradwatch.examples.clip_rnn import CLIPS, ClippedRNN
from gradwatch.examples.gru import GRU
from gradwatch.examples.lstm import LSTM
from gradwatch.examples.recurrent import Recurrent
from gradwatch.examples.run_sequences import Run, main, make_sequence_parser

pytestmark = pytest.mark.filterwarnings("ignore::gradwatch.GradientWarning")

SGD = ("--model.optimizer", "sgd", "--model.lr")
SHORT = ("--fast", "--max-epochs", "2")


def run(model: type[Recurrent], log_dir: Path, *options: str) -> Run:
    return main(model, [*SHORT, "--log-dir", str(log_dir), *options])


def losses(run: Run) -> list[float]:
    """Of every training step; NaN counts as inf."""
    return [loss for snapshot in run[1].history for loss in snapshot.trace_loss.tolist()]


def first_to_last(run: Run) -> float:
    """Gradient at the cell's first call over that at its last, before anything is learned."""
    norms = run[1].history[0].calls["cell"]
    return float(norms[0] / norms[-1])


def test_without_a_clip_the_network_explodes(tmp_path: Path) -> None:
    results, monitor = bare = run(ClippedRNN, tmp_path, *SGD, "0.01", "--model.clip", "none")
    assert max(losses(bare)) > 1e20
    assert not results["test_loss"] < 1e6
    assert "exploding" in {finding.kind for finding in monitor.findings}


@pytest.mark.parametrize("clip", CLIPS)
def test_a_clip_of_any_kind_keeps_it_finite(clip: str, tmp_path: Path) -> None:
    results, monitor = clipped = run(ClippedRNN, tmp_path, *SGD, "0.01", "--model.clip", clip)
    assert max(losses(clipped)) < 10
    assert results["test_loss"] < 10
    assert min(snapshot.clip_coefficient for snapshot in monitor.history) < 0.1


def test_on_a_text_too_it_keeps_finite_what_becomes_nan_without(tmp_path: Path) -> None:
    text = tmp_path / "source.txt"  # one that is always there: the examples' own
    text.write_text("".join(path.read_text() for path in sorted(Path(recurrent_cells.__file__).parent.glob("*.py"))))
    options = (
        "--dataset",
        "text",
        "--data-dir",
        str(text),
        "--max-epochs",
        "6",
        *SGD,
        "3",
        "--model.identity",
        "false",
    )
    bare, clipped = (run(ClippedRNN, tmp_path, *options, "--model.clip", clip) for clip in ("none", "l2"))
    assert math.isnan(bare[0]["test_loss"])
    assert losses(clipped)[-1] < losses(clipped)[0]


def test_the_gradient_reaches_the_first_time_step_in_gated_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = recurrent_cells.main([*SHORT, "--log-dir", str(tmp_path)])
    ratios = {name: first_to_last(run) for name, run in runs.items()}
    assert 0 < ratios["RNN"] < 1e-15
    assert min(ratios["LSTM"], ratios["GRU"]) > 1e12 * ratios["RNN"]
    assert "test loss" in capsys.readouterr().out
    assert (tmp_path / recurrent_cells.PICTURE).stat().st_size > 10_000


@pytest.mark.parametrize("model", [LSTM, GRU])
def test_gates_alone_do_not_carry_it_there(model: type[Recurrent], tmp_path: Path) -> None:
    assert first_to_last(run(model, tmp_path, "--model.memory", "null")) < 1e-15


@pytest.mark.parametrize("model", [LSTM, GRU])
def test_a_memory_below_three_is_refused(model: type[Recurrent]) -> None:
    with pytest.raises(ValueError, match="memory is 2; expected 3 time steps or more, or None"):
        model(in_features=2, memory=2)


def test_the_cell_by_cell_network_is_torchs_own() -> None:
    torch.manual_seed(0)
    model, sequences = Recurrent(in_features=2), torch.rand(4, 20, 2)
    reference = torch.nn.RNN(2, 64, batch_first=True)
    reference.load_state_dict({f"{name}_l0": value for name, value in model.cell.state_dict().items()})
    states = torch.stack(model.unroll(sequences), dim=1)
    np.testing.assert_allclose(states.detach(), reference(sequences)[0].detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", [Recurrent, ClippedRNN, LSTM, GRU])
def test_the_cards_commands_are_understood(model: type[Recurrent]) -> None:
    card = sys.modules[model.__module__].__doc__ or ""
    commands = re.findall(r"``python examples/(\w+)\.py([^`]*)``", card)
    assert {file for file, _ in commands} == {model.__module__.split(".")[-1]}
    for _, options in commands:
        make_sequence_parser("", model).parse_args(options.split())


def test_the_command_line_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(Recurrent, ["--dataset", "text"])
    assert "text needs data_dir; got None" in capsys.readouterr().err
