"""The files of a record: lines are appended on this machine, and uploaded where the record is remote."""

from __future__ import annotations

import os
import re
import tempfile
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from io import FileIO
from itertools import accumulate
from pathlib import Path, PurePath
from typing import IO, Any, BinaryIO, NamedTuple

import fsspec

from gradwatch.reporting.unwritten import Gap, disk_error_in_words

_START = b'{"type": "'  # of every line of a record
_BLOCK = 1 << 16  # bytes
_MOST_WAITING = 1 << 20  # bytes
_FLUSH_EVERY = 1.0  # seconds; to flush every line cost 1.2 ms of a step's 10 ms where files are slow
_UPLOAD_EVERY = 30.0  # seconds, or more rarely
_UPLOAD_SHARE = 0.01  # of the time may go into uploads
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::[A-Za-z0-9+.:-]+)?://")  # one letter is a drive of Windows
_ONE_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")


class Line(NamedTuple):
    """One line of a record, with its line break, the ``type`` in it, and the optimizer step it belongs to."""

    content: bytes
    kind: str
    step: int


class LineFile:
    """Appends lines to a file; once it is open, an error of the disk is never raised.

    Lines wait in memory for up to a second. Those that the disk does not take are dropped and counted, and the file is
    cut back to the end of its last whole line. Later lines are tried again. Before the first that reaches the file,
    a line of type ``lost`` is written, and the latest header, which may be among the lost lines.

    Args:
        path: the file; an existing one is continued.
        name: the record's path or URL, for messages.

    Attributes:
        size: bytes of the file, with the lines that wait.

    Raises:
        OSError: when the file cannot be opened.
        ValueError: when the file exists and is no record.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._file: FileIO | None = open_at_last_line(path)
        self.size = self._file.tell()
        self._closed = False
        self._waiting: list[Line] = []
        self._waiting_size = 0
        self._flushed = float("-inf")
        self._header: Line | None = None
        self._failed = False
        self._gap = Gap()  # lost since the last line of type lost
        self._all_lost = Gap()
        self._error = ""
        self._error_at_close = ""

    @property
    def lost(self) -> int:
        """Number of Snapshots and Findings that could not be written."""
        return self._all_lost.lines

    @property
    def trouble(self) -> str:
        """The lost lines and the reason, in words; empty where nothing was lost."""
        lost = f"{self._all_lost} could not be written to {self._name} ({self._error})" if self.lost else ""
        late = f"the last lines of {self._name} may be missing ({self._error_at_close})" if self._error_at_close else ""
        return "; ".join(filter(None, (lost, late)))

    def add(self, text: str, kind: str, step: int, *, at_once: bool = False) -> None:
        """Add a line; write it now if asked to, or if the last writing is more than a second ago."""
        if self._closed:
            raise ValueError(f"{self._name} is closed; open it again to add lines")
        content = text.encode() + b"\n"
        self._waiting.append(Line(content, kind, step))
        self._waiting_size += len(content)
        self.size += len(content)
        due = kind != "header" and time.monotonic() - self._flushed > _FLUSH_EVERY  # a header waits for its snapshot
        if at_once or due or self._waiting_size > _MOST_WAITING:
            self.flush()

    def flush(self) -> None:
        """Write all lines that wait."""
        self._flushed = time.monotonic()
        if not (self._waiting or self._gap.lines):
            return
        # After a failure these go before the lines that wait.
        first = [Line(self._gap.as_json().encode() + b"\n", "lost", self._gap.last_step)] if self._gap.lines else []
        first += [self._header] if self._failed and self._header else []
        lines = [*first, *self._waiting]
        self._waiting, self._waiting_size = [], 0
        written = self._append(b"".join(line.content for line in lines))
        whole = sum(end <= written for end in accumulate(len(line.content) for line in lines))
        if whole < len(lines):
            whole = 0 if whole <= len(first) else whole  # a gap is not over while no line after it is in the file
            self._cut_back(written - sum(len(line.content) for line in lines[:whole]))
        self._settle(lines, whole)

    def close(self) -> None:
        """Write what waits and close the file; may be called twice."""
        if self._closed:
            return
        self.flush()
        self._closed = True
        try:
            if self._file:
                self._file.close()
        except OSError as error:  # a network's file system may report a full disk only now
            self._error_at_close = disk_error_in_words(error)

    def _append(self, content: bytes) -> int:
        """Write as much as the disk takes; return how many bytes it took."""
        written = 0
        try:
            self._file = self._file or open_at_last_line(self._path)
            while written < len(content):  # on a disk that is nearly full a part is written first
                written += write_some(self._file, content[written:] if written else content)
        except (OSError, ValueError) as error:  # ValueError: another file is in its place by now
            self._error = disk_error_in_words(error)
        return written

    def _cut_back(self, excess: int) -> None:
        """Cut off the half line at the end, and open the file again, which helps where the disk was mounted again."""
        with suppress(OSError):
            if self._file:
                self._file.truncate(self._file.tell() - excess)
        with suppress(OSError):
            if self._file:
                self._file.close()
        self._file = None
        with suppress(OSError, ValueError):
            self._file = open_at_last_line(self._path)

    def _settle(self, lines: Sequence[Line], whole: int) -> None:
        """Count the lines that are not in the file; those that must not be missing wait for the next time."""
        self._failed = whole < len(lines)
        for place, line in enumerate(lines):
            if line.kind == "header":
                self._header = line
            elif line.kind == "lost":
                self._gap = self._gap if place >= whole else Gap()
            elif place >= whole and line.kind in ("snapshot", "finding"):
                self._gap = self._gap.widened(line.kind, line.step)
                self._all_lost = self._all_lost.widened(line.kind, line.step)
            elif place >= whole:
                self._waiting.append(line)


class RemoteCopy:
    """A file on this machine that is uploaded to a URL now and then, as most remote file systems cannot append.

    An existing remote file is fetched, so that its lines are kept. Uploads are at least 30 seconds apart, and take at
    most about 1 % of the time. A failed one is tried again the next time. The local file is removed at the end, except
    where the last upload failed.

    Attributes:
        path: the local file.
        trouble: the latest upload's failure in words; empty where it worked.

    Raises:
        Exception: the file system's own error when the URL cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._files: Any
        self._files, self._place = fsspec.core.url_to_fs(url)
        handle, name = tempfile.mkstemp(prefix="gradwatch-", suffix=".jsonl")
        os.close(handle)
        self.path = Path(name)
        self.trouble = ""
        self._remove = weakref.finalize(self, _remove, self.path, os.getpid())
        self._next = time.monotonic() + _UPLOAD_EVERY
        with suppress(PermissionError):  # a bucket that exists may refuse to be created
            self._files.makedirs(self._place.rpartition("/")[0], exist_ok=True)
        # Not exists(), which says no where the network fails: the next upload would replace the record that is there.
        with suppress(FileNotFoundError):
            self._files.get_file(self._place, str(self.path))

    def upload_if_due(self) -> None:
        """Upload the file if the last upload is long enough ago."""
        if time.monotonic() >= self._next:
            self._upload()

    def close(self) -> None:
        """Upload the file a last time and remove it here; keep it where the upload failed."""
        if not self._remove.alive:
            return
        self._upload()
        if self.trouble:
            self._remove.detach()
        self._remove()

    def _upload(self) -> None:
        started = time.monotonic()
        try:
            self._files.put_file(str(self.path), self._place)
            self.trouble = ""
        except Exception as error:  # each file system raises its own kinds
            reason = disk_error_in_words(error)
            self.trouble = f"the latest lines could not be uploaded to {self._url} ({reason}); they are in {self.path}"
        now = time.monotonic()
        self._next = now + max(_UPLOAD_EVERY, (now - started) / _UPLOAD_SHARE)


