"""A call in a forked process that can change nothing outside of itself.

A fork has all that this process has in memory, on pages that are copied when they are written. So code of the user's
may run there a second time, with its counters, random numbers, metrics and global variables, and this process sees
nothing of it. What is not memory is taken from the fork first: its open files lead nowhere, it can open no other, and
it ends at once where it would remove a file, start a process, or send a signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import mmap
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

_SECONDS = 20  # a step that takes longer is not computed again
_POLL = 0.05  # seconds between two looks if the fork has ended
_MOST_SHARED = 1 << 30  # bytes of shared memory that are copied
_SHARE_OF_MEMORY = 0.5  # of what is free, that a fork may use
_PIECE = 1 << 16
_NOWHERE = "/dev/null"
_OWN_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Events of Python's audit hooks (PEP 578) for what reaches outside without an open file.
_OUTWARD = frozenset({
    "os.chflags", "os.chmod", "os.chown", "os.exec", "os.fork", "os.forkpty", "os.kill", "os.killpg", "os.link",
    "os.lockf", "os.mkdir", "os.posix_spawn", "os.remove", "os.removexattr", "os.rename", "os.rmdir", "os.setxattr",
    "os.spawn", "os.startfile", "os.symlink", "os.system", "os.truncate", "os.unlink", "os.utime", "pty.spawn",
    "signal.pthread_kill", "subprocess.Popen",
})  # fmt: skip
_OUTWARD_ROOMS = ("shutil.", "socket.", "tempfile.", "syslog.")


def can_fork() -> bool:
    """Return True if a fork is known to be safe here: on Linux, where no GPU is used and no handler would see it."""
    if sys.platform != "linux" or resource is None or _uses_gpu():
        return False
    handler = signal.getsignal(signal.SIGCHLD)
    return not callable(handler) or getattr(handler, "__module__", "").startswith("torch.")


def _uses_gpu() -> bool:
    return torch.cuda.is_initialized()  # type: ignore[no-untyped-call, no-any-return]


def call_in_fork(function: Callable[[], dict[str, Any] | None], seconds: float = _SECONDS) -> dict[str, Any] | None:
    """Return what a function returns in a fork of this process; None where it raises, or takes too long.

    Args:
        function: returns what JSON can hold.
        seconds: the fork is killed after these.

    Example:
        >>> calls = []
        >>> call_in_fork(lambda: calls.append(1) or {"calls": len(calls)}) if can_fork() else {"calls": 1}
        {'calls': 1}
        >>> calls
        []
    """
    if not can_fork():
        return None
    inlet, outlet = os.pipe()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads, which a fork does not have
            number = _fork()
        if number == 0:
            _run_and_exit(function, outlet, seconds)
        return _answer(number, inlet, seconds) if number > 0 else None
    finally:
        os.close(inlet)
        os.close(outlet)


def _fork() -> int:
    """Return 0 in the fork, its number in this process, and -1 where the system has no place for it."""
    try:
        return os.fork()
    except OSError:
        return -1


def _answer(number: int, inlet: int, seconds: float) -> dict[str, Any] | None:
    """Wait for a line of the fork, and see to it that it has ended."""
    text, has_ended, end = b"", False, time.monotonic() + seconds
    inbox = select.poll()
    inbox.register(inlet, select.POLLIN)
    try:
        while not text.endswith(b"\n") and time.monotonic() < end:
            if inbox.poll(_POLL * 1000):
                text += os.read(inlet, _PIECE)
            elif has_ended:
                break
            else:
                has_ended = os.waitpid(number, os.WNOHANG)[0] == number
    except ChildProcessError:  # somebody else has waited for it
        has_ended = True
    finally:
        if not has_ended:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(number, signal.SIGKILL)
                os.waitpid(number, 0)
    answer = json.loads(text) if text.endswith(b"\n") else None
    return answer if isinstance(answer, dict) else None


def _run_and_exit(function: Callable[[], dict[str, Any] | None], outlet: int, seconds: float) -> None:
    """Call the function and write what it returns; never return."""
    try:
        gc.disable()  # a finalizer may remove a file
        for number in _OWN_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGALRM,))
        signal.alarm(max(1, round(seconds)))  # ends it, should this process be gone
        room = _room()
        _let_shared_memory_go()
        _let_files_go(outlet)
        torch.set_num_threads(1)  # the threads of OpenMP are not there any more
        _limit(room)
        sys.addaudithook(_end_at_outward_events)
        os.write(outlet, json.dumps(function()).encode() + b"\n")
    finally:
        os._exit(0)


def _let_files_go(outlet: int) -> None:
    nowhere = os.open(_NOWHERE, os.O_RDWR)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number not in (outlet, nowhere):
            with contextlib.suppress(OSError):  # that of the listing itself is closed
                os.fstat(number)
                os.dup2(nowhere, number)


def _limit(room: int) -> None:
    """Let no file be opened or grow, and little memory be taken; where memory runs out, the kernel takes this first."""
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
        resource.setrlimit(limit, (0, 0))
    if room:
        resource.setrlimit(resource.RLIMIT_AS, (room, room))


def _room() -> int:
    """Return how many bytes of addresses the fork may have; 0 for any number."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")
    free = [_first_number("/proc/meminfo", "MemAvailable:") * 1024]
    most, used = (_first_number(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    free += [most - used] if most else []
    taken = _first_number("/proc/self/statm") * mmap.PAGESIZE
    return int(taken + max(min(free), 0) * _SHARE_OF_MEMORY) if free[0] and taken else 0


def _first_number(path: str, start: str = "") -> int:
    with contextlib.suppress(OSError, ValueError, IndexError), open(path) as lines:
        return next((int(line.removeprefix(start).split()[0]) for line in lines if line.startswith(start)), 0)
    return 0


def _let_shared_memory_go() -> None:
    """Put copies in the place of memory that other processes see, such as batches of a loader's workers.

    Raises:
        OSError: where it belongs to a device, or is too much.
    """
    with open("/proc/self/maps") as lines:
        rows = [line.split(maxsplit=5) for line in lines]
    for addresses, access, _, _, _, *names in rows:
        if not access.startswith("rw") or not access.endswith("s"):
            continue
        start, end = (int(number, 16) for number in addresses.split("-"))
        name = names[0] if names else ""
        if end - start > _MOST_SHARED or (name.startswith("/dev/") and not name.startswith(("/dev/shm/", "/dev/zero"))):
            raise OSError(f"shared memory of {name}")
        _make_private(start, end - start)


def _make_private(start: int, size: int) -> None:
    library: Any = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    kinds = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    library.mmap.argtypes = kinds
    held = ctypes.string_at(start, size)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
    if library.mmap(start, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) != start:
        raise OSError(ctypes.get_errno(), "shared memory stays shared")
    ctypes.memmove(start, held, size)


_MAP_FIXED = 0x10  # of Linux, which Python's mmap does not name


def _end_at_outward_events(event: str, _: tuple[Any, ...]) -> None:
    if event in _OUTWARD or event.startswith(_OUTWARD_ROOMS):
        os._exit(0)
