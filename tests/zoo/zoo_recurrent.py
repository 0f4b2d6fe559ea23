"""Recurrent networks: of all kinds, and with inputs that are changed or read on the way in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence
from zoo import WIDTH, Expect, has_columns, module

COLUMNS: Expect = has_columns("grad_norm", "output_rms", layer="rnn")


def sequences() -> Tensor:
    return torch.randn(4, 5, WIDTH)


class Reader(nn.Module):
    """A recurrent network and a head on its last state."""

    def __init__(self, rnn: nn.RNNBase, axis: int = 1) -> None:
        super().__init__()
        width = (rnn.proj_size or rnn.hidden_size) * (2 if rnn.bidirectional else 1)
        self.rnn, self.axis, self.head = rnn, axis, nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0].select(self.axis, -1))


def reads_with(name: str, make: Any, axis: int = 1, expect: Expect | None = COLUMNS) -> None:
    def made() -> nn.Module:
        return Reader(make(), axis)

    made.__name__ = name
    module(batch=sequences, expect=expect)(made)


reads_with("rnn", lambda: nn.RNN(WIDTH, 4, batch_first=True))
reads_with("rnn_of_relu", lambda: nn.RNN(WIDTH, 4, batch_first=True, nonlinearity="relu"))
reads_with("gru_of_two_layers", lambda: nn.GRU(WIDTH, 4, 2, batch_first=True, dropout=0.3))
reads_with("lstm_time_first", lambda: nn.LSTM(WIDTH, 4), axis=0)
reads_with("lstm_of_both_directions", lambda: nn.LSTM(WIDTH, 4, batch_first=True, bidirectional=True))
reads_with("lstm_with_a_projection", lambda: nn.LSTM(WIDTH, 4, batch_first=True, proj_size=2))
reads_with("lstm_without_bias", lambda: nn.LSTM(WIDTH, 4, batch_first=True, bias=False))


@module(batch=lambda: torch.randn(5, WIDTH), expect=COLUMNS)
class LstmWithoutABatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0][-1]


@module(batch=sequences, expect=COLUMNS)
class LstmOfPackedSequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(WIDTH, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.tensor([2, 5, 1, 3]), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]


@module(batch=sequences)
class GruOfPackedSequencesOfOneStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(pack_sequence([row[:1] for row in x]))[0].data


@module(batch=sequences)
class LstmThatIsGivenItsState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(WIDTH, 4, batch_first=True)
        self.start = nn.Parameter(torch.zeros(2, 1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        h, c = self.start.expand(2, 1, 4, 4).contiguous()
        out, (h, _) = self.rnn(x[:, :3], (h, c))
        return self.rnn(input=x[:, 3:])[0] + h.transpose(0, 1) + out[:, -1:]


@module(batch=sequences)
class LstmOverTruncatedTime(nn.Module):
    """Carries its state from batch to batch, detached."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.state = nn.LSTM(WIDTH, 4, batch_first=True), None

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.rnn(x, self.state)
        self.state = tuple(each.detach() for each in state)
        return out


class Changing(nn.LSTM):
    """Changes its input."""

    def forward(self, x: Tensor, hx: Any = None) -> Any:  # type: ignore[override]
        x.mul_(0.5)
        return super().forward(x, hx)


class Reading(nn.GRU):
    """Reads its input with NumPy."""

    def forward(self, x: Tensor, hx: Any = None) -> Any:  # type: ignore[override]
        return super().forward(x * float(x.numpy().std()), hx)


class InsistsOnData(nn.RNN):
    """Refuses inputs that require a gradient."""

    def forward(self, x: Tensor, hx: Any = None) -> Any:  # type: ignore[override]
        if x.requires_grad or not x.is_leaf:
            raise ValueError("expected data")
        return super().forward(x, hx)


