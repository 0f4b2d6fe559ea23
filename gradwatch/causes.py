"""One table of advice: for each cause what to do about it, in the order to try.

All that tells a user what to do reads it: the terminal, TensorBoard's text, warnings, ``gradwatch check``, its JSON and
its annotations; and ``gradwatch.trial.suggest`` takes from it which remedies to try.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gradwatch.layer_kinds import is_bounded, is_gated_recurrent, is_normalization, is_rectifier, is_recurrent
from gradwatch.records import Cause

_MOST_TOLD = 3  # who reads a fourth thing to try has tried three


def _bounded(kinds: Sequence[str]) -> bool:
    return any(map(is_bounded, kinds))


def _normalized(kinds: Sequence[str]) -> bool:
    return any(map(is_normalization, kinds))


def _not_normalized(kinds: Sequence[str]) -> bool:
    return not _normalized(kinds)


def _rectified(kinds: Sequence[str]) -> bool:
    return any(map(is_rectifier, kinds))


def _has_plain_recurrence(kinds: Sequence[str]) -> bool:
    """Return True unless all recurrent layers that are seen have gates."""
    recurrent = [kind for kind in kinds if is_recurrent(kind)]
    return not recurrent or not all(map(is_gated_recurrent, recurrent))


@dataclass(frozen=True)
class InUse:
    """The settings that a run already has: advice is checked against them, and its numbers are relative to them.

    Attributes:
        optimizer: class name; empty where unknown.
        rate, weight_decay, clip: learning rate, weight decay, and the bound of a clip by norm; NaN where there is none,
            or it is not known.
        warms_up: the rate rises from the first step on.
        input_rms: root mean square of what the first layer is given.
        dtype: half precision of the layers' outputs.

    Example:
        >>> advice("weight decay too strong", "", (), InUse(weight_decay=0.5))[0]
        'lower the weight decay, to 0.05 (a tenth of it)'
    """

    optimizer: str = ""
    rate: float = float("nan")
    weight_decay: float = float("nan")
    clip: float = float("nan")
    warms_up: bool = False
    input_rms: float = float("nan")
    dtype: str = ""


def _scales_gradients(run: InUse) -> bool:
    return run.optimizer.lower().startswith(_SCALING)


# Optimizers that divide each gradient by its own size, or take its sign alone.
_SCALING = (
    "ada", "nadam", "radam", "rmsprop", "rprop", "lion", "lamb", "novograd", "sophia", "muon", "soap", "fusedadam",
    "deepspeedcpuadam", "8bitadam", "pagedadam",
)  # fmt: skip
_ABOUT_ONE = (0.3, 3.0)  # root mean square of inputs that need no scaling


def _clips(run: InUse) -> bool:
    return run.clip > 0


def _is_standardized(run: InUse) -> bool:
    return _ABOUT_ONE[0] <= run.input_rms <= _ABOUT_ONE[1]


def _warms_up(run: InUse) -> bool:
    return run.warms_up


def _is_bfloat16(run: InUse) -> bool:
    return run.dtype == "bfloat16"


def _is_not_float16(run: InUse) -> bool:
    return run.dtype != "float16"


def _a_tenth_of(name: str) -> Callable[[InUse], str]:
    return _times(name, 0.1, "a tenth of it")


def _times(name: str, factor: float, words: str) -> Callable[[InUse], str]:
    def in_words(run: InUse) -> str:
        value = getattr(run, name)
        return f", to {factor * value:.1g} ({words})" if value > 0 else ""

    return in_words


@dataclass(frozen=True)
class Step:
    """One thing to do about a cause.

    Attributes:
        text: the sentence that is printed, without a full stop.
        remedy: key of the remedy in :mod:`gradwatch.remedies` that does it; empty where only the user can.
        fit: how directly the remedy treats the cause: 1 removes it, less only eases what follows from it. The figures
            are judged by ``tests/benchmarks/detection/measure.py --what '[remedies]'``.
        cases: the forms of the cause for which it is told; empty for all. The rules of diagnosis name them.
        applies: takes the kinds of a network's layers and returns True if the step makes sense there; None for always.
        line: the code to write, or "" for a step in words, where ``suggest`` tells it beside the remedies.
        present: returns True if the run already has what the step would bring, so that it is not told.
        number: returns what is added to the text, a number relative to the run's own; "" where that is not known.
    """

    text: str
    remedy: str = ""
    fit: float = 0.0
    cases: tuple[str, ...] = ()
    applies: Callable[[Sequence[str]], bool] | None = None
    line: str | None = None
    present: Callable[[InUse], bool] | None = None
    number: Callable[[InUse], str] | None = None

    def is_for(self, case: str, kinds: Sequence[str], run: InUse | None = None) -> bool:
        """Return True if it is worth telling for a form of the cause, a network's layers, and a run's settings."""
        fits_case = not self.cases or case in self.cases
        is_news = run is None or self.present is None or not self.present(run)
        return fits_case and is_news and (self.applies is None or not kinds or self.applies(kinds))

    def told(self, run: InUse | None) -> str:
        """Return its text, with the number that fits the run."""
        return self.text if run is None or self.number is None else f"{self.text}{self.number(run)}"


_NORMALIZE = "put a normalization layer between each layer and its activation"
_PRE_NORM = "normalize before each block, not after it"
_INITIALIZE = "initialize again: He for ReLU, Xavier for Tanh, LeCun for SELU"
_ADAPTIVE = "use an optimizer that scales each gradient, such as Adam"
_LOWER_RATE = "lower the learning rate"
_WARM_UP = "warm the learning rate up over the first steps"
_CLIP = "clip by the global norm"
_CLIP_OUTLIERS = "clip the outliers among the norms"
_SKIP = "skip a step whose gradients are not finite"
_SKIPS = "add skip connections"

STEPS: Mapping[Cause, tuple[Step, ...]] = {
    "saturating activation": (
        Step("replace the bounded activations by ReLU, with He initialization", "ReplaceActivations", 1.0,
             applies=_bounded),
        Step(_NORMALIZE, "InsertNormalization", 0.8, applies=_not_normalized),
        Step("initialize again with smaller weights (Xavier)", "InitializeAgain", 0.8, ("flat",)),
        Step(_SKIPS, "AddSkips", 0.6),
        Step(_ADAPTIVE, "ChangeOptimizer", 0.4, present=_scales_gradients),
        Step("normalize the gradients", "NormalizeGradients", 0.3, present=_scales_gradients),
        Step("standardize the inputs", "RescaleInputs", 0.3, present=_is_standardized),
    ),
    "unbounded activation": (
        Step("use an activation that grows no faster than its input there, such as GELU, Tanh or Softplus", line=""),
        Step("normalize what that activation is given, such as by LayerNorm"),
        Step(_CLIP, "Clip", 0.4, present=_clips),
        Step(_LOWER_RATE, "LowerLearningRate", 0.3, number=_a_tenth_of("rate")),
    ),
    "posterior collapse": (
        Step("sum the reconstruction over the entries of a sample, as the divergence is summed over those of the code"),
        Step("weigh the divergence by less, or let its weight grow from 0 over the first epochs"),
        Step("let each number of the code keep some nats before the divergence counts (free bits)"),
    ),
    "initialization too small": (
        Step("start one of the two at random and the other at zero, as LoRA does", cases=("zeros",)),
        Step("start the weights of the normalization layers at 1", "ResetNormalization", 1.0, ("norms",)),
        Step(_INITIALIZE, "InitializeAgain", 1.0),
        Step(_NORMALIZE, "InsertNormalization", 0.7, applies=_not_normalized),
        Step(_SKIPS, "AddSkips", 0.6),
        Step("replace the bounded activations by ReLU", "ReplaceActivations", 0.6, applies=_bounded),
        Step(_ADAPTIVE, "ChangeOptimizer", 0.5, present=_scales_gradients),
        Step("normalize the gradients", "NormalizeGradients", 0.4, present=_scales_gradients),
    ),
    "initialization too large": (
        Step("start the last layer, and embeddings tied to it, with smaller weights", cases=("logits",)),
        Step(_INITIALIZE, "InitializeAgain", 1.0),
        Step(_NORMALIZE, "InsertNormalization", 0.7, applies=_not_normalized),
        Step("multiply each branch of n residual sums by n ** -0.5", "ScaleBranches", 0.6, applies=_not_normalized),
        Step(_CLIP, "Clip", 0.4, present=_clips),
        Step(_LOWER_RATE, "LowerLearningRate", 0.3, number=_a_tenth_of("rate")),
    ),
    "learning rate too high": (
        Step(_LOWER_RATE, "LowerLearningRate", 1.0, number=_a_tenth_of("rate")),
        Step(_CLIP, "Clip", 0.6, present=_clips),
        Step(_WARM_UP, "WarmUp", 0.5, present=_warms_up),
        Step(_ADAPTIVE, "ChangeOptimizer", 0.5, present=_scales_gradients),
        Step(_NORMALIZE, "InsertNormalization", 0.3, applies=_not_normalized),
        Step(_CLIP_OUTLIERS, "ClipOutliers", 0.2),
        Step(_PRE_NORM, "NormalizeFirst", 0.2, applies=_normalized),
    ),
    "dead ReLU": (
        Step("replace the ReLUs by LeakyReLU", "ReplaceActivations of rectifiers", 1.0, applies=_rectified),
        Step("initialize again: He, with zero biases", "InitializeAgain", 0.7, ("from the start",)),
        Step(_NORMALIZE, "InsertNormalization", 0.6, ("from the start",), _not_normalized),
        Step(_LOWER_RATE, "LowerLearningRate", 0.5, number=_a_tenth_of("rate")),
        Step("standardize the inputs", "RescaleInputs", 0.4, present=_is_standardized),
        Step("give the layer more units", cases=("whole layer",)),
    ),
    "zero-gradient head": (
        Step("give one logit to binary_cross_entropy_with_logits: a softmax over one unit is always 1",
             "FixHead", 1.0, ("one unit",)),
        Step("remove the activation before the loss, which expects logits", "FixHead", 1.0, ("probabilities",)),
        Step("remove the normalization over one unit", "FixHead", 1.0, ("norm of one unit",)),
        Step("look at the head: a softmax over one unit, or weights that are all zero, pass no gradient",
             "FixHead", 1.0, ("no gradient",)),
        Step("put something with a slope in place of a sign, a rounding or a comparison", "SmoothSteps", 1.0,
             ("no gradient",)),
        Step("give the loss the raw outputs", cases=("no gradient",)),
    ),
    "ignored labels": (
        Step("look at how the labels are made: the prompt's mask, the template, and the cut at the longest length "
             "should leave tokens that are not -100"),
    ),
    "constant reward": (
        Step("make the reward tell the completions of a prompt apart: print the rewards of one group"),
        Step("generate more completions per prompt, at a higher temperature"),
        Step("take prompts that are neither always solved nor never"),
    ),
    "unscaled input": (
        Step("standardize the inputs: each feature to mean 0 and deviation 1", "RescaleInputs", 1.0),
        Step("put a normalization layer in front", "InsertNormalization", 0.5),
        Step(_CLIP, "Clip", 0.4, present=_clips),
        Step(_LOWER_RATE, "LowerLearningRate", 0.4, number=_a_tenth_of("rate")),
    ),
    "unscaled target": (
        Step("use targets from 0 to 1 for a binary cross-entropy", cases=("binary",)),
        Step("remove the activation at the end, or scale the targets to its range", "RemoveLastActivation", 1.0,
             ("out of reach",)),
        Step("standardize the targets: mean 0 and deviation 1", "RescaleTargets", 1.0, ("",)),
        Step("start the last bias at the targets' mean", cases=("",)),
        Step("use a Huber loss", cases=("",)),
        Step(_LOWER_RATE, "LowerLearningRate", 0.5, ("",), number=_a_tenth_of("rate")),
        Step(_CLIP, "Clip", 0.5, ("",), present=_clips),
        Step(_ADAPTIVE, "ChangeOptimizer", 0.5, ("",), present=_scales_gradients),
        Step("normalize the gradients", "NormalizeGradients", 0.3, ("",), present=_scales_gradients),
    ),
    "recurrent depth": (
        Step("replace the RNN by an LSTM or a GRU", "ReplaceRecurrence", 1.0, ("fades", "grows"),
             _has_plain_recurrence),
        Step("give the gradient a shorter way back through time, such as attention", cases=("gated fades",)),
        Step("make the recurrent weights orthogonal, and start the gates open", "OrthogonalRecurrence", 0.7),
        Step(_CLIP, "Clip", 0.4, ("grows",), present=_clips),
        Step("train on shorter sequences", cases=("fades", "gated fades")),
    ),
    "missing normalization or skip": (
        Step(_SKIPS, "AddSkips", 1.0),
        Step(_NORMALIZE, "InsertNormalization", 0.9, applies=_not_normalized),
        Step(_PRE_NORM, "NormalizeFirst", 0.8, applies=_normalized),
        Step(_INITIALIZE, "InitializeAgain", 0.5),
        Step(_ADAPTIVE, "ChangeOptimizer", 0.4, present=_scales_gradients),
    ),
    "learning rate too low": (
        Step("let the schedule advance each step: {\"scheduler\": ..., \"interval\": \"step\"}", cases=("epochs",)),
        Step("let the schedule last as long as the training, or advance once an epoch", cases=("ended",)),
        Step("give that parameter group a rate near that of the others", cases=("group",)),
        Step("use the optimizer's own eps: 1e-8 in Adam", cases=("eps",)),
        Step("look at the schedule, which holds the rate at zero", cases=("zero",)),
        Step("raise the learning rate", "RaiseLearningRate", 1.0, ("", "epochs", "group", "eps", "zero"),
             number=_times("rate", 10, "ten times it")),
    ),
    "missing warm-up": (
        Step(_WARM_UP, "WarmUp", 1.0, present=_warms_up),
        Step(_PRE_NORM, "NormalizeFirst", 0.9, applies=_normalized),
        Step(_CLIP, "Clip", 0.5, present=_clips),
        Step(_LOWER_RATE, "LowerLearningRate", 0.4, number=_a_tenth_of("rate")),
    ),
    "outlier batch": (
        Step("clean the data of NaN and Inf", cases=("not finite",)),
        Step("look at the batch of that step, and clean or drop it in the data", line=""),
        Step(_CLIP_OUTLIERS, "ClipOutliers", 1.0),
        Step(_CLIP, "Clip", 0.8, present=_clips),
        Step(_SKIP, "SkipBadSteps", 0.6),
        Step(_WARM_UP, "WarmUp", 0.1, present=_warms_up),
    ),
    "unguarded operation": (
        Step("guard the logs, roots and divisions there", "GuardOperations", 1.0, line="x = x.clamp(min=1e-6).log()"),
        Step("use torch's fused losses on raw outputs"),
        Step(_SKIP, "SkipBadSteps", 0.4),
        Step("replace an activation of your own that grows fast, such as an exp or a square, by ReLU",
             "ReplaceActivations of the user's own", 0.35),
        Step("use bfloat16, whose range is that of float32", "UseBfloat16", 0.2, present=_is_not_float16),
    ),
    "frozen or detached part": (
        Step("return the loss with its graph, without detach(), item() or no_grad()", cases=("no graph",)),
        Step("use nn.ModuleList, nn.ModuleDict or nn.ParameterList, not a plain list or dict", cases=("foreign",)),
        Step("call the parts that nothing uses, and let the loss depend on them", cases=("unused",)),
        Step("give the optimizer model.parameters()", "TrainAll", 1.0, ("no optimizer",)),
        Step("put something with a slope in place of the rounding or comparison between the parts", "SmoothSteps", 1.0,
             ("cut off",)),
        Step("remove the detach(), no_grad() or .data between that part and the loss", "KeepGraph", 1.0,
             ("no gradient",), line=""),
        Step("unfreeze what should learn", "UnfreezeAll", 1.0, ("no gradient", "frozen", "all frozen")),
        Step("load adapters to be trained: PeftModel.from_pretrained(..., is_trainable=True)", cases=("all frozen",)),
        Step("freeze what should not learn, with requires_grad_(False)",
             cases=("no optimizer", "no gradient", "cut off")),
    ),
    "precision underflow": (
        Step("keep the weights in float32, and compute in bfloat16 (precision=\"bf16-mixed\")", cases=("weights",)),
        Step("raise the learning rate, or use an optimizer with compensated sums", cases=("weights",)),
        Step("use bfloat16", "UseBfloat16", 1.0, ("",), present=_is_bfloat16),
        Step("let the loss scaler find its scale", "ScaleLoss", 0.9, ("",), line="scaler = torch.amp.GradScaler()"),
        Step("compute the loss and its last layer in float32", cases=("",)),
    ),
    "unbounded loss": (
        Step("look at the sign of the loss: nothing is learned from one that falls without end", line=""),
        Step("use a loss with a minimum"),
    ),
    "weight decay too strong": (
        Step("lower the weight decay", line="", number=_a_tenth_of("weight_decay")),
    ),
    "clipping too hard": (
        Step("clip less: at the 90th percentile of the norms, or not at all", "RemoveClip", 1.0),
        Step("raise the learning rate"),
    ),
    "gradients are not zeroed": (
        Step("call optimizer.zero_grad() before each backward pass", line="optimizer.zero_grad()"),
        Step("if gradients are to be accumulated, step the optimizer after the last of the batches only"),
    ),
    "step without effect": (
        Step("call zero_grad() before backward(), not between backward() and step()", cases=("cleared",)),
        Step("let the forward pass use the parameters themselves, not their .data or copies", cases=("cleared",)),
        Step("look at what writes to these weights after the step, such as a load_state_dict() or a copy",
             cases=("put back",)),
        Step("look at why the loss scaler skips each step: gradients that are NaN or Inf", cases=("skipped",)),
        Step("call step() of the optimizer itself; a wrapper or an override of it must do so too", line=""),
    ),
    "clip without effect": (
        Step("call the clip after backward() and before optimizer.step()", cases=("before backward",)),
        Step("give the clip the parameters that the optimizer holds", cases=("no gradients",)),
        Step("lower the clip's bound: to the 90th percentile of the norms", cases=("never met",)),
    ),
    "shapes broadcast": (
        Step("give output and target the same shape, such as by output.squeeze(1) or target.unsqueeze(1)", line=""),
    ),
    "replicas out of sync": (
        Step("call the model that is wrapped (DDP's forward), not the module inside it", line=""),
        Step("start all processes from the same weights, and let each step of each process follow a backward pass"),
    ),
    "not known": (
        Step("read the error: it was raised before any step", cases=("crash",)),
        Step("look for a division, log, sqrt or exp in the layers named", cases=("nonfinite",)),
        Step("look at the batch of that step", cases=("spike",)),
        Step("train on one small batch: a loss that stays even there comes from the model, the loss or the rate",
             cases=("not-learning",)),
        Step("look at the order of the targets against the inputs", cases=("not-learning",)),
        Step("try rates ten times higher and lower", cases=("not-learning",)),
        Step("look for a detach(), an unused module or a head without a gradient", cases=("stalled",)),
        Step("look at the layers named, over time, in TensorBoard's charts",
             cases=("", "vanishing", "exploding", "dead", "saturated")),
    ),
}  # fmt: skip


def advice(cause: Cause, case: str = "", kinds: Sequence[str] = (), run: InUse | None = None) -> tuple[str, ...]:
    """Return what to do about a cause, the first thing to try first.

    Args:
        cause: of a Diagnosis.
        case: the form of the cause that was found; a Finding's kind where the cause is not known.
        kinds: of the network's layers; without them no step is left out for what the network has.
        run: its settings; without them no step is left out for what the run has.

    Example:
        >>> advice("missing normalization or skip", kinds=("Linear", "LayerNorm"))[:2]
        ('add skip connections', 'normalize before each block, not after it')
    """
    steps = STEPS[cause]
    told = next(filter(None, ([s for s in steps if s.is_for(form, kinds, run)] for form in (case, ""))), list(steps))
    return tuple(step.told(run) for step in told[:_MOST_TOLD])


def fit_of(remedy: str, cause: str) -> float:
    """Return how directly a remedy, by its key, treats a cause, from 0 to 1.

    Example:
        >>> fit_of("ReplaceActivations", "saturating activation"), fit_of("Clip", "dead ReLU")
        (1.0, 0.0)
    """
    steps = STEPS.get(cause, ())  # type: ignore[call-overload]
    return max((step.fit for step in steps if step.remedy == remedy), default=0.0)


def causes_treated_by(remedy: str) -> frozenset[Cause]:
    """Return the causes that a remedy treats, by its key."""
    return frozenset(cause for cause in STEPS if fit_of(remedy, cause))
