"""The pictures show the results, and the cliff is a cliff."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from gradwatch.examples import plots
from gradwatch.examples.comparison import curves_picture, layers_picture, surface_picture
from gradwatch.examples.comparison.results import Result
from gradwatch.transforms import ClipByGlobalNorm

LAYERS = ("network.block1.linear", "network.head")


def result(name: str, family: str, accuracy: float, seed: int = 42, **more: object) -> Result:
    curve = {"val_accuracy": [0.1, accuracy], "train_loss": [2.3, 1.0 - accuracy]}
    norms = {"layers": LAYERS, "start": (1e-6, 1.0), "end": (0.0, math.nan)}
    return Result(name, family, seed, **{"test_accuracy": accuracy, "curves": curve, **norms, **more})


RESULTS = [
    result("baseline", "baseline", 0.1),
    result("adam", "optimizer", 0.8, seed=1),
    result("adam", "optimizer", 0.9, seed=2),
    result("plateau", "optimizer", 0.85),
    result("he", "initialization", 0.7, start=(math.inf, 1.0)),
    Result("relu", "activation", 42, error="no luck"),
]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_curves_have_a_panel_a_family_and_a_label_a_remedy() -> None:
    figure = curves_picture.draw(RESULTS)
    assert [axes.get_title("left") for axes in figure.axes if axes.get_title("left")] == ["initialization", "optimizer"]
    assert texts(figure) == ["he 0.70", "adam 0.85", "plateau 0.85"]
    adam = figure.axes[1].lines[1]  # after the baseline, which is in all panels
    assert adam.get_ydata().tolist() == pytest.approx([0.1, 0.85])
    assert figure.axes[1].lines[0].get_ydata().tolist() == [0.1, 0.1]


def test_a_run_that_diverged_leaves_its_panel() -> None:
    curves = {"val_accuracy": [0.1, 0.1], "train_loss": [math.inf, math.nan]}
    figure = curves_picture.draw([result("ascent", "no cure", 0.1, curves=curves)])
    assert figure.axes[1].get_ylim() == (1.0, 10.0)


def test_labels_do_not_overlap() -> None:
    heights = curves_picture.spread_out([0.99, 0.98, 1.0, 0.02], 0.1)
    assert np.diff(sorted(heights)).min() > 0.0999
    assert min(heights) >= 0
    assert max(heights) <= 1
    assert np.argsort(heights).tolist() == np.argsort([0.99, 0.98, 1.0, 0.02]).tolist()


def test_layers_are_ranked_and_tell_zero_from_missing() -> None:
    figure = layers_picture.draw(RESULTS)
    start, end, _ = figure.axes
    assert [label.get_text() for label in start.get_yticklabels()] == ["adam", "plateau", "he", "baseline"]
    assert [label.get_text() for label in start.get_xticklabels()] == ["block1", "head"]
    cells = [text.get_text() for text in start.texts]
    assert cells == ["\N{MINUS SIGN}6", "0", "\N{MINUS SIGN}6", "0", "inf", "0", "\N{MINUS SIGN}6", "0"]
    assert [text.get_text() for text in end.texts][:2] == ["zero", "-"]


def test_clipping_keeps_sgd_at_the_cliff() -> None:
    free = surface_picture.descend(None)
    clipped = surface_picture.descend(ClipByGlobalNorm(surface_picture.MAX_NORM))
    assert max(free.norms) > 5
    assert free.errors[-1] > 0.05
    assert free.norms[-1] < 1e-4  # on a plain from which it does not come back
    assert clipped.errors[-1] < 1e-3


def test_paths_are_those_of_sgd() -> None:
    free = surface_picture.descend(None)
    point = torch.tensor(free.points[0], requires_grad=True)
    surface_picture.error(point[0], point[1]).backward()
    assert free.points[1] == pytest.approx((point - surface_picture.LR * point.grad).tolist())
    assert free.norms[0] == pytest.approx(point.grad.norm().item())


@pytest.mark.parametrize("name", ["curves", "layers", "surface"])
def test_each_can_be_drawn_from_the_command_line(name: str, tmp_path: Path) -> None:
    for number, each in enumerate(RESULTS):
        (tmp_path / str(number)).mkdir()
        each.save(tmp_path / str(number))
    results = [] if name == "surface" else [str(tmp_path)]
    path = plots.main([name, *results, "--to", str(tmp_path / "new" / "picture.png")])
    picture = imread(path)
    assert min(picture.shape[:2]) > 250
    assert picture[..., :3].std() > 0.05  # something is on it
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]


def test_without_results_it_says_what_it_expects(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no run has ended well; expected the folder that compare.py wrote"):
        plots.main(["curves", str(tmp_path)])
