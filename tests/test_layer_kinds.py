"""The kinds of layer, by module, class and name; classes of transformers and timm are written again in their form."""

import pytest
import torch
from torch import Tensor, nn

from gradwatch import layer_kinds as kinds
from gradwatch.probe.dead_units import is_relu, saturation_of
from gradwatch.probe.layers import find_layers
from gradwatch.probe.watched_model import inputs_of
from gradwatch.remedies import InitializeAgain, InsertNormalization, ReplaceActivations
from gradwatch.theory import moments, spreads


def named(name: str, *bases: type[nn.Module]) -> type[nn.Module]:
    return type(name, bases or (nn.Module,), {"forward": lambda self, x: x})


class Conv1D(nn.Module):
    """As in transformers.pytorch_utils."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf) * 0.02)
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class LlamaRMSNorm(nn.Module):
    """As in transformers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class NewGELUActivation(nn.Module):
    """As in transformers."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(x, approximate="tanh")


class PreNorm(nn.Module):
    """A block that normalizes for another part, as written in many vision transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(2), nn.Linear(2, 2)


ACTIVATIONS = {
    "NewGELUActivation": "GELU", "GELUActivation": "GELU", "FastGELUActivation": "GELU", "QuickGELUActivation": "GELU",
    "ClippedGELUActivation": "GELU", "PytorchGELUTanh": "GELU", "GELUTanh": "GELU", "SiLUActivation": "SiLU",
    "MishActivation": "Mish", "ReLUSquaredActivation": "ReLU", "Swish": "SiLU", "SwishMe": "SiLU",
    "HardSwishMe": "Hardswish", "HardSigmoidJit": "Hardsigmoid", "Sigmoid": "Sigmoid", "Tanh": "Tanh",
    "MyLeakyReLU": "LeakyReLU", "PReLU": "PReLU", "ReLU6": "ReLU6", "LogSoftmax": "LogSoftmax", "Softmin": "Softmin",
}  # fmt: skip
NO_ACTIVATIONS = ["ConvReLU", "ConvBNReLU", "LinearReLU", "SigmoidFocalLoss", "TanhGaussianPolicy", "SoftmaxLoss",
                  "Linear", "MultiheadAttention", "Identity", "Evolution", "ReLUBlock", "BatchNormAct2d"]  # fmt: skip
NORMS = ["LlamaRMSNorm", "T5LayerNorm", "LayerNorm2d", "GroupNorm1", "FrozenBatchNorm2d", "BatchNormAct2d", "RmsNorm",
         "RMSNorm", "InstanceNorm3d", "SyncBatchNorm", "MambaRMSNormGated", "LayerNormFp32", "Norm", "ScaleNorm",
         "FilterResponseNorm", "LayerNormalization", "Qwen2RMSNorm"]  # fmt: skip
NO_NORMS = ["WeightNorm", "SpectralNorm", "ParametrizedLinear", "NormalizeInputs", "PreNorm", "GradientNorm", "Linear",
            "LocalResponseNorm", "GradientNormalization", "NormConv2d", "Normal", "LayerNormLinear"]  # fmt: skip


@pytest.mark.parametrize(("name", "of_torch"), ACTIVATIONS.items())
def test_activations_are_known_by_name_class_and_module(name: str, of_torch: str) -> None:
    made = named(name)
    assert [kinds.activation_name(kind) for kind in (name, made, made())] == [of_torch] * 3


@pytest.mark.parametrize("name", NO_ACTIVATIONS)
def test_no_activation(name: str) -> None:
    assert not any(map(kinds.is_activation, (name, named(name), named(name)())))


@pytest.mark.parametrize("name", NORMS)
def test_normalizations_are_known_by_name_class_and_module(name: str) -> None:
    assert all(map(kinds.is_normalization, (name, named(name), named(name)())))


@pytest.mark.parametrize("name", NO_NORMS)
def test_no_normalization(name: str) -> None:
    assert not any(map(kinds.is_normalization, (name, named(name), named(name)())))


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.SyncBatchNorm, nn.LazyBatchNorm2d, nn.InstanceNorm2d])
def test_subclasses_are_of_the_kind_of_their_bases(kind: type[nn.Module]) -> None:
    assert kinds.is_normalization(named("Mine", kind))
    assert kinds.is_batch_norm(named("Mine", kind)) == ("BatchNorm" in kind.__name__)


def test_a_module_with_parts_is_judged_by_them() -> None:
    assert not kinds.is_normalization(PreNorm())
    block = named("ReLU")()
    block.inner = nn.Linear(1, 1)
    assert not kinds.is_activation(block)
    weighted = named("GELU")()
    weighted.weight = nn.Parameter(torch.ones(2, 2))
    assert not kinds.is_activation(weighted)
    weighted.weight = nn.Parameter(torch.ones(2))
    assert kinds.is_activation(weighted)
    weighted.weight = nn.UninitializedParameter()
    assert not kinds.is_activation(weighted)


