"""A measured optimizer step: the Snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwatch.layer_kinds import is_activation
from gradwatch.plain_values import as_array, as_names, as_number, as_step, of_type
from gradwatch.shown import Shown

Array = npt.NDArray[np.float64]

RECURRENT = ("RNN", "LSTM", "GRU")  # torch's networks, whose time steps are no calls


def _values(along: str) -> Any:
    """Return a field with one number for each entry of another field."""
    return field(default=None, metadata={"along": along})


@dataclass(frozen=True)
class Origin:
    """The operation that turned finite numbers into NaN or Inf, in the step that did it.

    Attributes:
        step: index of the optimizer step.
        source: ``operation``; ``batch`` where the batch held NaN; ``weights`` where they did, before the step.
        operation: its name in the user's words, such as ``sqrt``.
        way: ``forward`` or ``backward``.
        layer: the innermost module that ran; empty where none did, as in a loss.
        line: file and line of the user's code.
        function: the function that the line is in.
        given: from where to where the numbers go that it was given.

    Example:
        >>> print(Origin(7, "operation", "sqrt", "backward", "encoder", "model.py:31", "magnitude", "0 to 2.5"))
        the gradient of `sqrt` (given 0 to 2.5), layer encoder, model.py:31, in magnitude
    """

    step: int
    source: str
    operation: str = ""
    way: str = ""
    layer: str = ""
    line: str = ""
    function: str = ""
    given: str = ""

    def __str__(self) -> str:
        what = f"{'the gradient of ' if self.way == 'backward' else ''}`{self.operation}`"
        what += f" (given {self.given})" if self.given else ""
        where = [f"layer {self.layer}" if self.layer else "", self.line, f"in {self.function}" if self.function else ""]
        return ", ".join([what, *filter(None, where)])

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Origin:
        """Return the Origin of which these are the fields; keys that are no field are ignored."""
        given = {f.name: of_type(str, plain[f.name]) for f in fields(cls) if f.name != "step" and f.name in plain}
        return cls(as_step(plain["step"]), **given)


@dataclass(frozen=True, eq=False)
class Snapshot(Shown):
    """One measured optimizer step, as columns over the layers, like a data frame.

    Every column has one value for each layer, in network order. NaN means that the layer has no such value (an
    activation has no weights); it never means a bad gradient. Norms are safe against overflow, so a norm of ``inf``
    always means that the layer's tensors hold NaN or Inf.

    Attributes:
        step: index of the optimizer step, counted from 0.
        layers: names as ``named_modules()`` gives them; ``(root)`` is the model itself.
        kinds: class name of each layer.
        grad_norm: L2 norm of the gradient of the layer's own parameters.
        weight_norm: L2 norm of these parameters.
        grad_output_norm: L2 norm of the gradient at the layer's output, over all its calls.
        grad_output_rms: the same as a root mean square, which does not grow with the layer's size.
        gain: RMS of the gradient at the layer's input over the RMS at its output. Where the input feeds several layers
            (a skip connection), its gradient is the sum over all of them.
        zero_fraction: share of exact zeros in the gradient of its parameters, 0 to 1.
        nonfinite: number of NaN and Inf entries in the gradient of its parameters.
        output_rms: root mean square of the layer's output, in the calls that a gradient of the loss came back to;
            NaN for ReLUs and normalization layers, which only pass on NaN and Inf.
        dead_fraction: share of a ReLU's units that were active for no sample.
        weight_gain: factor by which a layer's weights alone multiply the RMS of a gradient, if they were independent,
            for Linears and convolutions: their L2 norm over the square root of the inputs (times the stride's area).
        size: number of its own trained parameters.
        saturated_fraction: share of a bounded activation's outputs where its slope is under 2.7 % of the steepest.
        ran: 1 where the layer was called, with or without a gradient; 0 where it was not, NaN where no hook sees it.
        feeds: for each layer the places of the layers, nearer to the loss, that take its output, such as ``"3 7"``.
            Empty where it is not known; the layers then count as one chain.
        params: names of the trained parameters: they require a gradient and belong to the optimizer.
        left_out: names of parameters that have a gradient but belong to no optimizer so far, in training mode.
        param_grad_norm: L2 norm of the gradient of each of ``params``; NaN where ``.grad`` is None.
        update_norm: L2 norm of what the step changed in the layer's own parameters, measured from the weights.
        update_to_weight: ``update_norm`` over ``weight_norm``; about 1e-3 is usual. NaN where the weights are all zero.
        param_size, param_weight_norm, param_update_norm: number of entries, and the same norms, of each of ``params``.
        param_changed: share of a parameter's entries that the step changed; NaN for float32 and wider, where it is not
            counted.
        param_put_back: 1 where a parameter is as it was before the last measured step, which had moved it; else 0.
        param_dtypes: types of ``params``, such as ``bfloat16``; empty where all are ``float32``.
        param_groups: parameter group that each of ``params`` belongs to, one of ``groups``.
        groups: the parameter groups that stepped: class of the optimizer and number of the group, such as ``Adam 0``;
            ``Adam-1 0`` is the first group of a second Adam.
        group_learning_rate, group_initial_rate: rate of each group, and what a schedule started from; NaN without one.
        group_weight_decay: weight decay of each group; NaN where it has none.
        schedule_interval: ``step`` or ``epoch``, by which Lightning advances the schedule of the learning rate; empty
            without one.
        carried_over: parameters whose gradient still held that of an earlier step when this step's began.
        out_of_sync: parameters and buffers of which the processes hold different values, though they should be the
            same, and the process that differs from all others; -1 where that is not one alone.
        clip: the clip by norm that ran in this step: empty where none was seen, else ``norm``, or what is wrong with
            it: ``before backward``, ``no gradients``.
        clip_max_norm: bound of that clip; NaN where none was seen, or where the norm before it is not known.
        broadcast: the shapes that the loss brought together by broadcasting, such as ``(N, 1) and (N,) to (N, N)`` for
            N samples, where it compares each output with each target; empty where it does not.
        classes: of the loss, where it is a mean cross-entropy over classes and nothing else; NaN where not, or unknown.
        chance: the loss of a constant prediction: ln C of such a cross-entropy over C classes; for a mean squared error
            or a binary cross-entropy of the network's output, that of the batch's mean target. NaN where not known.
        code: the layers that give the mean and the deviation of a sampled code, as in a variational autoencoder.
        calls: for a layer that was called more than once (a cell), the norm of the gradient at its output at each call,
            first call first; for torch's recurrent networks, the norm at their input at each time step.
        total_norm: L2 norm of all parameters' gradients, before clipping.
        total_norm_after: the same when the optimizer stepped, after clipping.
        loss: the step's loss; ``inf`` where it was NaN.
        skipped: True if the optimizer did not step (a loss scaler met an overflow).
        frozen_size: number of entries of the parameters that require no gradient.
        optimizer: class name of the optimizer that stepped last.
        learning_rate: the largest of its groups.
        input_rms: root mean square of the floating tensors that the first layer was given.
        last_activation: the activation between the network and a squared error, such as ``Sigmoid``; empty where there
            is none, or where it was not looked at (it is in the first steps of a Trainer).
        out_of_reach: share of the targets that this activation cannot give, in this process's batch.
        least_error: mean square of how far the targets are beyond its range: a squared error cannot be less.
        told: a fault of the step that its trainer knows, such as ``ignored labels``; empty where it knows of none.
        dtype: the half precision of a layer's output, such as ``float16``; empty where there was none.
        loss_scale: factor on the loss in the backward pass.
        origin: the operation that made NaN at this step, or at an unmeasured one before it; None where none was found.
        trace_step, trace_loss, trace_total_norm: index, loss and, where asked for, total norm of every optimizer step
            since the last Snapshot, this one included. Non-finite values are ``inf``.

    Raises:
        ValueError: for a column, or names, of the wrong length.

    Example:
        >>> snapshot = Snapshot(step=0, layers=("first", "last"), grad_norm=[1e-9, 1.0], weight_norm=[2.0, 2.0])
        >>> snapshot.grad_to_weight_ratio
        array([5.e-10, 5.e-01])
        >>> snapshot.missing["gain"]
        ('first', 'last')
    """

    step: int
    layers: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    grad_norm: Array = _values("layers")
    weight_norm: Array = _values("layers")
    grad_output_norm: Array = _values("layers")
    grad_output_rms: Array = _values("layers")
    gain: Array = _values("layers")
    zero_fraction: Array = _values("layers")
    nonfinite: Array = _values("layers")
    output_rms: Array = _values("layers")
    dead_fraction: Array = _values("layers")
    saturated_fraction: Array = _values("layers")
    weight_gain: Array = _values("layers")
    size: Array = _values("layers")
    ran: Array = _values("layers")
    feeds: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    param_grad_norm: Array = _values("params")
    update_norm: Array = _values("layers")
    update_to_weight: Array = _values("layers")
    param_size: Array = _values("params")
    param_weight_norm: Array = _values("params")
    param_update_norm: Array = _values("params")
    param_changed: Array = _values("params")
    param_put_back: Array = _values("params")
    param_dtypes: tuple[str, ...] = ()
    param_groups: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    group_learning_rate: Array = _values("groups")
    group_initial_rate: Array = _values("groups")
    group_weight_decay: Array = _values("groups")
    schedule_interval: str = ""
    carried_over: tuple[str, ...] = ()
    out_of_sync: Mapping[str, int] = field(default_factory=dict)
    clip: str = ""
    clip_max_norm: float = float("nan")
    broadcast: str = ""
    classes: float = float("nan")
    chance: float = float("nan")
    code: tuple[str, ...] = ()
    calls: Mapping[str, Array] = field(default_factory=dict)
    total_norm: float = float("nan")
    total_norm_after: float = float("nan")
    loss: float = float("nan")
    skipped: bool = False
    frozen_size: float = float("nan")
    optimizer: str = ""
    learning_rate: float = float("nan")
    input_rms: float = float("nan")
    last_activation: str = ""
    told: str = ""
    out_of_reach: float = float("nan")
    least_error: float = float("nan")
    dtype: str = ""
    loss_scale: float = float("nan")
    origin: Origin | None = None
    trace_step: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    trace_loss: Array = _values("trace_step")
    trace_total_norm: Array = _values("trace_step")

    def __post_init__(self) -> None:
        # Arrays are made here, so that detectors and tests may write lists and every reader gets arrays.
        self._set("kinds", self.kinds or ("",) * len(self.layers))
        if len(self.kinds) != len(self.layers):
            raise ValueError(f"kinds has {len(self.kinds)} names; expected one for each of {len(self.layers)} layers")
        self._set("trace_step", np.asarray(self.trace_step, np.int64))
        self._set("calls", {layer: np.asarray(norms, np.float64) for layer, norms in self.calls.items()})
        for name, along in ARRAYS.items():
            given, count = getattr(self, name), len(getattr(self, along))
            values = None if given is None else np.asarray(given, np.float64)
            if values is not None and values.shape != (count,):
                raise ValueError(
                    f"column {name} has shape {values.shape}; expected one value for each of {count} {along}"
                )
            # A column without values is one number that is shown many times: it takes no memory, for any model.
            is_empty = values is None or bool(np.isnan(values).all())
            self._set(name, np.broadcast_to(np.nan, count) if is_empty else values)
        for name, along in {"param_dtypes": "params", "param_groups": "params", "feeds": "layers"}.items():
            if len(getattr(self, name)) not in (0, len(getattr(self, along))):
                expected = f"expected none or {len(getattr(self, along))}"
                raise ValueError(f"{name} has {len(getattr(self, name))} names; {expected}")
        if np.isnan(self.update_to_weight).all() and not np.isnan(self.update_norm).all():
            self._set("update_to_weight", self.update_norm / self._usable_weight_norm)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the way past frozen=True

    @property
    def nbytes(self) -> int:
        """Bytes of the columns that have values; names are shared by the Snapshots of a run."""
        arrays = [*(getattr(self, name) for name in ARRAYS), *self.calls.values(), self.trace_step]
        return sum(array.nbytes for array in arrays if array.strides != (0,))

    @property
    def grad_to_weight_ratio(self) -> Array:
        """Gradient norm over weight norm of each layer; NaN where the weights are all zero or not finite."""
        return self.grad_norm / self._usable_weight_norm

    @property
    def _usable_weight_norm(self) -> Array:
        usable = (self.weight_norm > 0) & np.isfinite(self.weight_norm)
        return np.where(usable, self.weight_norm, np.nan)

    @property
    def clip_coefficient(self) -> float:
        """Total norm after clipping over the norm before: 1 where nothing was clipped."""
        return 1.0 if self.total_norm == 0 else float(self.total_norm_after) / float(self.total_norm)

    def takes_steps(self, layer: str) -> bool:
        """Return True if a layer goes through time by itself, in one call."""
        return dict(zip(self.layers, self.kinds, strict=True)).get(layer) in RECURRENT

    def calls_as_text(self, layer: str) -> str:
        """Return how often a layer was called, or how many time steps it took by itself.

        Example:
            >>> Snapshot(0, ("rnn",), kinds=("LSTM",), calls={"rnn": np.ones(60)}).calls_as_text("rnn")
            '60 time steps'
        """
        return f"{len(self.calls[layer])} {'time steps' if self.takes_steps(layer) else 'calls'}"

    def recurrent_calls(self) -> list[tuple[str, Array]]:
        """Return the calls of each layer but activations: one that is called at many depths is no recurrence.

        Example:
            >>> calls = {"cell": np.ones(9), "act": np.ones(9)}
            >>> snapshot = Snapshot(0, ("cell", "act"), kinds=("RNNCell", "ReLU"), calls=calls)
            >>> [layer for layer, _ in snapshot.recurrent_calls()]
            ['cell']
        """
        kinds = dict(zip(self.layers, self.kinds, strict=True))
        return [(layer, norms) for layer, norms in self.calls.items() if not is_activation(kinds.get(layer, ""))]

    @property
    def missing(self) -> dict[str, tuple[str, ...]]:
        """Column -> the layers that have no value in it."""
        absent = {name: np.isnan(getattr(self, name)) for name in COLUMNS}
        return {name: tuple(np.array(self.layers, object)[gone]) for name, gone in absent.items() if gone.any()}

    def to_dict(self) -> dict[str, Any]:
        """Return all fields that have a value as plain numbers, texts and lists, for a checkpoint or JSON."""
        plain: dict[str, Any] = {"step": int(self.step), **{name: list(getattr(self, name)) for name in NAMES}}
        plain |= {name: float(value) for name in _NUMBERS if not np.isnan(value := getattr(self, name))}
        plain |= {name: value for name in _TEXTS if (value := getattr(self, name))}
        plain |= {"skipped": True} if self.skipped else {}
        plain |= {"out_of_sync": dict(self.out_of_sync)} if self.out_of_sync else {}
        plain |= {"origin": dict(vars(self.origin))} if self.origin else {}
        plain |= {name: values.tolist() for name in ARRAYS if not np.isnan(values := getattr(self, name)).all()}
        if self.calls:
            plain["calls"] = {layer: norms.tolist() for layer, norms in self.calls.items()}
        if len(self.trace_step):
            plain["trace_step"] = self.trace_step.tolist()
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Snapshot:
        """Return the Snapshot that :meth:`to_dict` was called on; keys that are no field are ignored.

        Every value is checked, as a damaged line of a record must not pass for a Snapshot.

        Raises:
            DAMAGE: any of these errors, for a value of the wrong type or length.

        Example:
            >>> Snapshot.from_dict({"step": 3, "layers": ["fc"], "loss": "inf"}).loss
            inf
            >>> Snapshot.from_dict({"step": 3, "layers": ["fc"], "loss": ["inf"]})
            Traceback (most recent call last):
                ...
            TypeError: ['inf'] is no number
        """
        given: dict[str, Any] = {name: as_names(plain[name]) for name in NAMES if name in plain}
        given |= {name: as_number(plain[name]) for name in _NUMBERS if name in plain}
        given |= {name: of_type(str, plain[name]) for name in _TEXTS if name in plain}
        given |= {name: as_array(plain[name]) for name in ARRAYS if name in plain}
        calls, steps = of_type(dict, plain.get("calls", {})), of_type(list, plain.get("trace_step", []))
        apart = of_type(dict, plain.get("out_of_sync", {}))
        origin = Origin.from_dict(of_type(dict, plain["origin"])) if "origin" in plain else None
        return cls(
            as_step(plain["step"]),
            skipped=of_type(bool, plain.get("skipped", False)),
            calls={layer: as_array(norms) for layer, norms in calls.items()},
            trace_step=np.array([as_step(step) for step in steps], np.int64),
            out_of_sync={of_type(str, name): of_type(int, rank) for name, rank in apart.items()},
            origin=origin,
            **given,
        )


ARRAYS: dict[str, str] = {f.name: f.metadata["along"] for f in fields(Snapshot) if "along" in f.metadata}
"""Name of each array of a Snapshot -> the field with whose entries it is aligned."""
COLUMNS: tuple[str, ...] = tuple(name for name, along in ARRAYS.items() if along == "layers")
NAMES = (
    "layers", "kinds", "params", "left_out", "param_dtypes", "param_groups", "groups", "carried_over", "feeds", "code",
)  # fmt: skip
_SINCE_0_2 = (  # last: the order of a record
    "clip_max_norm", "frozen_size", "out_of_reach", "least_error", "classes", "chance",
)  # fmt: skip
_NUMBERS = ("loss", "total_norm", "total_norm_after", "learning_rate", "input_rms", "loss_scale", *_SINCE_0_2)
_TEXTS = ("optimizer", "dtype", "schedule_interval", "clip", "last_activation", "broadcast", "told")
