from __future__ import annotations

import pytest
from shown_runs import INF, NAN, vanishing_run

from gradwatch.records import Snapshot
from gradwatch.reporting import keys
from gradwatch.reporting.keys import DEFAULT_COLUMNS, LAYER_COLUMNS, scalars, tensorboard_tags


def test_layers_stand_in_network_order_and_missing_values_are_left_out() -> None:
    found = [key for key in scalars(vanishing_run(depth=2)[0]) if key.startswith("grad_norm/")]
    assert found == ["grad_norm/net.1", "grad_norm/net.3", "grad_norm/net.5"]


def test_run_wide_values_have_keys_of_their_own() -> None:
    values = scalars(vanishing_run()[0])
    assert [values[key] for key in ("grad_norm_total", "grad_norm_total_after", "clip_coefficient")] == [1.0, 0.5, 0.5]


@pytest.mark.parametrize(("before", "after"), [(NAN, NAN), (1.0, NAN), (INF, INF)])
def test_a_clip_coefficient_that_means_nothing_is_left_out(before: float, after: float) -> None:
    assert "clip_coefficient" not in scalars(Snapshot(0, ("a",), total_norm=before, total_norm_after=after))


def test_infinity_is_a_value() -> None:
    assert scalars(Snapshot(0, ("a",), grad_norm=[INF]))["grad_norm/a"] == INF


@pytest.mark.filterwarnings("error")
def test_the_ratio_survives_infinite_weights() -> None:
    snapshot = Snapshot(0, ("a", "b"), grad_norm=[INF, 1.0], weight_norm=[INF, 2.0])
    assert scalars(snapshot, ["grad_to_weight_ratio"]) == {"grad_to_weight_ratio/b": 0.5}


def test_updates_are_logged_by_default() -> None:
    snapshot = Snapshot(0, ("a", "relu"), weight_norm=[2.0, NAN], update_norm=[0.002, NAN])
    assert scalars(snapshot) == {"update_to_weight/a": 0.001}


def test_unknown_column_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'norm' is no column.*expected one of grad_norm, .*grad_to_weight_ratio"):
        scalars(vanishing_run()[0], ["norm"])


def test_tags_sort_as_the_network_runs() -> None:
    layers = tuple(f"layer{i}" for i in range(120))
    tags = list(tensorboard_tags(layers, ["grad_norm"]).values())
    assert tags == sorted(tags)
    assert tags[3] == "grad_norm/003 layer3"


def test_the_table_in_the_docstring_names_every_default_key() -> None:
    assert set(DEFAULT_COLUMNS) <= set(LAYER_COLUMNS)
    run_wide = scalars(Snapshot(0, (), total_norm=1, total_norm_after=1))
    for name in [*(f"{column}/" for column in DEFAULT_COLUMNS), *run_wide]:
        assert f"``{name}" in (keys.__doc__ or "")
