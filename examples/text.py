"""The characters of a text, with the next character as target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradwatch.examples.batches import Batches
from gradwatch.examples.sequences import SequenceData

ENDS = {"train": 0.8, "val": 0.9, "test": 1.0}  # where each part ends, as a share of the text
_WAY_OUT = "give a .txt file, or a folder that holds one, as data_dir (--data-dir)"


class TextData(SequenceData):
    """Pieces of a text as indices into its alphabet, and the same pieces shifted by one character.

    The first 80 % of the text are for training, the next 10 % for validation, the last 10 % for the test.

    Args:
        data_dir: a text file in UTF-8, or a folder with one ``.txt``.
        length: characters of a piece.
        batch_size: pieces a batch.
        seed: of the order of the training pieces.

    Attributes:
        alphabet: the distinct characters of the text, sorted.

    Raises:
        ValueError: when ``data_dir`` is missing; from ``setup`` when there is more than one text, or it is not UTF-8,
            or too short.
        FileNotFoundError: from ``setup`` when there is no text.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "song.txt").write_text("la " * 100)
        ...     data = TextData(folder, length=5, batch_size=2)
        ...     data.setup()
        >>> pieces, following = next(iter(data.val_dataloader()))
        >>> data.alphabet, pieces.tolist(), following.tolist()
        (' al', [[2, 1, 0, 2, 1], [0, 2, 1, 0, 2]], [[1, 0, 2, 1, 0], [2, 1, 0, 2, 1]])
    """

    def __init__(
        self, data_dir: str | Path | None = None, length: int = 100, batch_size: int = 64, seed: int = 42
    ) -> None:
        super().__init__(length, batch_size, seed)
        if data_dir is None:
            raise ValueError(f"text needs data_dir; got None; {_WAY_OUT}")
        self.data_dir = Path(data_dir)
        self.alphabet = ""

    @property
    def in_features(self) -> int:  # type: ignore[override]
        """Size of the alphabet."""
        return len(self.alphabet)

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Size of the alphabet."""
        return len(self.alphabet)

    def setup(self, stage: str | None = None) -> None:
        """Read and split the text; later calls do nothing."""
        if self.parts:
            return
        path = find_text(self.data_dir)
        self.alphabet, places = encode(_read(path))
        ends = [0, *(round(share * len(places)) for share in ENDS.values())]
        pieces = {part: places[ends[i] : ends[i + 1]] for i, part in enumerate(ENDS)}
        if min(map(len, pieces.values())) <= self.length:
            raise ValueError(
                f"{path} holds {len(places)} characters, a tenth of which are for the test; expected more than "
                f"{10 * self.length}, for at least one piece of {self.length}; take a longer text or a smaller length"
            )
        self.parts = {part: cut(piece, self.length) for part, piece in pieces.items()}


def find_text(data_dir: Path) -> Path:
    """Return the file itself, or the only ``.txt`` in a folder.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when there are several.
    """
    if data_dir.is_file():
        return data_dir
    if not data_dir.is_dir():
        raise FileNotFoundError(f"{data_dir.absolute()} is neither a file nor a folder; {_WAY_OUT}")
    found = sorted(data_dir.glob("*.txt"))
    if not found:
        raise FileNotFoundError(f"{data_dir.absolute()} holds no .txt file; {_WAY_OUT}")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{data_dir.absolute()} holds {names}; expected one text: give the file itself as data_dir")
    return found[0]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); convert it, or {_WAY_OUT}") from error


def encode(text: str) -> tuple[str, Tensor]:
    """Return the alphabet of a text, and each character's index in it.

    Example:
        >>> encode("noon")
        ('no', tensor([0, 1, 1, 0]))
    """
    codes, places = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32), return_inverse=True)
    return "".join(map(chr, codes)), torch.from_numpy(places.astype(np.int64))


def cut(places: Tensor, length: int) -> Batches:
    """Return adjacent pieces of one length, and each shifted by one; the rest at the end is not used."""
    used = (len(places) - 1) // length * length
    return Batches(places[:used].view(-1, length), places[1 : used + 1].view(-1, length))
