"""Short names of layers: unique, no longer than needed, and never broken within a word."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gradwatch.reporting.short_names import common_prefix, short_names

WORDS = st.sampled_from(["net", "layers", "0", "1", "11", "attention", "self", "output", "dense", "fc1", "fc2"])
NAMES = st.lists(st.lists(WORDS, min_size=1, max_size=7).map(".".join), min_size=1, max_size=30, unique=True)
T5 = [
    f"t5.{stack}.block.{block}.layer.{place}.{attention}.{end}"
    for stack, places in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"]))
    for block in range(12)
    for place, attention in enumerate(places)
    for end in "qkvo"
]


def layers_meant(short: str, names: list[str]) -> list[str]:
    """The names that a reader may take a short name for: "..." stands for one word or more."""
    pattern = re.escape(short).replace(re.escape("..."), "#")
    pattern = re.sub("^#", r".+\\.", pattern).replace("#", r"\..+\.")
    return [short] if short in names else [name for name in names if re.fullmatch(pattern, name)]


@given(NAMES, st.integers(1, 40))
def test_a_short_name_means_one_layer_and_has_whole_words_in_their_order(names: list[str], width: int) -> None:
    short = short_names(names, width)
    cut = names if short == names else [name.removeprefix(common_prefix(names)) for name in names]
    assert len(set(short)) == len(names)
    for name, shown in zip(cut, short, strict=True):
        assert layers_meant(shown, cut) == [name]
        assert len(shown) <= len(name)
        assert shown == name or len(name) > width or names_alike(name, cut)


def names_alike(name: str, names: list[str]) -> bool:
    """Names that differ in numbers alone are shortened together."""
    return sum(re.sub(r"\d+", "#", other) == re.sub(r"\d+", "#", name) for other in names) > 1


@given(st.lists(st.text(max_size=12), max_size=12, unique=True), st.integers(1, 30))
@example(["a...c", "a.b.c", "x.a.c"], 3)
@example(["a.b.c.d", "a.x.c.d", "a...d"], 5)
def test_names_stay_unique_whatever_they_are(names: list[str], width: int) -> None:
    assert len(set(short_names(names, width))) == len(names)


@given(NAMES)
def test_with_room_enough_only_the_common_prefix_of_long_names_goes(names: list[str]) -> None:
    prefix = common_prefix(names) if max(map(len, names)) > 24 else ""
    assert [prefix + short for short in short_names(names, 200)] == names


@pytest.mark.parametrize("width", [20, 30, 40])
def test_t5_in_a_narrow_column(width: int) -> None:
    short = short_names(T5, width)
    assert len(set(short)) == len(T5)
    assert max(map(len, short)) <= max(width, len("decoder...11...SelfAttention.q"))


def test_repeated_names_and_none_at_all() -> None:
    assert short_names([], 9) == []
    assert short_names(["net.a", "net.a"], 9) == ["net.a", "net.a"]
    assert short_names(["(root)", "net.a", "net.b"], 4) == ["(root)", "a", "b"]


def test_a_large_network_takes_no_time() -> None:
    names = [f"net.{'.'.join(f'{chr(97 + (i * j) % 23)}word' for j in range(1, 9))}.n{i}" for i in range(1000)]
    started = time.process_time()
    short_names(names, 20)
    assert time.process_time() - started < 5
