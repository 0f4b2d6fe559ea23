"""The less usual modules of torch.nn."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from zoo import WIDTH, Expect, Scale, has_columns, module, part, rows

FIRST: Expect = has_columns("grad_norm", layer="first")


def passes(name: str, make: Callable[[], nn.Module], *shape: int) -> None:
    """A module between two layers, whose input is given a shape first."""

    def made() -> nn.Module:
        return nn.Sequential(nn.Unflatten(1, shape), make(), Even()) if shape else nn.Sequential(make(), Even())

    made.__name__ = name
    part(expect=FIRST)(made)


class Even(nn.Module):
    """Makes rows of the usual width of any output."""

    def forward(self, out: Any) -> Tensor:
        out = out[0] if isinstance(out, tuple) else out
        return out.flatten(1).mean(1, keepdim=True).expand(-1, WIDTH).contiguous()


passes("alpha_dropout", lambda: nn.AlphaDropout(0.3))
passes("feature_alpha_dropout", lambda: nn.FeatureAlphaDropout(0.3), 3, 2)
passes("dropout_in_place", lambda: nn.Dropout(0.3, inplace=True))
passes("randomized_leaky_relu", nn.RReLU)
passes("parametric_relu", nn.PReLU)
passes("threshold_in_place", lambda: nn.Threshold(0.1, 0.0, inplace=True))
passes("softmax_over_channels", nn.Softmax2d, 1, 2, 3)
passes("gated_linear_unit", nn.GLU)
passes("hardtanh_in_place", lambda: nn.Hardtanh(inplace=True))
passes("elu_in_place", lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ELU(inplace=True), nn.Linear(WIDTH, WIDTH)))
passes("relu_in_place", lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(True), nn.Linear(WIDTH, WIDTH)))
passes("instance_norm_with_statistics", lambda: nn.InstanceNorm1d(2, affine=True, track_running_stats=True), 2, 3)
passes("group_norm", lambda: nn.GroupNorm(2, WIDTH))
passes("rms_norm", lambda: nn.RMSNorm(WIDTH))
passes("layer_norm_without_parameters", lambda: nn.LayerNorm(WIDTH, elementwise_affine=False))
passes("batch_norm_of_averages", lambda: nn.BatchNorm1d(WIDTH, momentum=None))
passes("batch_norm_without_statistics", lambda: nn.BatchNorm1d(WIDTH, track_running_stats=False))
passes("lazy_batch_norm", nn.LazyBatchNorm1d)
passes("local_response_norm", lambda: nn.LocalResponseNorm(2), 3, 2)
passes("cross_map_lrn", lambda: nn.CrossMapLRN2d(2), 3, 2, 1)
passes("fold_and_unfold", lambda: nn.Sequential(nn.Unfold(2), nn.Fold((2, 3), 2)), 1, 2, 3)
passes("pixel_shuffle", lambda: nn.Sequential(nn.PixelUnshuffle(1), nn.PixelShuffle(1)), 1, 2, 3)
passes("channel_shuffle", lambda: nn.ChannelShuffle(3), 6, 1, 1)
passes("upsample", lambda: nn.Upsample(scale_factor=2, mode="bilinear"), 1, 2, 3)
passes("max_pool_and_unpool", lambda: Unpooled(), 1, 2, 3)
passes("max_pool_with_indices", lambda: nn.MaxPool1d(2, return_indices=True), 1, 6)
passes("adaptive_max_pool", lambda: nn.AdaptiveMaxPool2d(1, return_indices=True), 1, 2, 3)
passes("fractional_max_pool", lambda: nn.FractionalMaxPool2d(1, output_size=1), 1, 2, 3)
passes("lp_pool", lambda: nn.LPPool1d(2, 2), 1, 6)
passes("transposed_convolution", lambda: nn.ConvTranspose2d(1, 2, 2, stride=2, groups=1), 1, 2, 3)
passes("lazy_convolution", lambda: nn.LazyConv1d(2, 2), 2, 3)
passes("grouped_and_dilated_convolution", lambda: nn.Conv1d(2, 4, 2, groups=2, dilation=2), 2, 3)
passes(
    "convolution_in_three_dimensions",
    lambda: nn.Conv3d(1, 2, (1, 2, 3), padding_mode="circular", padding=1),
    1,
    1,
    2,
    3,
)
passes("reflected_padding", lambda: nn.ReflectionPad1d(1), 2, 3)
passes(
    "identity_and_flatten", lambda: nn.Sequential(nn.Identity(1, more=2), nn.Flatten(0), nn.Unflatten(0, (8, WIDTH)))
)
passes("transformer", lambda: nn.Transformer(WIDTH, 2, 1, 1, 8, batch_first=True).apply(keep_pair), 1, 6)
passes("encoder_of_a_transformer", lambda: nn.TransformerEncoder(encoder_layer(), 2), 1, 6)
passes("lazy_linear", lambda: nn.LazyLinear(WIDTH))


class Unpooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.unpool = nn.MaxPool2d((2, 1), return_indices=True), nn.MaxUnpool2d((2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.unpool(*self.pool(x))


def keep_pair(each: nn.Module) -> None:
    """Have a whole transformer called with its input as its target."""
    if isinstance(each, nn.Transformer):
        forward = each.forward
        each.forward = lambda x: forward(x, x)  # type: ignore[method-assign]


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True, norm_first=False, dropout=0.1)


@part(take=lambda out: out[0])
class AttentionWithWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, kdim=WIDTH, vdim=WIDTH, batch_first=True, add_bias_kv=True)

    def forward(self, x: Tensor) -> Any:
        out, weights = self.attention(x[None], x[None], x[None], average_attn_weights=False)
        return out[0], weights


@part()
class TransformerWithItsFastPathInBetween(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(encoder_layer(), 2, enable_nested_tensor=True)

    def forward(self, x: Tensor) -> Tensor:
        self.eval()
        with torch.no_grad():
            padding = torch.tensor([[False] * 6 + [True] * 2])
            fast = self.encoder(x[None], src_key_padding_mask=padding)
        self.train()
        return self.encoder(x[None])[0] * (1 + fast.mean())


@part()
class BilinearOfTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bilinear = nn.Bilinear(2, 4, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.bilinear(x[:, :2], x[:, 2:])


@part()
class ParametersInListsAndDicts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.listed = nn.ParameterList([torch.eye(WIDTH), torch.zeros(WIDTH)])
        self.named = nn.ParameterDict({"größe": torch.ones(()), "weight": torch.ones(WIDTH), "empty": torch.ones(0)})

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.listed[0] + self.listed[1] * self.named["größe"] + self.named["weight"]


@part(take=lambda out: out.abs())
class ComplexLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.complex(x, x.sin()))


def words() -> Tensor:
    return torch.randint(0, 10, (8, 4))


class Reads(nn.Module):
    """An embedding and a layer on its mean."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding, self.head = embedding, nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.embedding(x)
        return self.head(out if out.dim() == 2 else out.mean(1))