def remote_url(path: str | Path) -> str:
    """Return the URL of a remote path; empty for a path on this machine.

    ``Path`` makes one slash of two, so a Path that begins with a protocol that fsspec knows is read as a URL.

    Raises:
        ValueError: for a protocol that fsspec does not know.
        ImportError: when the protocol needs a package that is not installed; it names the package.
    """
    url = _as_url(path)
    is_local = not url or isinstance(fsspec.core.url_to_fs(url)[0], fsspec.get_filesystem_class("file"))
    return "" if is_local else url


def local_path(path: str | Path) -> Path:
    """Return the path of a file on this machine, which may be given as a URL."""
    url = _as_url(path)
    return Path(fsspec.core.url_to_fs(url)[1]) if url else Path(path)


def names_in(folder: str | Path) -> list[str]:
    """Return the names of the files in a folder, here or remote; none where there is no such folder."""
    files, place = fsspec.core.url_to_fs(str(folder))
    return [PurePath(path).name for path in files.ls(place, detail=False)] if files.isdir(place) else []


def claim(path: str | Path) -> bool:
    """Return True if there was no file; on this machine it is made, so that no other run takes its name."""
    if remote_url(path):
        files, place = fsspec.core.url_to_fs(str(path))
        return not files.exists(place)
    local = local_path(path)
    local.parent.mkdir(parents=True, exist_ok=True)
    try:
        local.open("xb").close()
    except FileExistsError:
        return False
    return True


def open_to_read(path: str | Path) -> IO[bytes]:
    """Open a record, here or remote."""
    url = remote_url(path)
    file: IO[bytes] = fsspec.open(url, "rb").open() if url else local_path(path).open("rb")
    return file


def open_at_last_line(path: Path) -> FileIO:
    """Open a record for more lines: half a line at its end is cut off; a file that is no record is refused."""
    if path.exists() and path.stat().st_size:
        with path.open("r+b") as file:
            if not _START.startswith(file.read(len(_START))):
                raise ValueError(f"{path} exists and is no record of gradwatch; give another path, or move it away")
            file.truncate(_end_of_last_line(file))
    return path.open("ab", buffering=0)


def write_some(file: FileIO, content: bytes) -> int:
    """Write as many bytes as the disk takes, and return their number; raise an OSError where it takes none."""
    written = file.write(content)
    if not written:  # a caller that goes on until all is written would not end
        raise OSError("the file takes no more bytes")
    return written


def _end_of_last_line(file: BinaryIO) -> int:
    """Find the last line break by reading backwards; a map of the file would kill the process where the disk fails."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(end - _BLOCK, 0)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _as_url(path: str | Path) -> str:
    text = path.as_posix() if isinstance(path, PurePath) else str(path)
    collapsed = _ONE_SLASH.match(text) if isinstance(path, PurePath) else None
    if collapsed and collapsed[1] in fsspec.available_protocols():
        text = f"{collapsed[1]}://{text[collapsed.end() :]}"
    return text if _PROTOCOL.match(text) else ""


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # a forked process must not remove it
        with suppress(OSError):
            path.unlink()
