from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from shown_runs import FINDING, INF, NAN, vanishing_run

from gradwatch.records import Finding, Kind, Snapshot
from gradwatch.reporting import pictures
from gradwatch.reporting.pictures import bars, calls_picture, draw_run, every_so_many, heat_map, log_ticks, png


def deep(count: int, **columns: object) -> Snapshot:
    return Snapshot(0, tuple(f"encoder.layers.{i}.attention.out_projection" for i in range(count)), **columns)


def test_heat_map_holds_the_logarithm_of_the_norms() -> None:
    run = vanishing_run()
    axes = heat_map(run).axes[0]
    shown = axes.collections[0].get_array()
    np.testing.assert_allclose(10**shown, np.stack([snapshot.grad_output_norm for snapshot in run], 1))
    assert [text.get_text() for text in axes.get_yticklabels()] == list(run[0].layers)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "1", "2"]
    assert axes.yaxis_inverted()  # the input is at the top


def test_heat_map_tells_missing_zero_and_nonfinite_apart() -> None:
    run = [Snapshot(0, ("a", "b", "c", "d"), grad_output_norm=[0.0, NAN, INF, 1.0]), Snapshot(1, ("a", "b", "c", "d"))]
    run[1] = replace(run[1], grad_output_norm=[1.0, 1.0, 1.0, 1.0])
    figure = heat_map(run)
    mesh = figure.axes[0].collections[0]
    colours = mesh.to_rgba(mesh.get_array())[:, 0]
    assert len({tuple(colour) for colour in colours}) == 4
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"no value", "exactly zero", "NaN or Inf"}


def test_heat_map_follows_layers_by_name_and_leaves_out_those_without_any_value() -> None:
    run = [Snapshot(0, ("a",), grad_output_norm=[1.0]), Snapshot(5, ("b", "a", "c"), grad_output_norm=[3.0, 2.0, NAN])]
    axes = heat_map(run).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["b", "a"]
    np.testing.assert_allclose(10 ** axes.collections[0].get_array().filled(NAN), [[NAN, 3], [1, 2]])


def test_heat_maps_of_two_runs_share_their_colours() -> None:
    sick, healthy = [deep(3, grad_output_norm=[1e-12, 1e-6, 1.0])], [deep(3, grad_output_norm=[0.9, 1.0, 1.1])]
    limits = [heat_map(run).axes[0].collections[0].get_clim() for run in (sick, healthy)]
    assert limits == [(-8.0, 2.0)] * 2
    shown = heat_map(sick).axes[0].collections[0].get_array()
    np.testing.assert_allclose(shown[:, 0], [-8, -6, 0])  # beyond the end, and not white as a zero


def test_heat_map_of_a_run_beyond_the_shared_colours_has_its_own() -> None:
    low, high = heat_map([deep(3, grad_output_norm=[0.9e9, 1e9, 1.1e9])]).axes[0].collections[0].get_clim()
    assert high - low == pytest.approx(4)
    assert low < 9 < high


def test_heat_map_marks_findings() -> None:
    run = vanishing_run()
    param = replace(FINDING, kind="stalled", layers=("net.5.weight",), step=1)
    closed = replace(FINDING, layers=("net.15",), step=1, closed_step=2)
    loss = replace(FINDING, kind="spike", layers=("loss",), step=2)
    figure = heat_map(run, findings=[FINDING, param, closed, loss])
    axes = figure.axes[0]
    frames = [(frame.get_x(), frame.get_y(), round(frame.get_width(), 3)) for frame in axes.patches]
    assert frames == [(-0.45, -0.45, 2.9), (-0.45, 1.55, 2.9), (0.55, 3.55, 1.9), (0.55, 13.55, 0.9)]
    assert [line.get_xdata()[0] for line in axes.lines] == [1.5]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"found: vanishing, stalled, spike"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [NAN, 0.0, INF, 1e300, 5e-324])
def test_pictures_of_nothing_but_odd_values_can_be_drawn(value: float) -> None:
    snapshot = deep(2, grad_norm=[value] * 2, grad_output_norm=[value] * 2, calls={"cell": np.full(6, value)})
    for figure in (heat_map([snapshot]), bars(snapshot), calls_picture(snapshot, "cell")):
        assert png(figure)[0].startswith(b"\x89PNG")


