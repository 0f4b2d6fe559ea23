"""Recurrent depth: gradients that vanish or explode over the calls of a cell."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from bases import on_recall
from networks import Recurrent
from program import Case, Program, adam, pair, r_squared, sgd, squared_error
from sources import recall, sums

DEPTH = ("recurrent depth",)
SMALL, LARGE = ("recurrent depth", "initialization too small"), ("recurrent depth", "initialization too large")


def vanishing() -> list[Case]:
    make = partial(pair, "recurrent depth, vanishing", causes=DEPTH, from_start=True)
    cell = partial(Recurrent, 4, 4)
    return [
        make("rnn of 100", healthy=on_recall(8, lr=5e-3), data=partial(recall, 100)),
        make("rnn of 80 sgd", healthy=replace(on_recall(4), optimizer=sgd(0.5)), data=partial(recall, 80)),
        make("rnn not gru", healthy=on_recall(20, lr=2e-2, cell="GRU", steps=200),
             network=partial(cell, cell="RNN")),
        make("fused rnn of 60", healthy=on_recall(8, lr=5e-3, fused=True), data=partial(recall, 60)),
        make("lstm of 60", healthy=on_recall(6, lr=1e-2, cell="LSTM"), data=partial(recall, 60)),
        make("rnn contracting", healthy=on_recall(20, lr=5e-3, radius=1.0), causes=SMALL,
             network=partial(cell, radius=0.1)),
        make("relu rnn contracting", healthy=on_recall(10, lr=1e-2, cell="ReLU", radius=1.0), causes=SMALL,
             network=partial(cell, cell="ReLU", radius=0.3)),
    ]  # fmt: skip


def exploding() -> list[Case]:
    make = partial(pair, "recurrent depth, exploding", causes=LARGE, from_start=True)
    cell, number = partial(Recurrent, 4, 4), partial(Recurrent, 2, 1, cell="ReLU")
    mean = Program(partial(number, radius=0.9), partial(sums, 15), squared_error, r_squared, sgd(0.05), steps=200)
    return [
        make("relu rnn", healthy=on_recall(10, lr=1e-2, cell="ReLU", radius=1.0),
             network=partial(cell, cell="ReLU", radius=3.0)),
        make("relu rnn sgd", healthy=replace(on_recall(6, cell="ReLU", radius=1.0), optimizer=sgd(0.3)),
             network=partial(cell, cell="ReLU", radius=2.0)),
        make("tanh rnn", healthy=on_recall(12, radius=1.0, lr=5e-3), network=partial(cell, radius=6.0)),
        make("mean of 15", healthy=mean, network=partial(number, radius=3.0)),
        make("mean of 15 adam", healthy=replace(mean, optimizer=adam(5e-3)), network=partial(number, radius=4.0)),
        make("longer than it bears", causes=DEPTH, healthy=replace(mean, network=partial(number, radius=1.3),
             data=partial(sums, 6)), data=partial(sums, 40)),
        make("fused relu rnn", healthy=on_recall(10, lr=1e-2, cell="ReLU", radius=1.0, fused=True),
             network=partial(cell, cell="ReLU", radius=3.0, fused=True)),
    ]  # fmt: skip


CASES = [*vanishing(), *exploding()]
