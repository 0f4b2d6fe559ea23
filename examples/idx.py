"""Reader of Fashion-MNIST's official files: gzipped IDX, a header of big-endian integers followed by bytes."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

SOURCE = "https://github.com/zalandoresearch/fashion-mnist"
_AGAIN = f"; download it again from {SOURCE}"
_FOLDERS = (".", "fashion-mnist", "FashionMNIST/raw")  # the last is where torchvision puts them
_IMAGES, _LABELS = 2051, 2049  # magic numbers: bytes in three dimensions, and in one


def read_images_and_labels(data_dir: Path, part: str) -> tuple[Bytes, Bytes]:
    """Return the images and labels of ``train`` (60,000) or ``t10k`` (10,000).

    Args:
        data_dir: folder of the four ``.gz`` files, or its parent.
        part: ``"train"`` or ``"t10k"``.

    Raises:
        FileNotFoundError: when a file is missing.
        ValueError: when a file is damaged, or the numbers of images and labels differ.
    """
    images_file = _find(data_dir, f"{part}-images-idx3-ubyte.gz")
    labels_file = _find(data_dir, f"{part}-labels-idx1-ubyte.gz")
    images, labels = read_idx(images_file, _IMAGES), read_idx(labels_file, _LABELS)
    if len(images) != len(labels):
        raise ValueError(
            f"{images_file} holds {len(images)} images, {labels_file.name} {len(labels)} labels; "
            f"expected as many of both{_AGAIN}"
        )
    return images, labels


def _find(data_dir: Path, name: str) -> Path:
    for folder in _FOLDERS:
        if (data_dir / folder / name).is_file():
            return data_dir / folder / name
    raise FileNotFoundError(
        f"{name} is not in {data_dir.absolute()}, nor in its subfolders {' and '.join(_FOLDERS[1:])}; "
        f"download the four .gz files of {SOURCE} and give their folder as data_dir (--data-dir)"
    )


def read_idx(path: Path, magic: int) -> Bytes:
    """Return the array in a gzipped IDX file of bytes.

    Args:
        path: the file.
        magic: expected first number; its last byte is the number of dimensions.

    Raises:
        ValueError: when the gzip is incomplete, the first number is another, or the size differs from the header.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "labels.gz")
        ...     _ = path.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9])))
        ...     read_idx(path, magic=2049)
        array([7, 9], dtype=uint8)
    """
    content = _unzip(path)
    header = 4 * (1 + magic % 256)
    found = int.from_bytes(content[:4], "big")
    if found != magic or len(content) < header:
        expected = f"expected {magic} in a header of {header} bytes"
        raise ValueError(f"{path} starts with the number {found}; {expected}{_AGAIN}")
    shape = np.frombuffer(content[4:header], ">u4").tolist()
    if len(content) - header != math.prod(shape):
        raise ValueError(
            f"{path} holds {len(content) - header} bytes of data; "
            f"expected {math.prod(shape)}, as its header says {' x '.join(map(str, shape))}{_AGAIN}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _unzip(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is no complete gzip file ({error}){_AGAIN}") from error
