"""The kinds of layer there are: activations, rectifiers, normalizations, attention, recurrent and linear layers.

A layer is given as a module, as its class, or as the name of its class, which is all that a Snapshot keeps. A module or
a class is of a kind if one of its bases is. A name is read word by word, so that ``LlamaRMSNorm`` is a normalization
and ``NewGELUActivation`` an activation, while ``SpectralNorm`` and ``SigmoidFocalLoss`` are neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import activation
from torch.nn.parameter import is_lazy

Kind = str | type | nn.Module | None  # None, for a function without a module, is of no kind

_ACTIVATIONS = {name: getattr(activation, name) for name in activation.__all__ if name != "MultiheadAttention"}
BOUNDED = ("Sigmoid", "Tanh", "Softsign", "Hardsigmoid", "Hardtanh", "LogSigmoid")  # LogSigmoid's slope is a Sigmoid
RECTIFIERS = ("ReLU", "ReLU6", "Threshold", "Hardshrink", "Softshrink")  # flat where a unit can stay for good
_SOFTMAXES = ("Softmax", "LogSoftmax", "Softmin", "Softmax2d")

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
NORMALIZATIONS = (*_BATCH_NORMS, *_INSTANCE_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

_WORD = re.compile(r"(?:Re|Si)LU|[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+d?")
_BY_LOWER_NAME = {name.lower(): name for name in _ACTIVATIONS} | {"swish": "SiLU"}
# Words that may stand behind the function's name: GELUActivation, ReLUSquared, HardSwishMe and SwishJit (of timm).
_BEHIND = re.compile(r"activation|act|layer|module|function|fn|squared|approx|me|jit|auto|\d+d?")
# Words of larger parts and of what no normalization is: WeightNorm changes weights, PreNorm holds another part, a
# response norm leaves the scale as it is.
_LARGER = re.compile(r"conv.*|linear|bn|norm|batch|block|mlp|attention")
_NO_NORM = {"weight", "spectral", "gradient", "grad", "response", "pre", "post", "add", "max", "clip"}
_NORM_AND_TAIL = re.compile(r"(norm|normalization)( (\d+d?|nd|act|gated|layer|fp|bf|float|no|bias|nhwc))*")


@lru_cache(maxsize=4096)
def _words(name: str) -> tuple[str, ...]:
    """Split the name of a class into words in lower case.

    Example:
        >>> _words("T5LayerNorm"), _words("PReLU"), _words("LayerNorm2d")
        (('t', '5', 'layer', 'norm'), ('p', 'relu'), ('layer', 'norm', '2d'))
    """
    return tuple(word.lower() for word in _WORD.findall(name))


def _names(kind: Kind) -> Iterator[str]:
    """Yield the names of a class and its bases: parametrizations and FSDP put a class of theirs in front."""
    if isinstance(kind, str):
        yield kind
        return
    for base in (kind if isinstance(kind, type) else type(kind)).__mro__:
        if base is nn.Module:
            return
        yield base.__name__


def activation_name(kind: Kind) -> str:
    """Return the name in ``torch.nn`` of the activation that a layer is or is a form of; empty for no activation.

    A module with parts is none, nor one with weights: ``ConvReLU`` may be the name of both together.

    Example:
        >>> activation_name("NewGELUActivation"), activation_name("HardSwishMe"), activation_name("ReLULoss")
        ('GELU', 'Hardswish', '')
    """
    found = next(filter(None, map(_activation_of_name, _names(kind))), "")
    if not found or not isinstance(kind, nn.Module) or isinstance(kind, _ACTIVATIONS[found]):
        return found
    is_function = not any(is_lazy(p) or p.dim() > 1 for p in _registered(kind, "_parameters"))  # PReLU has a vector
    return found if is_function and not _registered(kind, "_modules") else ""


def _registered(module: nn.Module, table: str) -> list[Any]:
    """Return a module's parts or parameters as torch keeps them: a class of the user's may override ``children()``."""
    return [each for each in module.__dict__.get(table, {}).values() if each is not None]


@lru_cache(maxsize=4096)
def _activation_of_name(name: str) -> str:
    if name in _ACTIVATIONS:
        return name
    words = _words(name)
    if any(map(_LARGER.fullmatch, words)):
        return ""
    while words and (_BEHIND.fullmatch(words[-1]) or words[-2:] == ("gelu", "tanh")):  # GELUTanh: an approximation
        words = words[:-1]
    joined = ("".join(words[-count:]) for count in (3, 2, 1))  # the longest first: leaky relu, then relu
    return next((_BY_LOWER_NAME[each] for each in joined if each in _BY_LOWER_NAME), "")


def is_activation(kind: Kind) -> bool:
    """Return True for a nonlinearity without weights, of torch or of somebody else."""
    return activation_name(kind) != ""


def is_rectifier(kind: Kind) -> bool:
    """Return True for an activation of which a unit can be off for good: zero, with a slope of zero.

    A GELU or LeakyReLU is none: its slope is small on one side and not zero.
    """
    return activation_name(kind) in RECTIFIERS


def is_bounded(kind: Kind) -> bool:
    """Return True for an activation of single units with a flat part, such as Sigmoid and Tanh; no rectifier is one."""
    return activation_name(kind) in BOUNDED


def is_softmax(kind: Kind) -> bool:
    """Return True for a softmax: bounded too, but no function of one unit, so it has no slope to speak of."""
    return activation_name(kind) in _SOFTMAXES


def is_gated_linear(kind: Kind) -> bool:
    """Return True for a GLU, which halves the width."""
    return activation_name(kind) == "GLU"


def is_normalization(kind: Kind) -> bool:
    """Return True for a layer that brings its input to a fixed scale: batch, layer, group, instance and RMS norms."""
    if isinstance(kind, nn.Module) and not isinstance(kind, NORMALIZATIONS) and _registered(kind, "_modules"):
        return False  # a block, such as PreNorm, or a network that somebody has named after its norms
    return any(map(_is_norm_name, _names(kind)))


@lru_cache(maxsize=4096)
def _is_norm_name(name: str) -> bool:
    words = _words(name)
    place = max((at for at, word in enumerate(words) if word in ("norm", "normalization")), default=-1)
    if place < 0 or (place and words[place - 1] in _NO_NORM and words[place - 2 : place] != ("filter", "response")):
        return False
    return _NORM_AND_TAIL.fullmatch(" ".join(words[place:])) is not None


def is_batch_norm(kind: Kind) -> bool:
    """Return True for a normalization with statistics of the batch, and running ones for evaluation."""
    return is_normalization(kind) and any("batch" in _words(name) for name in _names(kind))


def is_layer_norm(kind: Kind) -> bool:
    """Return True for a normalization of each position by its own features, as in transformers: LayerNorm, RMSNorm."""
    return is_normalization(kind) and any({"layer", "rms"} & {*_words(name)} for name in _names(kind))


def is_dropout(kind: Kind) -> bool:
    """Return True for a dropout layer."""
    return any("dropout" in _words(name) for name in _names(kind))


def is_loss(kind: Kind) -> bool:
    """Return True for a loss function."""
    return any(_words(name)[-1:] == ("loss",) for name in _names(kind))


def is_attention(kind: Kind) -> bool:
    """Return True for an attention layer, such as ``nn.MultiheadAttention`` or ``BertSelfAttention``."""
    return any("attention" in _words(name) for name in _names(kind))


def is_recurrent(kind: Kind) -> bool:
    """Return True for a recurrent network or a cell of one."""
    return any(word.endswith(("rnn", "lstm", "gru")) for name in _names(kind) for word in _words(name))


def is_gated_recurrent(kind: Kind) -> bool:
    """Return True for an LSTM, a GRU or a cell of one, whose gates may let a gradient pass over many steps."""
    return any(word.endswith(("lstm", "gru")) for name in _names(kind) for word in _words(name))


def is_convolution(kind: Kind) -> bool:
    """Return True for a convolution or transposed convolution."""
    if not isinstance(kind, str):
        return _is_one_of(kind, (*_CONVOLUTIONS, *_TRANSPOSED))
    return re.search(r"\bconv (transpose )?[123]d\b", " ".join(_words(kind))) is not None


def is_transposed_convolution(kind: Kind) -> bool:
    """Return True for a transposed convolution."""
    return is_convolution(kind) and any("transpose" in _words(name) for name in _names(kind))


def is_conv1d_of_transformers(kind: Kind) -> bool:
    """Return True for the Linear of GPT-2 in the library transformers, whose weight has the shape (inputs, outputs)."""
    if "Conv1D" not in _names(kind) or not isinstance(kind, nn.Module):
        return "Conv1D" in _names(kind)
    table = kind.__dict__.get("_parameters", {})  # in a script module no dict: it can't be asked by name
    weight = dict(table.items()).get("weight")
    return weight is not None and weight.shape[1:] == (kind.__dict__.get("nf"),)


def is_linear(kind: Kind) -> bool:
    """Return True for a Linear, and for the Conv1D of transformers, which is one."""
    is_of_torch = _words(kind)[-1:] == ("linear",) if isinstance(kind, str) else _is_one_of(kind, (nn.Linear,))
    return is_of_torch or is_conv1d_of_transformers(kind)


def is_weighted(kind: Kind) -> bool:
    """Return True for a layer that is a linear map: a Linear, a convolution, or the Conv1D of transformers.

    A module has to be one of torch's, or of a class made from one: its sizes are read by their names there.
    """
    return is_linear(kind) or is_convolution(kind)


def weight_outputs_first(layer: Any) -> Tensor:
    """Return a view of the weight of a linear layer with the shape that a Linear's has: (outputs, inputs)."""
    weight: Tensor = layer.weight.detach()
    return weight.T if is_conv1d_of_transformers(layer) else weight


def _is_one_of(kind: type | nn.Module | None, classes: tuple[type, ...]) -> bool:
    return issubclass(kind if isinstance(kind, type) else type(kind), classes)


def runs_forward_of(module: nn.Module, classes: Iterable[type[nn.Module]]) -> bool:
    """Return True if a module computes what one of these classes does: it is one, without a ``forward`` of its own."""
    forward = None if "forward" in module.__dict__ else type(module).forward
    return any(isinstance(module, each) and forward is each.forward for each in classes)
