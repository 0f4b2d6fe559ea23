"""The contract of every exported detector; a new one is collected here by its export."""

import copy
import math
import pickle
import re
import warnings
from dataclasses import fields
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwatch import detectors
from gradwatch.records import ARRAYS, COLUMNS, Finding, Kind, Snapshot

CLASSES = [getattr(detectors, name) for name in detectors.__all__ if name not in ("Ledger", "default_detectors")]
LAYERS = ("a", "b", "c", "d")
NAN = float("nan")

# A Snapshot with a finding for each detector; in layers a and b if it names layers.
SICK = {
    "Vanishing": Snapshot(7, LAYERS, grad_norm=[1] * 4, grad_output_norm=[2e-9, 3e-8, 1, 1]),
    "Exploding": Snapshot(7, LAYERS, grad_norm=[9] * 4, weight_norm=[1] * 4, grad_output_norm=[3e9, 2e8, 1, 1]),
    "NonFinite": Snapshot(7, LAYERS, output_rms=[math.inf, 1, 1, 1], nonfinite=[3, 2, 0, 0]),
    "Dead": Snapshot(7, LAYERS, dead_fraction=[0.85, 0.9, NAN, 0.1]),
    "Saturated": Snapshot(
        7, LAYERS, saturated_fraction=[0.75, 0.9, NAN, NAN], grad_norm=[NAN, NAN, 1, 1], grad_output_norm=[1] * 4
    ),
    "Stalled": Snapshot(7, LAYERS, params=LAYERS, param_grad_norm=[0, NAN, 1, 1]),
    "Spike": Snapshot(
        80, LAYERS, trace_step=np.arange(81), trace_loss=[2.0] * 80 + [123.0], trace_total_norm=[2.0] * 81
    ),
}

SICK |= {
    "CarriedOver": Snapshot(7, LAYERS, params=LAYERS, carried_over=("a", "b")),
    "CutOff": Snapshot(7, LAYERS, params=("a", "b"), param_grad_norm=[NAN, NAN]),
    "Unmoved": Snapshot(
        7, LAYERS, params=LAYERS, param_grad_norm=[1] * 4, param_update_norm=[0, 0, 1, 1], param_weight_norm=[1] * 4,
        param_groups=["SGD 0"] * 4, groups=["SGD 0"], group_learning_rate=[0.0],
    ),
    "IdleClip": Snapshot(7, LAYERS, clip="before backward", clip_max_norm=1.5),
    "OutOfSync": Snapshot(7, LAYERS, out_of_sync={"a": -1, "b": -1}),
    "Broadcast": Snapshot(7, LAYERS, broadcast="(N, 1) and (N,) to (N, N)"),
    "NotLearning": Snapshot(7, LAYERS, update_to_weight=[2] * 4, trace_step=np.arange(30), trace_loss=[2.0] * 30),
}  # fmt: skip

KINDS = {
    "NotLearning": "not-learning", "CutOff": "stalled", "CarriedOver": "carried-over", "IdleClip": "idle-clip",
    "OutOfSync": "out-of-sync",
}  # fmt: skip

PLACES = {"Spike": ("loss",), "Broadcast": ("loss",), "NotLearning": ("loss",), "IdleClip": ("clip_grad_norm_",)}

every_detector = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)


def thresholds(kind: Any) -> list[Any]:
    return [field for field in fields(kind) if field.init]


def impatient(kind: Any) -> Any:
    """Return a detector that needs one Snapshot only, where its patience is its own."""
    return kind(steps=1) if kind.__name__ in ("Unmoved", "Stalled") else kind()


def found(detector: Any, snapshot: Snapshot) -> list[Finding]:
    return list(detector(snapshot))


def test_the_default_set_has_every_detector_once_and_afresh() -> None:
    first, second = detectors.default_detectors(), detectors.default_detectors()
    assert {type(detector) for detector in first} == set(CLASSES)
    assert len(first) == len(CLASSES)
    assert all(a is not b for a, b in zip(first, second, strict=True))


@every_detector
@pytest.mark.parametrize(
    "snapshot",
    [
        Snapshot(0, ()),
        Snapshot(0, LAYERS),
        Snapshot(0, ("a",), **{name: [1.0] for name in COLUMNS if "fraction" not in name and name != "nonfinite"}),
        Snapshot(0, ("a",), grad_norm=[1e-12], weight_norm=[1.0], grad_output_norm=[1e-12], calls={"a": np.ones(9)}),
    ],
    ids=["no layers", "no values", "one layer", "one faint layer"],
)
def test_finds_nothing_where_there_is_nothing(kind: Any, snapshot: Snapshot) -> None:
    assert found(kind(), snapshot) == []


