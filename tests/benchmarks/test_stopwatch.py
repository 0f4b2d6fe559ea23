"""A stopwatch counts each function's own time, by a clock that the test moves."""

import threading
from collections.abc import Iterator
from itertools import repeat

import columns_cost
import pytest
from stopwatch import Stopwatch

NOW = [0.0]


def work(seconds: float) -> None:
    NOW[0] += seconds


class Parts:
    @staticmethod
    def inner() -> str:
        work(4.0)
        return "inner"

    @classmethod
    def middle(cls) -> str:
        work(2.0)
        return cls.inner() + cls.inner()

    def outer(self) -> str:
        work(1.0)
        return self.middle()

    def fails(self) -> None:
        work(8.0)
        raise ValueError("on purpose")

    def yields(self) -> Iterator[int]:
        yield 1


HERE = f"{__name__}:Parts"


@pytest.fixture
def watch() -> Stopwatch:
    return Stopwatch(clock=lambda: NOW[0])


def test_each_function_has_its_own_time(watch: Stopwatch) -> None:
    before = dict(vars(Parts))
    with watch.on({"out": [f"{HERE}.outer"], "mid": [f"{HERE}.middle"], "in": [f"{HERE}.inner"]}):
        assert Parts().outer() == "innerinner"
    lap = watch.lap()
    assert lap.seconds == {"out": 1.0, "mid": 2.0, "in": 8.0}
    assert lap.calls == {"out": 1, "mid": 1, "in": 2}
    assert dict(vars(Parts)) == before
    assert not watch.lap().seconds


def test_a_function_that_is_not_timed_counts_for_its_caller(watch: Stopwatch) -> None:
    with watch.on({"out": [f"{HERE}.outer", f"{HERE}.inner"]}):
        Parts().outer()
    assert watch.lap().seconds == {"out": 11.0}


def test_an_error_ends_the_time(watch: Stopwatch) -> None:
    with watch.on({"fails": [f"{HERE}.fails"], "in": [f"{HERE}.inner"]}):
        with pytest.raises(ValueError, match="on purpose"):
            Parts().fails()
        Parts.inner()
    assert watch.lap().seconds == {"fails": 8.0, "in": 4.0}


def test_other_threads_are_not_timed(watch: Stopwatch) -> None:
    with watch.on({"in": [f"{HERE}.inner"]}):
        thread = threading.Thread(target=Parts.inner)
        thread.start()
        thread.join()
    assert not watch.lap().calls


def test_the_cost_of_timing_is_taken_off() -> None:
    ticks = iter(range(10**9))
    watch = Stopwatch(clock=lambda: float(next(ticks)))  # each look at the clock takes a second
    one, two = watch.timed("one", lambda: None), watch.timed("two", lambda: one())
    for _ in repeat(None, 10):
        two()
    assert {name: round(seconds, 1) for name, seconds in watch.lap().seconds.items()} == {"one": 0.0, "two": 0.0}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (f"{HERE}.gone", "Parts.gone, of 'outputs', is not there"),
        ("gradwatch.nowhere:name", "gradwatch.nowhere:name, of 'outputs', is not there"),
        ("gradwatch.records:COLUMNS", "is a tuple; expected a function that returns"),
        (f"{HERE}.yields", "expected a function that returns"),
    ],
)
def test_a_name_that_is_no_function_is_refused_before_anything_is_timed(
    watch: Stopwatch, target: str, message: str
) -> None:
    inner = vars(Parts)["inner"]
    with pytest.raises(LookupError, match=message), watch.on({"in": [f"{HERE}.inner"], "outputs": [target]}):
        pass
    assert vars(Parts)["inner"] is inner


def test_no_function_is_in_two_groups() -> None:
    targets = [target for _, functions in columns_cost.READINGS.values() for target in functions]
    assert len(set(targets)) == len(targets)
