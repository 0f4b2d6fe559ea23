"""The data sets' sizes and splits, the fast loader, and the errors of damaged files."""

import gzip
import os
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DistributedSampler

from gradwatch.examples.batches import ImageBatches
from gradwatch.examples.data import ImageData
from gradwatch.examples.idx import read_idx, read_images_and_labels

FIRST = "train-images-idx3-ubyte.gz"
REAL = os.environ.get("GRADWATCH_DATA_DIR")


def loaded(**options: object) -> ImageData:
    data = ImageData(**options)
    data.setup()
    return data


def test_digits_are_split_with_equal_shares_of_each_class() -> None:
    data = loaded()
    assert {part: len(held) for part, held in data.parts.items()} == {"train": 1257, "val": 180, "test": 360}
    for held in data.parts.values():
        shares = held.labels.bincount() / len(held)
        assert shares.sub(0.1).abs().max() < 0.005
        assert (float(held.images.min()), float(held.images.max())) == (0.0, 1.0)
        assert held.images.shape[1:] == data.image_shape == (1, 8, 8)


def test_no_image_is_in_two_parts() -> None:
    parts = loaded().parts
    images = torch.cat([part.images.flatten(1) for part in parts.values()])
    assert len(images.unique(dim=0)) == len(images) == 1797


def test_the_seed_decides_split_and_order() -> None:
    def first_labels(seed: int) -> tuple[list[int], list[int]]:
        data = loaded(seed=seed)
        return data.parts["test"].labels.tolist(), next(iter(data.train_dataloader()))[1].tolist()

    assert first_labels(1) == first_labels(1)
    assert all(one != other for one, other in zip(first_labels(1), first_labels(2), strict=True))


def test_loading_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    list(loaded().train_dataloader())
    assert torch.equal(before, torch.get_rng_state())


def test_an_epoch_serves_each_training_image_once_in_a_new_order() -> None:
    data = ImageData(batch_size=4)
    data.parts = {"train": ImageBatches(torch.zeros(10, 1, 8, 8), torch.arange(10))}
    loader = data.train_dataloader()
    epochs = [[labels.tolist() for _, labels in loader] for _ in range(2)]
    assert [len(labels) for labels in epochs[0]] == [4, 4, 2]
    assert [sorted(chain(*epoch)) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]


def test_it_serves_a_distributed_sampler_as_lightning_puts_it_in() -> None:
    batches = ImageBatches(torch.zeros(10, 1, 8, 8), torch.arange(10))
    shares = [list(DistributedSampler(batches, num_replicas=2, rank=rank, shuffle=False)) for rank in range(2)]
    assert sorted(batches.__getitems__(shares[0])[1].tolist() + shares[1]) == list(range(10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "mnist"}, "dataset is 'mnist'; expected one of 'digits', 'fashion-mnist'"),
        ({"dataset": "fashion-mnist"}, "needs data_dir, .* got None"),
        ({"batch_size": 0}, "batch_size is 0; expected 1 or more"),
    ],
)
def test_bad_options_fail_at_once(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageData(**options)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = np.array([2048 + array.ndim, *array.shape], ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.mark.parametrize("folder", [".", "fashion-mnist", "FashionMNIST/raw"])
def test_idx_files_are_found_and_read(tmp_path: Path, folder: str) -> None:
    here = tmp_path / folder
    here.mkdir(parents=True, exist_ok=True)
    images, labels = np.arange(2 * 3 * 4).reshape(2, 3, 4), np.array([7, 9])
    write_idx(here / FIRST, images)
    write_idx(here / "train-labels-idx1-ubyte.gz", labels)
    read = read_images_and_labels(tmp_path, "train")
    assert np.array_equal(read[0], images)
    assert np.array_equal(read[1], labels)


def test_a_missing_file_is_named_with_folder_and_source(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{FIRST} is not in {tmp_path}, .*github.com/zalandoresearch"):
        loaded(dataset="fashion-mnist", data_dir=tmp_path)


def test_labels_that_do_not_go_with_the_images_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", np.zeros((3, 2, 2)))
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.zeros(2))
    with pytest.raises(ValueError, match=r"holds 3 images, .* 2 labels"):
        read_images_and_labels(tmp_path, "t10k")


def test_each_kind_of_damaged_file_has_its_message(tmp_path: Path) -> None:
    path = tmp_path / "damaged.gz"
    write_idx(path, np.zeros((4, 2, 2)))
    whole = path.read_bytes()
    plain = gzip.decompress(whole)
    damages = {
        "no complete gzip file": whole[:-12],
        "no complete gzip file .*gzipped": plain,
        "starts with the number 2049; expected 2051": gzip.compress(b"\0\0\x08\x01" + plain[4:]),
        "expected 2051 in a header of 16 bytes": gzip.compress(plain[:9]),
        "holds 15 bytes of data; expected 16, as its header says 4 x 2 x 2": gzip.compress(plain[:-1]),
    }
    for message, content in damages.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{message}.*download it again"):
            read_idx(path, 2051)


@pytest.mark.skipif(REAL is None, reason="set GRADWATCH_DATA_DIR to the folder of Fashion-MNIST's files")
def test_fashion_mnist_itself() -> None:
    data = loaded(dataset="fashion-mnist", data_dir=REAL)
    assert {part: len(held) for part, held in data.parts.items()} == {"train": 54000, "val": 6000, "test": 10000}
    for held in data.parts.values():
        assert held.images.shape[1:] == data.image_shape == (1, 28, 28)
        assert held.labels.bincount().tolist() == [len(held) // 10] * 10
        assert (float(held.images.min()), float(held.images.max())) == (0.0, 1.0)
    assert data.in_features == 784