@every_detector
@pytest.mark.parametrize("value", [0, -1, NAN, "1", None, True], ids=repr)
def test_refuses_a_bad_threshold_when_it_is_given(kind: Any, value: object) -> None:
    for field in thresholds(kind):
        with pytest.raises(ValueError, match=rf"{kind.__name__}: {field.name} is {value!r}; expected"):
            kind(**{field.name: value})


@every_detector
def test_refuses_half_a_step_or_sample(kind: Any) -> None:
    for field in thresholds(kind):
        if isinstance(field.default, int):
            with pytest.raises(ValueError, match=rf"{field.name} is 2.5; expected a whole number"):
                kind(**{field.name: 2.5})


@every_detector
def test_repr_shows_the_thresholds(kind: Any) -> None:
    detector = kind()
    assert all(f"{field.name}={getattr(detector, field.name)!r}" in repr(detector) for field in thresholds(kind))


def numbers_in(text: str) -> list[float]:
    found = re.findall(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)(%?)", text)
    return [float(number) / (100 if percent else 1) for number, percent in found]


@every_detector
def test_a_finding_tells_kind_layers_value_and_threshold_and_leaves_advice_to_the_cause(kind: Any) -> None:
    snapshot = SICK[kind.__name__]
    findings = found(impatient(kind), snapshot)
    assert findings
    for finding in findings:
        assert finding.kind in get_args(Kind)
        assert finding.kind == KINDS.get(kind.__name__, kind.__name__.lower())
        assert finding.layers == PLACES.get(kind.__name__, ("a", "b"))
        assert finding.step == snapshot.step
        assert finding.is_open
        assert not re.search(r"[Tt]ry |[Ll]ook (at|for) ", finding.message)
        for number in {finding.value, finding.threshold} - {0.0}:
            assert any(math.isclose(number, n, rel_tol=0.06) for n in numbers_in(finding.message)), finding


@every_detector
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda detector: pickle.loads(pickle.dumps(detector))])
def test_a_copy_goes_on_where_the_original_stood(kind: Any, clone: Any) -> None:
    detector, sick = impatient(kind), SICK[kind.__name__]
    found(detector, Snapshot(0, (), trace_step=np.arange(60), trace_loss=[2.0] * 60, trace_total_norm=[1.0] * 60))
    twin = clone(detector)
    assert repr(twin) == repr(detector)
    assert found(twin, sick) == found(detector, sick) != []


known_norms = st.one_of(st.sampled_from([math.inf, 0.0, 1e-45, 1e38]), st.floats(1e-45, 1e38), st.floats(0.1, 9))
norms = st.one_of(st.just(NAN), known_norms)
shares = st.one_of(st.sampled_from([NAN, 0.0, 1.0]), st.floats(0, 1))
losses = st.one_of(norms, norms.map(lambda value: -value if value < math.inf else value))


@st.composite
def snapshots(draw: Any) -> Snapshot:
    layers = LAYERS[: draw(st.integers(0, 4))]
    steps = draw(st.integers(0, 8))

    def column(values: Any, size: int) -> list[float]:
        return draw(st.lists(values, min_size=size, max_size=size))

    return Snapshot(
        draw(st.integers(0, 999)),
        layers,
        **{name: column(shares if "fraction" in name else norms, len(layers)) for name in COLUMNS},
        params=layers,
        **{name: column(norms, len(layers)) for name, along in ARRAYS.items() if along == "params"},
        calls={layer: np.array(column(known_norms, draw(st.integers(2, 7)))) for layer in layers[:1]},
        total_norm=draw(norms),
        skipped=draw(st.booleans()),
        trace_step=np.arange(steps),
        trace_loss=np.array(column(losses, steps)),
        trace_total_norm=np.array(column(norms, steps)),
    )


@every_detector
@given(run=st.lists(snapshots(), min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_no_snapshot_makes_it_raise_warn_or_give_nan(kind: Any, run: list[Snapshot]) -> None:
    detector = kind(**{"start": 1, "delay": 1} if kind.__name__ == "Spike" else {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        findings = [(finding, snapshot) for snapshot in run for finding in detector(snapshot)]
    for finding, snapshot in findings:
        assert not math.isnan(finding.value)
        assert not math.isnan(finding.threshold)
        assert finding.layers
        assert all(finding.layers)
        places = [snapshot.layers.index(layer) for layer in finding.layers if layer in snapshot.layers]
        assert finding.kind == "nonfinite" or places == sorted(places)
