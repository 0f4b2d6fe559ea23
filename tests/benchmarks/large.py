"""Measure what gradwatch costs and stores for large models: 100 to 10,000 layers, 1e9 parameters, 1,000 processes.

    python tests/benchmarks/large.py layers --sizes 100 1000 10000
    python tests/benchmarks/large.py records --layers 10000 --steps 40
    python tests/benchmarks/large.py parameters
    python tests/benchmarks/large.py ranks

``layers`` measures a chain of Linears of width 8 in a plain loop, every step measured: times are medians of ``--steps``
steps, taken in turns with bare ones. ``parameters`` builds a transformer of 1e9 parameters on the meta device, where a
tensor has a shape and no memory, and counts what a measured step would read and copy. ``ranks`` lays out the sums of
a step by the code that adds them up, and puts their bytes into the alpha-beta model of an all-reduce.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import gradwatch
from gradwatch.diagnosis import diagnose
from gradwatch.probe.layers import named_parameters
from gradwatch.probe.probe import Probe
from gradwatch.probe.replicas import Replicas, zero_sum_weights
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.sum_layout import SumLayout
from gradwatch.probe.sums import StepSums
from gradwatch.probe.updates import Updates
from gradwatch.records import Snapshot
from gradwatch.reporting.block_values import BlockValues
from gradwatch.reporting.html.report import write_report
from gradwatch.reporting.keys import scalars
from gradwatch.reporting.parquet import ParquetRecord
from gradwatch.reporting.record import JsonlRecord, read_record
from gradwatch.snapshot import ARRAYS

RUN = 20 + 2000  # measured steps of a default run of 100,000 steps
HISTORY = 500
MB = 1e6
# Of a network between machines: seconds until a message has begun to arrive, and seconds a byte. 5 us and 200 Gb/s are
# those of an InfiniBand HDR port; 100 us and 25 Gb/s of a cloud's Ethernet.
NETWORKS = {"InfiniBand, 200 Gb/s": (5e-6, 8 / 200e9), "Ethernet, 25 Gb/s": (100e-6, 8 / 25e9)}
Row = dict[str, Any]


def chain(layers: int, width: int = 8) -> nn.Sequential:
    """Linears that keep the size of what flows through them, both ways."""
    linears = [nn.Linear(width, width) for _ in range(layers)]
    for linear in linears:
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(*linears)


class Loop:
    """Steps of a chain, bare or measured."""

    def __init__(self, layers: int) -> None:
        self.model, self.x = chain(layers), torch.randn(4, 8)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-7)

    def loss(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.model(self.x).square().mean()
        loss.backward()
        return loss

    def bare(self) -> float:
        began = time.perf_counter()
        self.loss()
        self.optimizer.step()
        return time.perf_counter() - began

    def measured(self, watcher: gradwatch.Watcher) -> tuple[float, Snapshot]:
        began = time.perf_counter()
        snapshot = watcher.step(self.optimizer, self.loss())
        assert snapshot is not None
        return time.perf_counter() - began, snapshot


def of_layers(layers: int, steps: int) -> Row:
    """What a chain costs and stores."""
    loop = Loop(layers)
    gc.collect()
    began = time.perf_counter()
    watcher = gradwatch.Watcher(loop.model, every_n_steps=1, on_finding=lambda finding: None)
    built = time.perf_counter() - began
    bare, measured = [], []
    with tempfile.TemporaryDirectory() as folder, watcher:
        record = JsonlRecord(Path(folder) / "gradwatch.jsonl")
        for _ in range(steps + 1):
            watcher._probe.pause()  # a bare step has no hooks
            bare.append(loop.bare())
            watcher._probe.resume()
            taken, snapshot = loop.measured(watcher)
            measured.append(taken)
            record.snapshot(snapshot)
        record.close()
        lines = Path(record.path).read_bytes().splitlines()
        began = time.perf_counter()
        read = read_record(record.path)
        write_report(Path(folder) / "report.html", read, diagnose(read.findings, read.snapshots), "large")
        reported = time.perf_counter() - began
    line = float(np.mean([len(text) for text in lines if text.startswith(b'{"type": "snapshot"')]))
    folded = BlockValues()(snapshot, [])
    return {
        "layers": f"{layers:,}", "Watcher, s": f"{built:.2f}", "bare step, ms": f"{1e3 * median(bare[1:]):.1f}",
        "measured step, ms": f"{1e3 * median(measured[1:]):.0f}",
        "times": f"{median(measured[1:]) / median(bare[1:]):.1f}",
        "Snapshot, MB": f"{snapshot.nbytes / MB:.3f}",
        f"history of {HISTORY}, MB": f"{min(HISTORY * snapshot.nbytes, 256 * 2**20) / MB:.0f}",
        "record line, kB": f"{line / 1e3:.0f}", "whole record, MB": f"{RUN * line / MB:.0f}",
        "keys by layer": f"{len(scalars(snapshot)):,}", "keys": f"{len(scalars(folded)):,}",
        f"report of {steps + 1} steps, s": f"{reported:.1f}",
    }  # fmt: skip


def of_records(layers: int, steps: int) -> list[Row]:
    """Size and time of each kind of record, for the same measured steps of a chain whose numbers change."""
    loop = Loop(layers)
    with gradwatch.watch(loop.model, every_n_steps=1, on_finding=lambda finding: None) as watcher:
        first = loop.measured(watcher)[1]
    rng = np.random.RandomState(0)
    plain = first.to_dict()
    arrays = [name for name in ARRAYS if name in plain]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, record in {
            "JSON": JsonlRecord(Path(folder) / "run.jsonl", most_bytes=10**12),
            "JSON, thinned": JsonlRecord(Path(folder) / "thin.jsonl", most_bytes=steps * 10**9 // RUN),
            "Parquet": ParquetRecord(Path(folder) / "run.parquet"),
        }.items():
            taken = 0.0
            for step in range(steps):
                noisy = {
                    each: (np.array(plain[each]) * rng.lognormal(0, 0.1, len(plain[each]))).tolist() for each in arrays
                }
                snapshot = Snapshot.from_dict({**plain, **noisy, "step": step})
                began = time.perf_counter()
                record.snapshot(snapshot)
                taken += time.perf_counter() - began
            record.close()
            path = Path(record.path)
            size = sum(each.stat().st_size for each in ([path] if path.is_file() else path.iterdir()))
            began = time.perf_counter()
            kept = len(read_record(path).snapshots)
            rows.append({
                "record": name, "steps in it": kept, "kB a measured step": f"{size / steps / 1e3:.0f}",
                f"MB for {RUN:,} steps": f"{size / steps * RUN / MB:,.0f}",
                "write, ms a step": f"{1e3 * taken / steps:.0f}",
                "read, ms a step": f"{1e3 * (time.perf_counter() - began) / kept:.0f}",
            })  # fmt: skip
    return rows


def transformer(width: int = 2048, blocks: int = 19, words: int = 32000) -> nn.Module:
    """About 1e9 parameters."""
    block = [nn.TransformerEncoderLayer(width, 16, 4 * width, batch_first=True) for _ in range(blocks)]
    return nn.Sequential(nn.Embedding(words, width), *block, nn.Linear(width, words, bias=False))


def of_parameters() -> list[Row]:
    """What a measured step would read and copy of a transformer, with a model of which only the shapes exist."""
    with torch.device("meta"):
        model = transformer()
    began = time.perf_counter()
    probe = Probe(model)
    built = time.perf_counter() - began
    params = {name: param for name, param, _ in named_parameters(model)}
    updates = Updates()
    updates.keep(params, DeviceScalars())
    copies = [kept.before.numel() * kept.before.itemsize for kept in updates._waiting.values()]
    whole = [size for size, kept in zip(copies, updates._waiting.values(), strict=True) if not kept.blocks]
    entries = sum(param.numel() for param in params.values())
    weights = 4 * entries
    rows = {
        "parameters": f"{entries:,} in {len(params)} tensors",
        "layers with a hook": f"{len(probe.layers)}",
        "time to build the Probe": f"{1e3 * built:.0f} ms",
        "gradients read, once for norms and zeros, once more after a clip": f"{4 * entries / 1e9:.1f} GB, float32",
        "weights read for norms": f"{weights / 1e9:.1f} GB",
        "weights copied before the step": f"{sum(copies) / MB:.0f} MB, {100 * sum(copies) / weights:.1f} % of them",
        "of that kept whole": f"{len(whole)} tensors, {sum(whole) / MB:.0f} MB",
        "of that sampled": f"{len(copies) - len(whole)} tensors, {(sum(copies) - sum(whole)) / MB:.1f} MB",
    }
    return [{"what": what, "amount": amount} for what, amount in rows.items()]


def sums_bytes(layers: int, params: int, span: int = 50) -> int:
    """Bytes of a step's sums over all processes, by the code that lays them out; ReLUs would add their units."""
    replicas = SimpleNamespace(lengths=dict.fromkeys(Replicas(None, None).lengths, params))
    index = SimpleNamespace(layers=range(layers), params=range(params))
    step: Any = SimpleNamespace(_index=index, _span=range(span), _replicas=replicas)
    return 8 * SumLayout(StepSums._lengths(step, calls=0, units=0)).size


