"""Records at remote places, such as ``s3://bucket/gradwatch.jsonl``, through fsspec."""

from __future__ import annotations

import os
import re
import tempfile
import time
import weakref
from contextlib import suppress
from pathlib import Path, PurePath
from typing import IO, Any

import fsspec  # type: ignore[import-untyped,unused-ignore]

from gradwatch.reporting.losses import in_words

_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::[A-Za-z0-9+.:-]+)?://")  # one letter is a drive of Windows
_ONE_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")
_SPACING = 30.0  # seconds between two uploads, at least
_UPLOAD_SHARE = 0.01  # of the time may go into uploads


def remote_url(path: str | Path) -> str:
    """Return the URL of a remote place; empty for a place on this machine.

    ``Path`` makes one slash of two; a Path that begins with a protocol that fsspec knows is read as the URL it was.

    Raises:
        ValueError: for a protocol that fsspec does not know.
        ImportError: when the protocol needs a package that is not installed; it names the package.

    Example:
        >>> remote_url("memory://run/gradwatch.jsonl"), remote_url(Path("memory://run") / "gradwatch.jsonl")
        ('memory://run/gradwatch.jsonl', 'memory://run/gradwatch.jsonl')
        >>> remote_url("logs/gradwatch.jsonl"), remote_url("file:///logs/gradwatch.jsonl")
        ('', '')
    """
    url = _as_url(path)
    is_local = not url or isinstance(fsspec.core.url_to_fs(url)[0], fsspec.get_filesystem_class("file"))
    return "" if is_local else url


def local_path(path: str | Path) -> Path:
    """Return the path of a place on this machine.

    Example:
        >>> local_path("logs/gradwatch.jsonl").as_posix(), local_path("file:///logs/gradwatch.jsonl").as_posix()
        ('logs/gradwatch.jsonl', '/logs/gradwatch.jsonl')
    """
    url = _as_url(path)
    return Path(fsspec.core.url_to_fs(url)[1]) if url else Path(path)


def open_to_read(path: str | Path) -> IO[bytes]:
    """Open a record at any place.

    Raises:
        OSError: when it is not there or cannot be opened.
    """
    url = remote_url(path)
    file: IO[bytes] = fsspec.open(url, "rb").open() if url else local_path(path).open("rb")
    return file


def _as_url(path: str | Path) -> str:
    text = path.as_posix() if isinstance(path, PurePath) else str(path)
    collapsed = _ONE_SLASH.match(text) if isinstance(path, PurePath) else None
    if collapsed and collapsed[1] in fsspec.available_protocols():
        text = f"{collapsed[1]}://{text[collapsed.end() :]}"
    return text if _PROTOCOL.match(text) else ""


class RemoteCopy:
    """A file on this machine that is uploaded to a remote place now and then, as most of these cannot append.

    An existing file at the remote place is fetched, so that its lines are kept. Uploads are 30 seconds apart at least,
    and take at most about 1 % of the time. One that fails is tried again the next time. The local file is removed at
    the end, except where the last upload failed.

    Args:
        url: the remote place.

    Attributes:
        path: the local file.
        trouble: the latest upload's failure in words; empty where it worked.

    Raises:
        Exception: what the file system raises when the place cannot be reached.

    Example:
        >>> copy = RemoteCopy("memory://example/notes.txt")
        >>> _ = copy.path.write_text("hello")
        >>> copy.close()
        >>> fsspec.filesystem("memory").cat("/example/notes.txt"), copy.path.exists(), copy.trouble
        (b'hello', False, '')
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
        self._next = time.monotonic() + _SPACING
        self._fetch()

    def _fetch(self) -> None:
        folder = self._place.rpartition("/")[0]
        with suppress(PermissionError):  # many a bucket may be written to and not be made
            self._files.makedirs(folder, exist_ok=True)
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
            self.trouble = (
                f"the latest lines could not be uploaded to {self._url} ({in_words(error)}); they are in {self.path}"
            )
        now = time.monotonic()
        self._next = now + max(_SPACING, (now - started) / _UPLOAD_SHARE)


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # a forked process must not remove it
        with suppress(OSError):
            path.unlink()
