"""Rows of a table of layers, with repeated blocks folded."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from gradwatch.reporting.blocks import Spread, extremes, rows_of

GPT2 = ["wte", "wpe", *(f"h.{i}.{e}" for i in range(12) for e in ("ln_1", "attn", "ln_2", "mlp")), "ln_f", "head"]
WORDS = st.sampled_from(["layers", "0", "1", "2", "5", "attn", "fc1", "fc2", "0-1", "block3", "block4"])
NAMES = st.lists(st.lists(WORDS, min_size=1, max_size=4).map(".".join), max_size=40, unique=True)


def names_of(*args: object, **kwargs: object) -> list[str]:
    return [row.name for row in rows_of(*args, **kwargs)]


@given(NAMES, st.data(), st.integers(0, 20))
def test_each_layer_is_in_one_row_whose_name_is_its_own(names: list[str], data: st.DataObject, most: int) -> None:
    kinds, marks = (data.draw(st.lists(st.sampled_from(["", "a"]), min_size=n, max_size=n)) for n in [len(names)] * 2)
    rows = rows_of(names, kinds, marks, most=most)
    assert sorted(place for row in rows for place in row.members) == list(range(len(names)))
    assert len({row.name for row in rows}) == len(rows)
    assert [row.members[0] for row in rows] == sorted(row.members[0] for row in rows)
    for row in rows:
        assert len({(kinds[place], marks[place]) for place in row.members}) == 1


def test_a_small_network_is_not_folded() -> None:
    assert names_of(GPT2, most=len(GPT2)) == GPT2


def test_repeated_blocks_are_a_row_each_part() -> None:
    folded = ["wte", "wpe", "h.0-11.ln_1", "h.0-11.attn", "h.0-11.ln_2", "h.0-11.mlp", "ln_f", "head"]
    assert names_of(GPT2) == folded


def test_sick_and_extreme_layers_keep_rows_of_their_own() -> None:
    marks = ["vanishing" if name == "h.3.mlp" else "" for name in GPT2]
    names = names_of(GPT2, marks=marks, apart={GPT2.index("h.11.attn")})
    assert names[3:] == ["h.0-10.attn", "h.0-11.ln_2", "h.0-2,4-11.mlp", "h.3.mlp", "h.11.attn", "ln_f", "head"]


def test_many_sick_layers_share_a_row_apart_from_the_healthy_ones() -> None:
    layers = [f"layers.{i}" for i in range(300)]
    marks = ["vanishing"] * 200 + [""] * 100
    assert names_of(layers, marks=marks) == ["layers.0-199", "layers.200-299"]


def test_layers_of_two_kinds_in_turns() -> None:
    rows = rows_of([str(i) for i in range(300)], ["Linear", "ReLU"] * 150)
    assert [(row.name, len(row.members)) for row in rows] == [("0-298", 150), ("1-299", 150)]


def test_numbers_in_words_are_folded_only_where_that_is_needed() -> None:
    resnet = [f"layer{i}.{j}.conv{k}" for i in (1, 2, 3, 4) for j in range(6) for k in (1, 2, 3)]
    assert names_of(resnet)[:4] == ["layer1.0-5.conv1", "layer1.0-5.conv2", "layer1.0-5.conv3", "layer2.0-5.conv1"]
    assert names_of(resnet, most=10) == [f"layer1-4.0-5.conv{k}" for k in (1, 2, 3)]
    dense = [f"block{i}.layer{j}.convs.{k}" for i in (1, 2) for j in range(10) for k in (0, 1)]
    assert names_of(dense, most=10) == ["block1-2.layer0-9.convs.0-1"]
    assert names_of([f"fc{i}" for i in range(1, 301)]) == ["fc1-300"]


def test_a_network_that_repeats_nothing_keeps_all_rows() -> None:
    names = [f"{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(300)]
    assert names_of(names) == names


def test_spreads_and_extremes_leave_out_what_is_unknown() -> None:
    assert all(map(math.isnan, vars(Spread.of([math.nan])).values()))
    assert extremes([math.nan, 1.0, math.inf, 0.0], [math.nan] * 4) == {2, 3}
