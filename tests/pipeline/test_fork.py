"""Nothing that is done in a fork is seen outside of it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gradwatch.pipeline import fork
from gradwatch.pipeline.fork import call_in_fork, can_fork

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")


def test_returns_the_answer_and_changes_no_memory() -> None:
    seen: list[int] = []
    states = torch.get_rng_state(), random.getstate()

    def count() -> dict[str, Any]:
        seen.append(1)
        os.environ["SEEN_IN_A_FORK"] = "1"
        torch.manual_seed(7), random.seed(7)
        return {"seen": len(seen), "long": "x" * 300_000}

    answer = call_in_fork(count)
    assert answer is not None
    assert (answer["seen"], len(answer["long"])) == (1, 300_000)
    assert seen == []
    assert "SEEN_IN_A_FORK" not in os.environ
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()


def test_computes_gradients() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 2))
    model(torch.ones(4, 1, 8, 8)).sum().backward()

    def compute() -> dict[str, Any]:
        model.zero_grad()
        model(torch.ones(4, 1, 8, 8)).sum().backward()
        return {"bias": model[2].bias.grad.tolist()}

    assert call_in_fork(compute) == {"bias": [4.0, 4.0]}


def _write(path: Path) -> None:
    path.joinpath("new").write_text("new")


def _make_empty(path: Path) -> None:
    os.close(ctypes.CDLL(None).creat(str(path / "old").encode(), 0o600))


WAYS: dict[str, Callable[[Path], object]] = {
    "write": _write,
    "make empty, past Python": _make_empty,
    "remove": lambda path: path.joinpath("old").unlink(),
    "rename": lambda path: path.joinpath("old").rename(path / "new"),
    "make a folder": lambda path: path.joinpath("folder").mkdir(),
    "start a process": lambda path: subprocess.run(["touch", str(path / "new")], check=True),
    "run a shell": lambda path: os.system(f"touch {path / 'new'}"),
    "send a signal": lambda path: os.kill(os.getppid(), signal.SIGUSR1),
}


@pytest.mark.parametrize("way", WAYS)
def test_reaches_nothing_outside(way: str, tmp_path: Path) -> None:
    tmp_path.joinpath("old").write_text("old")
    signals: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: signals.append(number))
    try:
        assert call_in_fork(lambda: {"done": WAYS[way](tmp_path)}) is None
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old", "old")]
    assert not signals


def test_open_files_and_sockets_lead_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    here, there = socket.socketpair()
    there.setblocking(False)
    with open(tmp_path / "log", "w") as log, here, there:

        def write() -> dict[str, Any]:
            print("seen", flush=True)
            os.write(1, b"seen")
            log.write("seen")
            log.flush()
            os.write(here.fileno(), b"seen")
            return {"end": 1}

        assert call_in_fork(write) == {"end": 1}
        with pytest.raises(BlockingIOError):
            there.recv(1)
    assert not (tmp_path / "log").read_text()
    assert not capfd.readouterr().out


def test_shared_memory_is_not_written() -> None:
    tensor, number = torch.zeros(3).share_memory_(), multiprocessing.Value("i", 0)

    def write() -> dict[str, Any]:
        tensor.add_(1)
        with number.get_lock():
            number.value += 1
        return {"tensor": tensor.tolist(), "number": number.value}

    assert call_in_fork(write) == {"tensor": [1.0] * 3, "number": 1}
    assert not tensor.any()
    assert number.value == 0
    assert number.get_lock().acquire(timeout=1)


def test_an_error_or_an_end_is_no_answer() -> None:
    assert call_in_fork(lambda: {"error": 1 / 0}) is None
    assert call_in_fork(lambda: sys.exit(3)) is None
    assert call_in_fork(lambda: {"not for JSON": object()}) is None
    assert call_in_fork(lambda: os.abort()) is None


def test_a_fork_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    real, numbers, begin = fork._fork, list[int](), time.monotonic()
    monkeypatch.setattr(fork, "_fork", lambda: numbers.append(real()) or numbers[-1])
    assert call_in_fork(lambda: time.sleep(60), seconds=0.5) is None
    assert time.monotonic() - begin < 10
    with pytest.raises(ChildProcessError):  # none is left
        os.waitpid(numbers[-1], os.WNOHANG)


def test_a_fork_gets_a_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 1 << 26
    numbers = {"/proc/meminfo": free // 1024}
    real = fork._first_number
    monkeypatch.setattr(fork, "_first_number", lambda path, *start: numbers.get(path) or real(path, *start))
    assert call_in_fork(lambda: {"size": torch.ones(free).numel()}) is None
    assert call_in_fork(lambda: {"size": torch.ones(free // 64).numel()}) == {"size": free // 64}


def test_no_fork_where_it_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGCHLD, lambda number, _: None)
    try:
        assert not can_fork()
        assert call_in_fork(lambda: {"done": 1}) is None
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert can_fork()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not can_fork()


def test_no_place_for_a_fork_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(os, "fork", fail)
    assert call_in_fork(lambda: {"done": 1}) is None