def all_reduce(size: float, processes: int, alpha: float, beta: float) -> dict[str, float]:
    """Seconds of an all-reduce of ``size`` bytes: in a ring, and in a pair of binary trees.

    A ring has 2 (p - 1) messages of size / p one after the other. Two trees, each with half of the data, have 2 log2 p
    messages on the way, and pass on all of the data twice in pieces that overlap.
    """
    steps = 2 * (processes - 1)
    return {
        "ring": steps * alpha + steps / processes * size * beta,
        "tree": 2 * math.ceil(math.log2(processes)) * alpha + 2 * size * beta,
    }


def of_ranks(processes: Sequence[int]) -> list[Row]:
    """Bytes of the one collective of a measured step, and its time."""
    rows = []
    for layers, params in ((100, 200), (1000, 2000), (10_000, 20_000)):
        size = sums_bytes(layers, params)
        for name, (alpha, beta) in NETWORKS.items():
            for count in processes:
                took = all_reduce(size, count, alpha, beta)
                rows.append({
                    "layers": f"{layers:,}", "sums, kB": f"{size / 1e3:,.0f}", "network": name,
                    "processes": f"{count:,}",
                    **{f"{kind}, ms": f"{1e3 * seconds:.1f}" for kind, seconds in took.items()},
                })  # fmt: skip
    return rows


