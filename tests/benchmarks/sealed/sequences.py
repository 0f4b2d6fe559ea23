"""Text-like and symbol sequences: recurrences, attention, language models."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from sealed.base import Program, Setup, batches, hits, rng
from torch import Tensor, nn


def recall(count: int, length: int, seed: int, kinds: int = 4) -> tuple[Tensor, Tensor]:
    """Give noise after a first symbol that is to be remembered."""
    g = rng(seed)
    y = torch.randint(0, kinds, (count,), generator=g)
    x = 0.3 * torch.randn(count, length, kinds, generator=g)
    x[:, 0] += 2 * F.one_hot(y, kinds)
    return x, y


def majority(count: int, length: int, seed: int, words: int = 12) -> tuple[Tensor, Tensor]:
    """Give sentences of unequal length, padded with 0, and the sum of their words' secret values as a class."""
    g = rng(seed)
    x = torch.randint(1, words, (count, length), generator=g)
    size = torch.randint(3, length + 1, (count,), generator=g)
    x[torch.arange(length)[None] >= size[:, None]] = 0
    value = torch.cat([torch.zeros(1), torch.randn(words - 1, generator=rng(99))])
    total = value[x].sum(1)
    return x, (total > total.median()).long()


def tally(count: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Give noise of four channels, one of which is a little higher on the whole."""
    g = rng(seed)
    y = torch.randint(0, 4, (count,), generator=g)
    return 0.5 * torch.randn(count, length, 4, generator=g) + 0.3 * F.one_hot(y, 4)[:, None], y


class Memory(LightningModule):
    def __init__(self, start: float | None, lr: float = 2e-3) -> None:
        super().__init__()
        self.lr = lr
        self.rnn = nn.RNN(4, 32, batch_first=True)
        self.head = nn.Linear(32, 4)
        if start is None:
            nn.init.orthogonal_(self.rnn.weight_hh_l0)
        else:
            nn.init.normal_(self.rnn.weight_hh_l0, std=start)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def fading_rnn(faulty: bool, seed: int) -> Setup:
    return Setup(
        Memory(0.02 if faulty else None), batches(*recall(960, 25, 1), seed=seed), hits(*recall(300, 25, 2)), epochs=6,
        trainer={"gradient_clip_val": 1.0},
    )  # fmt: skip


class OwnCell(LightningModule):
    """A recurrence by hand with ReLU."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.inward = nn.Linear(4, 48)
        self.again = nn.Parameter(torch.randn(48, 48) if faulty else torch.eye(48) * 0.98)
        self.head = nn.Linear(48, 4)

    def roll(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 48)
        for t in range(x.shape[1]):
            h = torch.relu(self.inward(x[:, t]) * 0.3 + h @ self.again)
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.roll(x))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(self.parameters(), lr=1e-3)


def overflowing_cell(faulty: bool, seed: int) -> Setup:
    return Setup(OwnCell(faulty), batches(*tally(640, 60, 1), seed=seed), hits(*tally(300, 60, 2)), epochs=5)


class Permuted(LightningModule):
    """Wants time first, as nn.GRU does by default."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.rnn = nn.GRU(4, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        count, length, width = x.shape
        seq = x.view(length, count, width) if self.faulty else x.transpose(0, 1)
        return self.head(self.rnn(seq)[1][-1])

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def view_for_transpose(faulty: bool, seed: int) -> Setup:
    return Setup(Permuted(faulty), batches(*recall(960, 12, 1), seed=seed), hits(*recall(300, 12, 2)), epochs=5)


class Pooler(LightningModule):
    """Pools words by learned attention of its own, some sentences are cut to nothing."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.words = nn.Embedding(12, 16)
        self.query = nn.Linear(16, 1)
        self.head = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))

    def attend(self, keys: Tensor, real: Tensor) -> Tensor:
        fill = -math.inf if self.faulty else -1e4
        weight = torch.softmax(self.query(keys).squeeze(-1).masked_fill(~real, fill), -1)
        return (weight[..., None] * keys).sum(1) * real.sum(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attend(self.words(x), x > 0))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def empty_sentence(faulty: bool, seed: int) -> Setup:
    x, y = majority(1600, 10, 1)
    x[700] = 0
    return Setup(Pooler(faulty), batches(x, y, seed=seed), hits(*majority(400, 10, 2)), epochs=4)


class Detached(Memory):
    """Rolls a cell; the state is cut from the graph at each step."""

    def __init__(self, faulty: bool) -> None:
        super().__init__(0.01)
        self.faulty = faulty
        self.cell = nn.GRUCell(4, 16)
        self.head = nn.Linear(16, 4)
        del self.rnn

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 16)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h.detach() if self.faulty else h)
        return self.head(h)


def detached_state(faulty: bool, seed: int) -> Setup:
    module = Detached(faulty)
    module.lr = 1e-2
    return Setup(module, batches(*recall(800, 9, 1), seed=seed), hits(*recall(300, 9, 2)), epochs=5)


def cycles(count: int, length: int, seed: int) -> Tensor:
    """Give walks on 10 symbols: the next one is the sum of the last two, modulo 10, with a little noise."""
    g = rng(seed)
    x = torch.randint(0, 10, (count, length), generator=g)
    noise = torch.rand(count, length, generator=g) < 0.05
    for t in range(2, length):
        x[:, t] = torch.where(noise[:, t], x[:, t], (x[:, t - 1] + x[:, t - 2]) % 10)
    return x