class Remembering(nn.GRU):
    """Knows its inputs again by their identity, and keeps one."""

    def forward(self, x: Tensor, hx: Any = None) -> Any:  # type: ignore[override]
        if not hasattr(x, "is_marked"):
            raise ValueError("another tensor than the one that was given")
        return super().forward(x, hx)


reads_with("lstm_that_changes_its_input", lambda: Changing(WIDTH, 4, batch_first=True))
reads_with("gru_that_reads_its_input_by_numpy", lambda: Reading(WIDTH, 4, batch_first=True))
reads_with("rnn_that_insists_on_data", lambda: InsistsOnData(WIDTH, 4, batch_first=True))


@module(batch=sequences)
class GruThatKnowsItsInputAgain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = Remembering(WIDTH, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x.is_marked = True  # type: ignore[attr-defined]
        return self.rnn(x)[0]


def change(module: nn.Module, args: Any, output: Any = None) -> None:
    args[0].mul_(0.5)


def read(module: nn.Module, args: Any) -> None:
    args[0].numpy()


def exchange(module: nn.Module, args: Any) -> Any:
    return (args[0] * float(args[0].numpy().std()),)


def hooked(rnn: nn.Module, *hooks: Any) -> nn.Module:
    for hook in hooks:
        rnn.register_forward_pre_hook(hook)
    return rnn


reads_with("lstm_whose_hook_changes_the_input", lambda: hooked(nn.LSTM(WIDTH, 4, batch_first=True), change))
reads_with("gru_whose_hook_reads_the_input_by_numpy", lambda: hooked(nn.GRU(WIDTH, 4, batch_first=True), read))
reads_with("rnn_whose_hooks_exchange_the_input", lambda: hooked(nn.RNN(WIDTH, 4, batch_first=True), exchange, read))


@module(batch=sequences)
def lstm_whose_forward_hook_reads_the_input() -> nn.Module:
    rnn = nn.LSTM(WIDTH, 4, batch_first=True)
    rnn.register_forward_hook(lambda module, args, output: (output[0] * float(args[0].numpy().std()), output[1]))
    return Reader(rnn)


@module(batch=sequences)
def gru_whose_forward_hook_changes_the_input() -> nn.Module:
    rnn = nn.GRU(WIDTH, 4, batch_first=True)
    rnn.register_forward_hook(change)
    return nn.Sequential(nn.Flatten(), nn.Unflatten(1, (5, WIDTH)), Reader(rnn))


@module(batch=sequences)
def lstm_whose_input_is_read_behind_it() -> nn.Module:
    class Behind(Reader):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            return out * float(x.numpy().std()) + x.add_(1).mean()

    return Behind(nn.LSTM(WIDTH, 4, batch_first=True))


@module(batch=sequences)
class GruOfADetachedInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.rnn = nn.Linear(WIDTH, WIDTH), nn.GRU(WIDTH, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(self.first(x).detach())[0] + self.rnn(self.first(x))[0]


@module(batch=sequences)
class CellsOfAllKinds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.lstm, self.gru = nn.RNNCell(WIDTH, 4), nn.LSTMCell(4, 4), nn.GRUCell(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        state, pair, out = None, None, None
        for step in x.unbind(1):
            state = self.rnn(step, state)
            pair = self.lstm(state, pair)
            out = self.gru(pair[0], out)
        return out


@module(batch=sequences)
class FrozenRnnBelowAHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(WIDTH, 4, batch_first=True).requires_grad_(False), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


@module(batch=sequences)
class RnnWithoutAGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(WIDTH, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            states = self.rnn(x)[0]
        return self.head(states)


@module(batch=lambda: torch.randn(4, 0, WIDTH), error="Expected sequence length to be larger than 0")
def rnn_over_no_time() -> nn.Module:
    return Reader(nn.RNN(WIDTH, 4, batch_first=True))


@module(batch=lambda: torch.randn(0, 5, WIDTH))
def gru_without_a_sequence() -> nn.Module:
    return Reader(nn.GRU(WIDTH, 4, batch_first=True))