@pytest.mark.filterwarnings("error")
def test_pictures_without_layers_or_calls_can_be_drawn() -> None:
    empty = Snapshot(0, (), calls={"cell": np.empty(0)})
    for figure in (heat_map([empty]), bars(empty), calls_picture(empty, "cell")):
        assert png(figure)[0].startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no Snapshot to draw; give at least one"):
        heat_map([])


def test_bars_reach_the_end_of_the_axis_and_tell_the_number() -> None:
    axes = bars(deep(2, grad_norm=[1e200, 1.0])).axes[0]
    assert axes.patches[0].get_width() <= axes.get_xlim()[1]
    assert [text.get_text() for text in axes.texts] == ["1.0e200", "1.00"]


def test_dollar_signs_in_names_are_no_formulas() -> None:
    snapshot = Snapshot(0, ("$x^$",), grad_norm=[1.0], grad_output_norm=[1.0], calls={"$x^$": np.ones(6)})
    findings = [Finding("odd$x^$", ("$x^$",), 0, 1, 1, "")]
    for figure in (heat_map([snapshot]), bars(snapshot, findings), calls_picture(snapshot, "$x^$")):
        assert png(figure)[0].startswith(b"\x89PNG")


def test_labels_are_thinned_and_shortened() -> None:
    labels = heat_map([deep(129, grad_output_norm=np.ones(129))]).axes[0].get_yticklabels()
    assert len(labels) == 43
    assert max(len(label.get_text()) for label in labels) <= 34
    assert labels[-1].get_text() == "128.attention.out_projection"


def test_bars_show_parameter_layers_and_colour_the_open_findings() -> None:
    snapshot = vanishing_run()[0]
    figure = bars(snapshot, [FINDING, replace(FINDING, layers=("net.5",), closed_step=0)])
    axes = figure.axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    np.testing.assert_allclose(widths, snapshot.grad_norm[~np.isnan(snapshot.grad_norm)])
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["vanishing"]
    assert axes.get_xscale() == "log"


def test_each_kind_has_a_colour_of_its_own() -> None:
    kinds = [kind for kind in get_args(Kind) if kind != "spike"]  # a spike is about the loss, not a layer
    colours = {kind: pictures._colour(kind) for kind in [*kinds, "somebody's own", "no finding"]}
    assert len(set(colours.values())) == len(colours)


def test_a_flagged_layer_without_parameters_has_a_square() -> None:
    axes = bars(vanishing_run()[0], [Finding("dead", ("net.2",), 0, 1, 1, "")]).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()][:3] == ["net.1", "net.2", "net.3"]
    assert axes.collections[0].get_offsets()[0][1] == 1


def test_calls_picture_holds_the_norm_of_each_call() -> None:
    snapshot = Snapshot(7, ("cell",), calls={"cell": np.array([1e-9, 0.0, INF, 1.0])})
    axes = calls_picture(snapshot, "cell").axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1e-9, NAN, NAN, 1.0])
    assert list(axes.lines[1].get_xdata()) == [3]
    with pytest.raises(ValueError, match=r"'head' was not called more than once; expected one of \['cell'\]"):
        calls_picture(snapshot, "head")


def test_without_matplotlib_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        bars(vanishing_run()[0])


def test_without_matplotlib_a_run_has_no_pictures_and_that_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    pictures._say_once.cache_clear()
    with pytest.warns(UserWarning, match="pip install matplotlib"):
        assert draw_run(vanishing_run()) == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw_run(vanishing_run()) == {}
    pictures._say_once.cache_clear()


def test_pyplot_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    assert png(heat_map(vanishing_run()))[0].startswith(b"\x89PNG")


@pytest.mark.parametrize(("count", "most"), [(0, 5), (1, 5), (5, 5), (6, 5), (50, 12), (401, 400), (1000, 7)])
def test_thinning_keeps_the_last_and_never_crowds(count: int, most: int) -> None:
    kept = every_so_many(count, most)
    assert len(kept) <= most
    assert kept == sorted(set(kept))
    assert not count or (kept[0], kept[-1]) == (0, count - 1)


@pytest.mark.parametrize("span", [(-26.3, -1.2), (-0.4, 0.4), (3.0, 3.0), (-300.0, 300.0)])
def test_ticks_are_powers_of_ten_inside(span: tuple[float, float]) -> None:
    ticks = log_ticks(*span)
    assert len(ticks) <= 10
    assert all(span[0] <= tick <= span[1] for tick in ticks)