class LittleGPT(LightningModule):
    """A language model of one or more blocks with tied weights."""

    def __init__(self, fault: str = "", layers: int = 1) -> None:
        super().__init__()
        self.fault = fault
        self.words = nn.Embedding(10, 32)
        self.places = nn.Parameter(0.1 * torch.randn(24, 32))
        block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 10, bias=False)
        nn.init.normal_(self.words.weight, std=0.2)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        mask = None if self.fault == "uncausal" else torch.ones(length, length).triu(1).bool()
        return self.head(self.norm(self.blocks(self.words(x) + self.places[:length], mask=mask)))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        (x,) = batch
        if self.fault == "unshifted":
            return F.cross_entropy(self(x).flatten(0, 1), x.flatten())
        return F.cross_entropy(self(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    def configure_optimizers(self) -> dict:
        opt = torch.optim.AdamW(self.parameters(), lr=8e-3, betas=(0.9, 0.98))
        rate = torch.optim.lr_scheduler.LambdaLR(opt, lambda s: min((s + 1) / 30, 1.0))
        return {"optimizer": opt, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


def continues(x: Tensor):
    """Score the symbol that follows a prefix."""

    def score(module: LightningModule) -> float:
        module.eval()
        with torch.no_grad():
            ends = [(module(x[:, :t])[:, -1].argmax(-1) == x[:, t]).float().mean() for t in range(4, 12)]
        return torch.stack(ends).mean().item()

    return score


def gpt(fault: str, epochs: int = 5, layers: int = 1):
    def make(faulty: bool, seed: int) -> Setup:
        module = LittleGPT(fault if faulty else "", layers)
        return Setup(module, batches(cycles(1200, 14, 1), seed=seed), continues(cycles(200, 14, 2)), epochs=epochs)

    return make


class Truncated(LightningModule):
    """Casts what it thinks are word indices, which the reader of the data had scaled to 0..1."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.words = nn.EmbeddingBag(12, 16, mode="sum")
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        ids = x.long() if self.faulty else (x * 12).round().long()
        return self.head(self.words(ids))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def scaled_ids(faulty: bool, seed: int) -> Setup:
    (x, y), (a, b) = majority(1600, 10, 1), majority(400, 10, 2)
    return Setup(Truncated(faulty), batches(x / 12, y, seed=seed), hits(a / 12, b), epochs=4)


class Stateful(LightningModule):
    """Reads one long stream in pieces, carrying a detached state from piece to piece."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(10, 48, batch_first=True)
        self.head = nn.Linear(48, 10)
        self.state: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(F.one_hot(x, 10).float())[0])

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        (x,) = batch
        out, state = self.rnn(F.one_hot(x[:, :-1], 10).float(), self.state)
        self.state = (state[0].detach(), state[1].detach())
        return F.cross_entropy(self.head(out).flatten(0, 1), x[:, 1:].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1.5e-2)


def stateful(_: bool, seed: int) -> Setup:
    x = cycles(32, 1601, 1)
    pieces = torch.cat([x[:, i : i + 9] for i in range(0, 1600, 8)])
    return Setup(Stateful(), batches(pieces, seed=seed, shuffle=False), continues(cycles(200, 14, 2)), epochs=1)


class LongLSTM(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 24, batch_first=True)
        self.head = nn.Linear(24, 4)
        with torch.no_grad():
            self.rnn.bias_ih_l0[24:48] = 3.0  # a large forget bias, so that memory lasts

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def long_lstm(_: bool, seed: int) -> Setup:
    return Setup(
        LongLSTM(), batches(*recall(960, 40, 1), seed=seed), hits(*recall(300, 40, 2)), epochs=8,
        trainer={"gradient_clip_val": 1.0},
    )  # fmt: skip


def bag(_: bool, seed: int) -> Setup:
    return Setup(
        Pooler(False), batches(*majority(800, 10, 1), seed=seed, size=4), hits(*majority(400, 10, 2)), epochs=2
    )


MASKED = "https://github.com/pytorch/pytorch/issues/41508"
PROGRAMS = (
    Program("rnn-small-recurrent-init", "sequences", "Pascanu et al. 2013", fading_rnn,
            "The recurrent weights start so small that the first symbol's gradient fades over 25 steps.",
            "Starts the recurrent weights orthogonal."),
    Program("relu-cell-overflow", "sequences", "Le et al. 2015", overflowing_cell,
            "The recurrent matrix starts with deviation 1, so a ReLU state grows each step until it overflows.",
            "Starts it near the identity.", "matmul in OwnCell.roll"),
    Program("view-for-transpose", "sequences", "Stack Overflow, view against permute", view_for_transpose,
            "view() to (time, batch) mixes the samples of a batch.", "Uses transpose()."),
    Program("attention-empty-sentence", "sequences", MASKED, empty_sentence,
            "A sentence of padding alone masks all scores with -inf and softmax gives NaN.",
            "Fills with a large finite number.", "softmax in Pooler.attend"),
    Program("state-detached-each-step", "sequences", "", detached_state,
            "The state is detached at each step, so nothing learns to keep the first symbol.",
            "Keeps the state in the graph."),
    Program("no-causal-mask", "sequences", "practice", gpt("uncausal"),
            "The language model sees the symbol that it is to predict, for the causal mask is missing.",
            "Passes the mask."),
    Program("targets-not-shifted", "sequences", "practice", gpt("unshifted"),
            "The targets are the inputs themselves, not shifted by one.", "Shifts the targets."),
    Program("ids-scaled-then-cast", "sequences", "", scaled_ids,
            "Word indices were scaled to 0..1 and become 0 when cast.", "Undoes the scale before the cast."),
    Program("tied-gpt-warmup", "sequences", "Press and Wolf 2017", gpt("", 4, 3)),
    Program("stateful-truncated-bptt", "sequences", "", stateful),
    Program("long-lstm-forget-bias", "sequences", "Jozefowicz et al. 2015", long_lstm),
    Program("attention-bag-tiny-batch", "sequences", "", bag),
)  # fmt: skip