HEAD: Expect = has_columns("grad_norm", layer="head")
EMBEDDING: Expect = has_columns("grad_norm", "output_rms", layer="embedding")


def embeds(name: str, make: Callable[[], nn.Module], expect: Expect = EMBEDDING, **options: Any) -> None:
    def made() -> nn.Module:
        return Reads(make())

    made.__name__ = name
    module(batch=words, expect=expect, **options)(made)


def sparsely(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05)


embeds("sparse_embedding", lambda: nn.Embedding(10, WIDTH, sparse=True), optimizer=sparsely)
embeds("sparse_bag_of_embeddings", lambda: nn.EmbeddingBag(10, WIDTH, sparse=True), optimizer=sparsely)
embeds("embedding_that_bounds_its_weights", lambda: nn.Embedding(10, WIDTH, max_norm=0.5))
embeds("embedding_with_padding", lambda: nn.Embedding(10, WIDTH, padding_idx=0, scale_grad_by_freq=True))
embeds(
    "frozen_embedding",
    lambda: nn.Embedding.from_pretrained(torch.ones(10, WIDTH)),
    has_columns("grad_norm", layer="head"),
)


@module(loss=lambda model, x: model(x, torch.randint(0, 9, (len(x),))).loss)
def adaptive_softmax() -> nn.Module:
    return nn.AdaptiveLogSoftmaxWithLoss(WIDTH, 9, [3, 6])


def connectionist(model: nn.Module, batch: Tensor) -> Tensor:
    scores = model(batch)[:, None].expand(-1, 2, -1).log_softmax(-1)
    targets, lengths = torch.tensor([1, 1, 1]), torch.tensor([2, 1])
    return nn.CTCLoss()(scores, targets, torch.tensor([8, 8]), lengths)


@module(loss=connectionist)
def connectionist_loss() -> nn.Module:
    return nn.Linear(WIDTH, 3)


class WithItsLoss(nn.Module):
    """A network whose loss is a module of it, so that the root puts out a scalar."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.net, self.criterion = nn.Linear(WIDTH, 3), criterion

    def forward(self, x: Tensor) -> Tensor:
        return self.criterion(self.net(x).log_softmax(-1), torch.randint(0, 3, (len(x),)))


@module(loss=lambda model, x: model(x))
def loss_that_is_a_part() -> nn.Module:
    return WithItsLoss(nn.NLLLoss(weight=torch.ones(3)))


@module(loss=lambda model, x: model(x))
def loss_with_a_parameter() -> nn.Module:
    class Weighted(Scale):
        def forward(self, scores: Tensor, target: Tensor) -> Tensor:
            return (scores * self.weight[:3]).gather(1, target[:, None]).mean().neg()

    return WithItsLoss(Weighted())


@module(batch=lambda: pack_sequence([rows(3), rows(2)]), loss=lambda model, x: model(x.data).square().mean())
def packed_batch() -> nn.Module:
    return nn.Linear(WIDTH, 2)


@part()
def quantized_in_training() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization = torch.ao.quantization
        net = nn.Sequential(quantization.QuantStub(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), quantization.DeQuantStub())
        net.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        return quantization.prepare_qat(net.train())
