from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from cl_diffusion.data import ImageFormat
from cl_diffusion.data.labelled import ForeignImages, StoredImages
from cl_diffusion.data.sources import SOURCES, source_of


def load(dataset: Any, root: Path | str = "data", **image_format: Any) -> list[Any]:
    return source_of(dataset).load(str(root), False, ImageFormat(**image_format))


def test_digits_are_the_sixteen_grey_levels_of_scikit_learn() -> None:
    (digits,) = load("digits")
    images = digits.images(range(len(digits)))
    assert images.shape == (1797, *SOURCES["digits"].shape)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images.unique(), torch.arange(17) / 8 - 1, atol=0.51 / 127.5, rtol=0)
    assert digits.labels.unique().tolist() == list(range(10))


def test_mnist_is_read_in_its_own_format(mnist_root: Path) -> None:
    training, test = load("mnist", mnist_root)
    assert (len(training), len(test)) == (30, 20)
    assert training.shape == test.shape == SOURCES["mnist"].shape
    expected = torch.tensor([0, 7, 29]).float().mul(8 / 127.5).sub(1)
    torch.testing.assert_close(training.images([0, 7, 29])[:, 0, 5, 5], expected)
    assert training.labels[[0, 7, 29]].tolist() == [0, 7, 9]


def test_stored_images_are_formatted_once_and_stay_in_range(mnist_root: Path) -> None:
    training, _ = load("mnist", mnist_root, image_size=32, resize="pad", channels=3)
    images = training.images([29, 1])
    assert images.shape == (2, 3, 32, 32)
    assert images[:, :, :2].eq(-1).all()
    assert images[0, 0, 2:-2, 2:-2].eq(29 * 8 / 127.5 - 1).all()


def test_fashion_mnist_has_a_folder_of_its_own(mnist_root: Path) -> None:
    (mnist_root / "MNIST").rename(mnist_root / "FashionMNIST")
    assert len(load("fashion_mnist", mnist_root)[0]) == 30
    with pytest.raises(ValueError, match="root="):
        load("mnist", mnist_root)


def test_cifar10_is_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    pixels = np.arange(2 * 3 * 1024).reshape(2, 3072).astype(np.uint8)
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [3, 8]}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(CIFAR10, "_load_meta", lambda self: None)
    monkeypatch.setattr(CIFAR10, "train_list", [["train", ""]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test", ""]])
    training, _ = load("cifar10", tmp_path)
    expected = torch.from_numpy(pixels).reshape(2, 3, 32, 32).float() / 127.5 - 1
    torch.testing.assert_close(training.images([0, 1]), expected)
    assert training.shape == SOURCES["cifar10"].shape
    assert training.labels.tolist() == [3, 8]


@pytest.mark.parametrize(
    ("name", "folder"),
    [("mnist", "MNIST/raw"), ("fashion_mnist", "FashionMNIST/raw"), ("cifar10", "cifar-10-batches-py")],
)
def test_missing_data_says_where_it_was_expected(tmp_path: Path, name: str, folder: str) -> None:
    with pytest.raises(ValueError, match=rf"root='{tmp_path}'.*{tmp_path}/{folder}.*Point root at.*download: true"):
        load(name, tmp_path)


def test_an_image_folder_is_one_class_a_folder(tmp_path: Path, image_folder: Any) -> None:
    image_folder(tmp_path, ["cat", "dog", "eel"])
    (images,) = load("image_folder", tmp_path, image_size=4)
    assert images.shape == (3, 4, 4)
    assert images.num_classes == 3
    assert images.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    colours = images.images([0, 5, 10])[:, :, 0, 0]
    torch.testing.assert_close(colours, torch.tensor([[1, -1, -1], [1, -0.6, -1], [1, -0.2, -1]]))


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_an_image_folder_may_bring_its_own_split(tmp_path: Path, image_folder: Any, held_out: str) -> None:
    image_folder(tmp_path / "train", ["cat", "dog"], count=4)
    image_folder(tmp_path / held_out, ["cat", "dog"], count=2)
    assert [len(split) for split in load("image_folder", tmp_path, image_size=4)] == [8, 4]


def test_an_image_folder_whose_splits_disagree_is_refused(tmp_path: Path, image_folder: Any) -> None:
    image_folder(tmp_path / "train", ["cat", "dog"])
    image_folder(tmp_path / "test", ["dog"])
    with pytest.raises(ValueError, match=r"the classes \['cat'\] are not in both .*train and .*test"):
        load("image_folder", tmp_path, image_size=4)


def test_a_missing_image_folder_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    with pytest.raises(ValueError, match=rf"root='{missing}': expected one folder of images a class.*Point root there"):
        load("image_folder", missing, image_size=4)


class Pairs:
    def __init__(self, items: list[tuple[Any, int]], **attributes: Any) -> None:
        self.items = items
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.items[index]


def test_a_foreign_data_set_is_read_item_by_item() -> None:
    items = [(Image.new("L", (3, 3), 255), 4), (torch.zeros(1, 3, 3), 0), (np.full((3, 3), 51, np.uint8), 2)]
    (images,) = load(Pairs(items))
    assert images.labels.tolist() == [4, 0, 2]
    assert images.num_classes == 5
    torch.testing.assert_close(images.images([2, 0, 1])[:, 0, 1, 1], torch.tensor([-0.6, 1.0, -1.0]))


def test_stored_and_foreign_images_agree_up_to_rounding() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 9, 12), dtype=np.uint8))
    image_format = ImageFormat(6, channels=1)
    stored = StoredImages(pixels, torch.arange(5), 5, image_format).images(range(5))
    foreign = ForeignImages(Pairs([(image, 0) for image in pixels]), image_format).images(range(5))
    torch.testing.assert_close(stored, foreign, atol=0.501 / 127.5, rtol=0)


def test_labels_come_from_the_targets_unless_these_are_transformed() -> None:
    items = [(torch.zeros(1, 2, 2), 1)] * 3
    assert load(Pairs(items, targets=[0, 1, 2]))[0].labels.tolist() == [0, 1, 2]
    transformed = Pairs(items, targets=[0, 1, 2], target_transform=lambda label: 1)
    assert load(transformed)[0].labels.tolist() == [1, 1, 1]
    assert load(Pairs(items, classes=["a", "b", "c", "d"]))[0].num_classes == 4


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], r"dataset=Pairs is empty"),
        ([(torch.zeros(1, 2, 2), -1)], r"dataset=Pairs has labels.*expected 1 class ids"),
        ([(torch.full((1, 2, 2), -0.5), 0)], r"item 0 of Pairs: image has .*\[-0.5, -0.5\]"),
        ([(torch.zeros(1, 2, 2), 0), (torch.zeros(1, 3, 3), 0)], r"image_size=None, channels=None: item 1 has shape"),
    ],
)
def test_a_foreign_data_set_that_cannot_be_served_is_refused(items: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(Pairs(items))[0].images(range(len(items)))


class Endless(IterableDataset):
    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Any:
        yield torch.zeros(1, 2, 2), 0


def test_what_is_no_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dataset='mnits': expected one of \['cifar10', 'digits'"):
        source_of("mnits")
    with pytest.raises(ValueError, match=r"dataset=Endless: expected a map-style data set"):
        source_of(Endless())
