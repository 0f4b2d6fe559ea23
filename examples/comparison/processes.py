"""Runs each task in a separate process, a few at a time, and survives a crash of any of them."""

from __future__ import annotations

import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")
Send = Callable[[Any], None]
Work = Callable[[Task, Send], None]


@dataclass(frozen=True)
class Started:
    """A process has started."""


@dataclass(frozen=True)
class Message:
    """The work has sent something."""

    content: Any


@dataclass(frozen=True)
class Ended:
    """A process has ended; its exit code is minus the number of the signal that killed it, if one did."""

    exit_code: int

    def __str__(self) -> str:
        names = {-number: number.name for number in signal.Signals}
        if self.exit_code < 0:
            return f"killed by {names.get(self.exit_code, f'signal {-self.exit_code}')}"
        return f"exit code {self.exit_code}"


Event = Started | Message | Ended


class Processes(Generic[Task]):
    """Runs ``work(task, send)`` in a new process for each task, at most ``jobs`` of them at a time.

    Args:
        work: a function at the top level of a module, so that the process can import it.
        jobs: number of processes.
    """

    def __init__(self, work: Work[Task], jobs: int) -> None:
        self._work, self._jobs = work, jobs
        # A server that has imported all that the work needs forks at once; elsewhere than on Linux forks may break.
        self._context: Any = get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":
            self._context.set_forkserver_preload([__name__, work.__module__])
        self._running: dict[Connection, tuple[BaseProcess, Task]] = {}

    def events(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Event]]:
        """Yield events until all tasks have ended. Closing the iterator early kills the running processes."""
        waiting = deque(tasks)
        try:
            while waiting or self._running:
                while waiting and len(self._running) < self._jobs:
                    task = waiting.popleft()
                    self._start(task)
                    yield task, Started()
                ready = wait(list(self._running))
                for connection in [each for each in self._running if each in ready]:
                    yield self._hear(connection)
        finally:
            self._kill()

    def _start(self, task: Task) -> None:
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work_quietly, args=(self._work, task, sender), daemon=True)
        process.start()
        sender.close()  # the process has its own, so that its end closes the pipe
        self._running[receiver] = (process, task)

    def _hear(self, connection: Connection) -> tuple[Task, Event]:
        process, task = self._running[connection]
        try:
            return task, Message(connection.recv())
        except (EOFError, OSError):
            del self._running[connection]
            connection.close()
            process.join()
            return task, Ended(process.exitcode or 0)

    def _kill(self) -> None:
        for process, _ in self._running.values():
            process.kill()
        for process, _ in self._running.values():
            process.join()
        self._running.clear()


def _work_quietly(work: Work[Task], task: Task, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears it too, and kills this one
    work(task, sender.send)
