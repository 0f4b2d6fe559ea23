"""The three cells side by side: the gradient at each time step, and the test loss.

Trains ``recurrent.py``, ``lstm.py`` and ``gru.py`` one after the other on the same data with the same seed; prints the
gradient at the cell's output at its calls, at the first and the last measured optimizer step, and draws it. All of that
is in ``GradientMonitor.history``: this file needs no hook.

- Symptom: gradwatch reports ``vanishing`` over the calls of the vanilla cell.
- Measured: the cards of the three have the figures; all of it takes some 90 seconds on one core.
  ``python examples/recurrent_cells.py --seed 42``
- When not to use it: on a text it shows little, as each time step has a loss of its own, and so a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gradwatch import Snapshot
from gradwatch.examples.gru import GRU
from gradwatch.examples.lstm import LSTM
from gradwatch.examples.recurrent import Recurrent
from gradwatch.examples.run_sequences import Run, load_sequences, make_sequence_parser, train
from gradwatch.reporting.pictures import NO_MATPLOTLIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"RNN": "#5e3c99", "LSTM": "#e08214", "GRU": "#1b7837"}
PICTURE = "recurrent_cells.png"
ROWS = 10


def main(args: list[str] | None = None) -> dict[str, Run]:
    """Run the example from the command line; returns the results and the monitor of each cell."""
    parser = make_sequence_parser("Train a vanilla RNN, an LSTM and a GRU, and compare their gradients.", Recurrent)
    options = parser.parse_args(args)
    data = load_sequences(parser, options)
    memory = options.length if data.num_classes is None else None  # in a text what counts is near
    models: dict[str, Callable[..., Recurrent]] = {
        "RNN": Recurrent,
        "LSTM": partial(LSTM, memory=memory),
        "GRU": partial(GRU, memory=memory),
    }
    runs = {name: train(model, data, options) for name, model in models.items()}
    Console().print(table(runs))
    path = options.log_dir / PICTURE
    try:
        draw(runs, path)
        print(f"see the picture: {path}")
    except ImportError as error:
        print(error)
    return runs


def shares(snapshot: Snapshot) -> npt.NDArray[np.float64]:
    """Return the gradient's norm at each call of the cell, relative to the last call.

    Example:
        >>> shares(Snapshot(0, ("cell",), calls={"cell": np.array([1.0, 2.0, 4.0])}))
        array([0.25, 0.5 , 1.  ])
    """
    norms = snapshot.calls["cell"]
    with np.errstate(divide="ignore", invalid="ignore"):  # after the gradient went, or became NaN
        return norms / norms[-1]


def table(runs: Mapping[str, Run]) -> Table:
    """Return a table of time steps by cells, at the first and the last measured optimizer step."""
    ends = [(name, monitor.history[place]) for name, (_, monitor) in runs.items() for place in (0, -1)]
    found = Table(title="gradient at the cell's output, as a share of that at the last time step", box=SIMPLE_HEAD)
    found.add_column("time step", justify="right")
    for name, snapshot in ends:
        found.add_column(f"{name}\nstep {snapshot.step}", justify="right")
    columns = [shares(snapshot) for _, snapshot in ends]
    for row in np.linspace(0, len(columns[0]) - 1, ROWS).round().astype(int).tolist():
        found.add_row(str(row + 1), *(f"{column[row]:.1e}" for column in columns))
    found.add_section()
    for label, key in {"test loss": "test_loss", "accuracy": "test_accuracy"}.items():
        found.add_row(label, *(cell for results, _ in runs.values() for cell in ("", f"{results[key]:.4f}")))
    return found


def draw(runs: Mapping[str, Run], path: Path) -> None:
    """Save a picture of the table: the first measured step on the left, the last on the right.

    Raises:
        ImportError: when matplotlib is missing; it says how to install it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(NO_MATPLOTLIB) from error
    figure = Figure(figsize=(9, 4), dpi=150, layout="constrained")  # not pyplot's, so nothing global is touched
    both = figure.subplots(1, 2, sharey=True)
    for axes, place in zip(both, (0, -1), strict=True):
        _draw_calls(axes, {name: monitor.history[place] for name, (_, monitor) in runs.items()})
    both[0].set_ylabel("gradient norm over that at the last time step")
    results = [f"{name}: test loss {results['test_loss']:.2g}" for name, (results, _) in runs.items()]
    both[1].legend(both[1].lines, results, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_calls(axes: Axes, snapshots: Mapping[str, Snapshot]) -> None:
    for name, snapshot in snapshots.items():
        values = shares(snapshot)
        drawn = np.where(np.isfinite(values) & (values > 0), values, np.nan)
        axes.plot(np.arange(1, len(values) + 1), drawn, color=COLOURS[name])
        axes.set_title(f"optimizer step {snapshot.step}", fontsize=10)
    axes.set_yscale("log")
    axes.set_xlabel("time step (call of the cell)")
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    main()
