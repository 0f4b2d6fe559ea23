"""The adding problem's sums, the text's pieces, and the errors of bad settings and files."""

from pathlib import Path

import pytest
import torch

from gradwatch.examples.adding import SIZES, AddingData
from gradwatch.examples.sequences import SequenceData
from gradwatch.examples.text import TextData


def loaded(data: SequenceData) -> SequenceData:
    data.setup()
    return data


def text_file(folder: Path, text: str, name: str = "song.txt") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("length", [2, 7, 100])
def test_the_sum_is_that_of_one_marked_number_in_each_half(length: int) -> None:
    for part, held in loaded(AddingData(length)).parts.items():
        numbers, marks = held.inputs.unbind(2)
        assert held.inputs.shape == (SIZES[part], length, 2)
        assert set(marks.unique().tolist()) <= {0.0, 1.0}
        for half in (marks[:, : length // 2], marks[:, length // 2 :]):
            assert half.sum(1).eq(1).all()
        torch.testing.assert_close((numbers * marks).sum(1), held.targets)


def test_predicting_the_mean_of_the_sums_has_the_error_that_the_docstring_gives() -> None:
    sums = loaded(AddingData()).parts["train"].targets
    assert float((sums - 1).square().mean()) == pytest.approx(1 / 6, abs=0.005)


def test_the_seed_decides_the_sequences_and_their_order() -> None:
    def first(seed: int) -> tuple[list[float], list[float]]:
        data = loaded(AddingData(length=4, seed=seed))
        return data.parts["test"].targets.tolist(), next(iter(data.train_dataloader()))[1].tolist()

    assert first(1) == first(1)
    assert all(one != other for one, other in zip(first(1), first(2), strict=True))


def test_drawing_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    next(iter(loaded(AddingData(length=4)).train_dataloader()))
    assert torch.equal(before, torch.get_rng_state())


def test_the_text_is_split_by_position_and_each_character_has_the_next_one_as_its_target(tmp_path: Path) -> None:
    text = "".join(chr(97 + i % 26) if i % 7 else "é" for i in range(1000))
    data = loaded(TextData(text_file(tmp_path, text), length=9))
    assert data.alphabet == "".join(sorted(set(text)))
    assert data.num_classes == data.in_features == len(data.alphabet)
    begins = {"train": 0, "val": 800, "test": 900}
    for part, pieces in {"train": 88, "val": 11, "test": 11}.items():
        held = data.parts[part]
        for places, begin in ((held.inputs, begins[part]), (held.targets, begins[part] + 1)):
            assert places.shape == (pieces, 9)
            assert "".join(data.alphabet[i] for i in places.flatten()) == text[begin : begin + 9 * pieces]


def test_a_folder_with_one_text_will_do(tmp_path: Path) -> None:
    text_file(tmp_path, "la " * 100)
    text_file(tmp_path, "not a text", name="README.md")
    assert loaded(TextData(tmp_path, length=5)).alphabet == " al"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AddingData(length=1), "length is 1; expected 2 time steps or more"),
        (lambda: AddingData(batch_size=0), "batch_size is 0; expected 1 or more"),
        (lambda: TextData(), r"needs data_dir; got None; give a \.txt file"),
    ],
)
def test_bad_options_fail_at_once(make: type[SequenceData], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_no_text_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone is neither a file nor a folder; give a \.txt file"):
        loaded(TextData(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match=r"holds no \.txt file; give"):
        loaded(TextData(tmp_path))
    short = text_file(tmp_path, "la " * 100)
    with pytest.raises(ValueError, match=r"holds 300 characters, .* more than 500, .* longer text or a smaller length"):
        loaded(TextData(tmp_path, length=50))
    text_file(tmp_path, "another", name="poem.txt")
    with pytest.raises(ValueError, match=r"holds poem\.txt, song\.txt; expected one text: give the file itself"):
        loaded(TextData(tmp_path))
    short.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"song\.txt is no text in UTF-8 .*; convert it"):
        loaded(TextData(short))


def test_tiny_shakespeare_itself(data_dir: Path) -> None:
    data = loaded(TextData(data_dir / "tinyshakespeare.txt", length=100))
    assert len(data.alphabet) == 65
    assert {part: len(held) for part, held in data.parts.items()} == {"train": 8923, "val": 1115, "test": 1115}