def of_host(processes: Sequence[int]) -> list[Row]:
    """What grows with the number of processes on each host: the weights by which replicas are told apart."""
    rows = []
    for count in processes:
        began = time.perf_counter()
        weights = zero_sum_weights(np.arange(count).reshape(1, -1))
        took = time.perf_counter() - began
        rows.append(
            {"processes": f"{count:,}", "weights, kB": f"{weights.nbytes / 1e3:.1f}", "drawn, ms": f"{1e3 * took:.1f}"}
        )
    return rows


def show(rows: Sequence[Row], title: str) -> None:
    """Print a table, and the same as a line of JSON each."""
    table = Table(*rows[0], title=f"{title}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=240).print(table)
    for row in rows:
        print(json.dumps(row))


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    layers = parts.add_parser("layers", help="time and bytes for chains of Linears")
    layers.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10_000])
    layers.add_argument("--steps", type=int, default=8)
    records = parts.add_parser("records", help="size and time of each kind of record")
    records.add_argument("--layers", type=int, default=10_000)
    records.add_argument("--steps", type=int, default=40)
    parts.add_parser("parameters", help="what a step would read and copy of 1e9 parameters")
    ranks = parts.add_parser("ranks", help="bytes and modelled time of the collective")
    ranks.add_argument("--processes", type=int, nargs="+", default=[8, 64, 1000])
    given = parser.parse_args(args)
    torch.set_num_threads(1)
    if given.part == "layers":
        show([of_layers(size, given.steps) for size in given.sizes], "layers")
    elif given.part == "records":
        show(of_records(given.layers, given.steps), f"records of {given.layers:,} layers")
    elif given.part == "parameters":
        show(of_parameters(), "1e9 parameters, on the meta device")
    else:
        show(of_ranks(given.processes), "the collective of a measured step")
        show(of_host(given.processes), "what a host holds for each process")


if __name__ == "__main__":
    main()
