"""Disks that can be filled and emptied: a real one of 256 kB, and one whose writing is replaced."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

from gradwatch.reporting import record_files

PAGE = 4096  # bytes; a tmpfs gives out whole ones


class MountedDisk:
    """A file system in memory that is really full."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, left: int = 0) -> None:
        """Leave about so many bytes, which are rounded down to whole pages."""
        with (self.folder / "filling").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(PAGE))
            except OSError:
                file.truncate(max(file.tell() // PAGE - left // PAGE, 0) * PAGE)

    def free(self) -> None:
        (self.folder / "filling").unlink()


class InjectedDisk:
    """A folder in which the records and event files get as many bytes as are left, and then an error."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._left: float = float("inf")
        write_some, append = record_files.write_some, LocalFileSystem.append

        def record_write(file: Any, content: bytes) -> int:
            return write_some(file, self._taken(content))

        def event_append(files: Any, name: Any, content: bytes, binary: bool = False) -> None:
            part = self._taken(content) if self._left else b""
            append(files, name, part, binary)
            if len(part) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(record_files, "write_some", record_write)
        monkeypatch.setattr(LocalFileSystem, "append", event_append)

    def _taken(self, content: bytes) -> bytes:
        if not self._left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = content[: int(min(self._left, len(content)))]
        self._left -= len(part)
        return part

    def fill(self, left: int = 0) -> None:
        self._left = left

    def free(self) -> None:
        self._left = float("inf")


Disk = MountedDisk | InjectedDisk


@pytest.fixture(params=["mounted", "injected"])
def disk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    if request.param == "injected":
        yield InjectedDisk(tmp_path, monkeypatch)
        return
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "gradwatch-test", str(tmp_path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a disk may not be mounted here")
    yield MountedDisk(tmp_path)
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)