@pytest.mark.parametrize(
    ("is_kind", "yes", "no"),
    [
        (kinds.is_rectifier, ["ReLU", "ReLU6", "Threshold", "ReLUSquaredActivation"], ["LeakyReLU", "GELU", "RReLU"]),
        (kinds.is_bounded, ["Sigmoid", "Tanh", "Hardtanh", "HardSigmoidMe"], ["ReLU6", "Softmax", "GELUTanh", "Mish"]),
        (kinds.is_softmax, ["Softmax", "LogSoftmax", "Softmin", "MaskedSoftmax"], ["Sigmoid", "Softplus"]),
        (kinds.is_gated_recurrent, ["LSTM", "GRUCell", "BiLSTM", "LSTMLikeRNN"], ["RNN", "RNNCell", "Linear"]),
        (kinds.is_recurrent, ["RNN", "RNNCell", "ConvLSTMCell", "GRU"], ["Linear", "GRUB"]),
        (kinds.is_attention, ["MultiheadAttention", "BertSelfAttention"], ["LayerNorm", "Linear"]),
        (kinds.is_layer_norm, ["LayerNorm", "T5LayerNorm", "LlamaRMSNorm"], ["BatchNorm1d", "GroupNorm"]),
        (kinds.is_weighted, ["Linear", "Conv2d", "LazyConv3d", "ConvTranspose1d", "Conv1D"], ["Bilinear", "Embedding"]),
        (kinds.is_convolution, ["Conv1d", "StdConv2d", "ConvTranspose3d"], ["Conv1D", "Linear", "ConvReLU"]),
        (kinds.is_loss, ["MSELoss", "CTCLoss", "FocalLoss"], ["Linear", "LossScaler"]),
        (kinds.is_dropout, ["Dropout", "AlphaDropout"], ["Linear"]),
    ],
)
def test_kinds_by_name(is_kind, yes: list[str], no: list[str]) -> None:
    assert [name for name in yes + no if is_kind(name)] == yes
    assert not is_kind(None)


@pytest.mark.parametrize(
    ("is_kind", "module"),
    [
        (kinds.is_rectifier, nn.ReLU6()),
        (kinds.is_bounded, nn.Hardtanh()),
        (kinds.is_attention, nn.MultiheadAttention(2, 1)),
        (kinds.is_gated_recurrent, nn.GRUCell(1, 1)),
        (kinds.is_weighted, nn.LazyLinear(2)),
        (kinds.is_weighted, nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 1))),
        (kinds.is_transposed_convolution, nn.ConvTranspose1d(1, 1, 1)),
        (kinds.is_loss, nn.CrossEntropyLoss()),
        (kinds.is_dropout, nn.Dropout2d()),
        (kinds.is_gated_linear, nn.GLU()),
    ],
)
def test_kinds_of_modules(is_kind, module: nn.Module) -> None:
    assert is_kind(module)
    assert is_kind(type(module))


def test_a_class_that_only_has_the_name_of_a_linear_layer_is_none() -> None:
    """Its sizes may have other names."""
    assert not kinds.is_weighted(named("Linear")())
    assert not kinds.is_weighted(named("Conv1D")())


def test_units_are_read_only_where_torchs_forward_runs() -> None:
    shifted, plain = named("Shifted", nn.ReLU)(), type("Plain", (nn.ReLU,), {})()
    assert is_relu(plain)
    assert is_relu(nn.ReLU6())
    assert not is_relu(shifted)
    assert not is_relu(nn.Hardtanh())
    assert saturation_of(type("Plain", (nn.Tanh,), {})())
    assert not saturation_of(named("Shifted", nn.Tanh)())
    patched = nn.ReLU()
    patched.forward = lambda x: x - 1
    assert not is_relu(patched)


def test_activations_of_others_are_watched_layers() -> None:
    model = nn.Sequential(Conv1D(4, 2), NewGELUActivation(), LlamaRMSNorm(4))
    assert list(find_layers(model)) == ["0", "1", "2"]
    assert moments("NewGELUActivation") == moments("GELU")


def test_the_conv1d_of_transformers_is_a_linear_layer_with_its_weight_transposed() -> None:
    torch.manual_seed(0)
    theirs, ours = Conv1D(4, 3), nn.Linear(3, 4)
    with torch.no_grad():
        ours.weight.copy_(theirs.weight.T)
    assert inputs_of(theirs) == inputs_of(ours) == 3
    assert spreads({"theirs": theirs})["theirs"] == spreads({"ours": ours})["ours"]


def test_remedies_treat_the_conv1d_of_transformers_as_a_linear_layer() -> None:
    def made(first: nn.Module) -> nn.Sequential:
        return nn.Sequential(first, nn.ReLU(), nn.Linear(400, 2))

    theirs, ours = (
        InitializeAgain("he").apply(made(each))[0].weight for each in (Conv1D(400, 200), nn.Linear(200, 400))
    )
    assert torch.equal(theirs.T, ours)
    model = made(Conv1D(400, 200))
    code = InitializeAgain("he").code(model)
    assert "model[0].weight.T" in code
    exec(code, {"nn": nn, "model": model})
    assert model[0].weight.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.05)
    assert InsertNormalization("layer").apply(made(Conv1D(400, 200)))[0][1].normalized_shape == (400,)


def test_activations_of_others_are_replaced() -> None:
    network = nn.Sequential(nn.Linear(2, 4), named("SigmoidActivation")(), nn.Linear(4, 1))
    assert isinstance(ReplaceActivations().apply(network)[1], nn.ReLU)
