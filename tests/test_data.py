"""kit/data.py: every data set becomes the same kind of tensors, split and normalised as documented."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from kit import data
from kit.data import ImageData, as_tensors, split

# --------------------------------------------------------------------------------------------- ImageData


def image_data(count: int = 12, classes: int = 3, channels: int = 1, seed: int = 0) -> ImageData:
    images = np.random.default_rng(seed).integers(0, 256, (count, channels, 6, 5), np.uint8)
    return ImageData(torch.from_numpy(images), torch.from_numpy(np.arange(count) % classes))


def reference(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel in float64, which holds the sums of so many bytes exactly."""
    values = images.numpy().astype(np.float64).transpose(1, 0, 2, 3).reshape(images.shape[1], -1)
    mean = values.sum(1) / values.shape[1]
    std = np.sqrt((values * values).sum(1) / values.shape[1] - mean * mean)
    return tuple(mean / 255), tuple(std / 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_of_bytes_equal_a_float64_reference_to_the_bit(channels):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3000, channels, 17, 15), dtype=torch.uint8, generator=generator)  # several chunks
    images[:, -1] //= 2
    channels_last = images.contiguous(memory_format=torch.channels_last)
    backing = torch.randint(0, 256, (4000, channels, 20, 20), dtype=torch.uint8, generator=generator)
    strided = backing[::2, :, 1:18, 2:17].transpose(2, 3)
    assert not strided.is_contiguous()
    for given in (images, channels_last, strided, images[:1], images[:1].expand(7, -1, -1, -1)):
        made = ImageData(given, torch.zeros(len(given), dtype=torch.int64))
        assert (made.mean, made.std) == reference(given)


def test_statistics_of_mnist_equal_a_float64_reference_to_the_bit(mnist):
    images = mnist[0].images[:10_000]
    made = ImageData(images, mnist[0].labels[:10_000])
    assert (made.mean, made.std) == reference(images)


def test_statistics_of_floats_are_per_channel_and_survive_a_large_mean():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4000, 3, 16, 15, generator=generator) + torch.tensor([0, 0, 1e3]).view(3, 1, 1)
    images[:, 1] /= 2
    made = ImageData(images, torch.zeros(4000, dtype=torch.int64))
    exact = images.double()
    assert made.mean == pytest.approx(exact.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert made.std == pytest.approx(exact.std((0, 2, 3), correction=0).tolist(), rel=1e-6)


def test_a_default_device_moves_nothing():
    with torch.device("meta"):  # a stand-in for "cuda": whatever is made there has no values
        whole = image_data(60)
        parts = [whole, *split(whole, 20), whole[[1, 2]], as_tensors([(GREY, 0), (GREY, 1)])]
    assert {tensor.device.type for part in parts for tensor in (part.images, part.labels)} == {"cpu"}
    assert whole.mean == image_data(60).mean


def test_statistics_take_small_chunks_that_cover_every_image():
    images = torch.arange(5000).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)
    pieces = list(data._chunks(images))
    assert torch.equal(torch.cat([chunk for _, chunk in pieces]), images)
    assert all(chunk.numel() <= 1 << 19 and chunk[0, 0, 0, 0] == start for start, chunk in pieces)


def test_a_channel_without_contrast_has_a_usable_std():
    for value in (torch.full((9, 1, 3, 3), 200, dtype=torch.uint8), torch.full((9, 1, 3, 3), 0.1)):
        assert ImageData(value, torch.zeros(9, dtype=torch.int64)).std == (1.0,)


def test_image_data_keeps_everything_but_the_rest_in_a_subset():
    whole = image_data()
    whole.source = "mine"
    for indices in (
        3,
        slice(2, 8, 2),
        [4, 1],
        torch.tensor([5, 0]),
        whole.labels == 1,
        np.array([1, 2]),
        range(4),
    ):
        part = whole[indices]
        expected = whole.images[[3] if indices == 3 else indices] if isinstance(indices, int) else None
        expected = whole.images[indices] if expected is None else expected
        assert torch.equal(part.images, expected) and len(part) == len(expected)
        assert (part.classes, part.source, part.mean, part.std) == (
            whole.classes,
            "mine",
            whole.mean,
            whole.std,
        )
    assert whole.classes == ("0", "1", "2")
    assert "12 images 1x6x5 uint8, 3 classes" in repr(whole)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"images": torch.zeros(2, 1, 3, 3, dtype=torch.float64)}, TypeError, "images.*float64"),
        ({"images": np.zeros((2, 1, 3, 3), np.uint8)}, TypeError, "images.*ndarray"),
        ({"images": torch.zeros(2, 3, 3)}, ValueError, r"images.*\(2, 3, 3\)"),
        ({"images": torch.zeros(0, 1, 3, 3)}, ValueError, "at least one image"),
        ({"images": torch.tensor([0.0, torch.nan]).view(2, 1, 1, 1)}, ValueError, "image 1 .*NaN"),
        ({"images": torch.tensor([torch.inf, 0.0]).view(2, 1, 1, 1)}, ValueError, "image 0 .*infinite"),
        ({"labels": torch.tensor([0.0, 1.0])}, TypeError, "labels.*float32"),
        ({"labels": torch.tensor([0, 1, 1])}, ValueError, r"labels.*2 images.*\(3,\)"),
        ({"labels": torch.tensor([0, 10**9])}, ValueError, "labels: the largest is 1,000,000,000; number the classes"),
        ({"labels": torch.tensor([0, -1])}, ValueError, "labels.*-1"),
        ({"labels": torch.tensor([0, 2]), "classes": ("a", "b")}, ValueError, "labels.*2.*0 to 1"),
        ({"mean": (0.1, 0.2), "std": (1.0, 1.0)}, ValueError, "mean, std: expected 1 values"),
        ({"mean": (0.1,)}, ValueError, "mean, std"),
        ({"mean": (0.1,), "std": (0.0,)}, ValueError, "std above 0"),
    ],
)
def test_image_data_refuses_what_does_not_fit(change, error, words):
    good = {"images": torch.zeros(2, 1, 3, 3), "labels": torch.tensor([0, 1])}
    with pytest.raises(error, match=words):
        ImageData(**{**good, **change})


# ------------------------------------------------------------------------------------------- as_tensors

COLOUR = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
GREY = COLOUR[..., 0]
CHANNELS_FIRST = torch.from_numpy(COLOUR).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GREY), torch.from_numpy(GREY)[None]),
        (Image.fromarray(COLOUR), CHANNELS_FIRST),
        (Image.fromarray(GREY.astype(np.float32)), torch.from_numpy(GREY)[None].float()),
        (GREY, torch.from_numpy(GREY)[None]),
        (COLOUR, CHANNELS_FIRST),
        (COLOUR[:, ::-1], CHANNELS_FIRST.flip(2)),
        (GREY / 255.0, torch.from_numpy(GREY)[None].double().div(255).float()),
        ((GREY / 255.0).astype(">f4"), torch.from_numpy(GREY)[None].float() / 255),
        (torch.from_numpy(GREY), torch.from_numpy(GREY)[None]),
        (CHANNELS_FIRST, CHANNELS_FIRST),
        (CHANNELS_FIRST.half(), CHANNELS_FIRST.float()),
        (torch.nn.Parameter(CHANNELS_FIRST.float()), CHANNELS_FIRST.float()),
    ],
)
def test_as_tensors_takes_every_kind_of_image(image, expected):
    made = as_tensors([(image, 1), (image, 0)], source="mine")
    assert made.images.dtype == expected.dtype and not made.images.requires_grad
    assert torch.equal(made.images, torch.stack([expected, expected]))
    assert made.labels.tolist() == [1, 0] and made.source == "mine" and made.classes == ("0", "1")


def pixels(image: Image.Image) -> list:
    """The channels of the first pixel."""
    return as_tensors([(image, 0)]).images[0, :, 0, 0].tolist()


def test_as_tensors_takes_palettes_and_lays_transparency_over_white():
    palette = Image.fromarray(COLOUR).quantize(8)
    assert pixels(palette) == list(palette.convert("RGB").getpixel((0, 0)))
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert pixels(palette) == [255, 255, 255]
    assert pixels(Image.new("RGBA", (4, 4), (10, 20, 30, 255))) == [10, 20, 30]
    assert pixels(Image.new("RGBA", (4, 4), (0, 0, 0, 0))) == [255, 255, 255]
    assert pixels(Image.new("LA", (4, 4), (40, 255))) == [40]
    assert pixels(Image.new("LA", (4, 4), (0, 0))) == [255]
    for mode, colour in (("L", 0), ("RGB", (0, 0, 0))):
        picture = Image.new(mode, (4, 4), colour)
        assert set(pixels(picture)) == {0}
        picture.info["transparency"] = colour  # as PNG files have it
        assert set(pixels(picture)) == {255}
    assert pixels(Image.new("1", (4, 4), 1)) == [255]
    assert pixels(Image.new("CMYK", (4, 4), (0, 0, 0, 0))) == [255, 255, 255]
    with pytest.raises(ValueError, match=r"dataset\[0\].*mode 'I;16'"):
        pixels(Image.new("I;16", (4, 4), 300))


@pytest.mark.parametrize("label", [2, np.int64(2), np.uint8(2), torch.tensor(2), torch.tensor(2, dtype=torch.uint8)])
def test_as_tensors_takes_every_kind_of_whole_number(label):
    assert as_tensors([(GREY, label)]).labels.tolist() == [2]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (-1, "-1"),
        (1.0, r"1\.0"),
        ("cat", "'cat'"),
        (None, "None"),
        (torch.tensor(1.0), "tensor"),
        ([0, 1], "list"),
    ],
)
def test_as_tensors_refuses_other_labels_by_name(label, words):
    with pytest.raises((TypeError, ValueError), match=rf"dataset\[1\]: label .*{words}.*number the classes from 0"):
        as_tensors([(GREY, 0), (GREY, label)])


@pytest.mark.parametrize(
    ("dataset", "error", "words"),
    [
        ([(GREY, 0), (GREY, 0), (GREY[:4], 0)], ValueError, r"\[2\].*\(1, 4, 5\).*\(1, 6, 5\).*Resize"),
        ([(GREY, 0), (COLOUR, 0)], ValueError, r"\[1\].*\(3, 6, 5\).*\(1, 6, 5\).*Grayscale"),
        ([(GREY, 0), (GREY / 1.0, 0)], ValueError, r"\[1\].*float32.*uint8"),
        ([], ValueError, "empty"),
        ([GREY], TypeError, r"\[0\].*pair.*ndarray"),
        ([(GREY, 0, 1)], TypeError, r"\[0\].*pair"),
        ([("cat.png", 0)], TypeError, r"\[0\].*str"),
        ([(GREY.astype(np.int32), 0)], TypeError, r"\[0\].*int32.*uint8"),
        ([(GREY[None, None], 0)], ValueError, r"\[0\].*\(1, 1, 6, 5\)"),
        ([(COLOUR.transpose(2, 0, 1), 0)], ValueError, "channels-first"),
        ([(torch.from_numpy(COLOUR), 0)], ValueError, "channels-last"),
        ([(GREY[:0], 0)], ValueError, r"\[0\].*\(0, 5\)"),
        (iter([(GREY, 0)]), TypeError, r"map-style.*DataLoader"),
        ([(np.full((3, 3), np.nan), 0)], ValueError, "NaN"),
    ],
    ids=itertools.count(),
)
def test_as_tensors_refuses_what_does_not_fit(dataset, error, words):
    with pytest.raises(error, match=words):
        as_tensors(dataset)


def test_as_tensors_leaves_the_errors_of_the_data_set_alone():
    class Broken(list):
        def __getitem__(self, index):
            raise ValueError("its own")

    with pytest.raises(ValueError, match=r"^its own$"):
        as_tensors(Broken([1]))


def test_as_tensors_takes_torchvisions_image_folder_with_its_class_names(tmp_path):
    from torchvision.datasets import ImageFolder

    for index, name in enumerate(["cat", "dog", "dog"]):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(COLOUR + np.uint8(index)).save(tmp_path / name / f"{index}.png")
    made = as_tensors(ImageFolder(tmp_path))
    assert made.classes == ("cat", "dog") and made.labels.tolist() == [0, 1, 1]
    assert torch.equal(made.images[0], CHANNELS_FIRST)
    assert as_tensors(Subset(ImageFolder(tmp_path), [2])).classes == ("cat", "dog")


def test_as_tensors_gives_torchvisions_mnist_the_same_by_the_short_way_and_the_long(tmp_path, mnist):
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    few = mnist[0][:20]
    for stem in ("train", "t10k"):
        header = bytes([0, 0, 8, 3]) + b"".join(side.to_bytes(4, "big") for side in (20, 28, 28))
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(header + few.images.numpy().tobytes())
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 20]) + bytes(few.labels.tolist()))
    dataset = MNIST(tmp_path)
    short, long = as_tensors(dataset), as_tensors(Subset(dataset, range(20)))
    for made in (short, long):
        assert torch.equal(made.images, few.images) and torch.equal(made.labels, few.labels)
        assert made.classes == tuple(MNIST.classes)
    dataset.transform = ToTensor()
    scaled = as_tensors(dataset)
    assert torch.equal(scaled.images, short.images.float() / 255)
    assert scaled.mean == pytest.approx(short.mean) and scaled.std == pytest.approx(short.std)


def test_as_tensors_takes_a_tensor_data_set_and_returns_image_data_as_it_is():
    images = torch.rand(4, 3, 6, 5)
    made = as_tensors(TensorDataset(images, torch.tensor([0, 2, 1, 0])))
    assert torch.equal(made.images, images) and made.labels.tolist() == [0, 2, 1, 0]
    assert as_tensors(made) is made


def test_a_test_set_carries_the_statistics_and_classes_of_its_training_set():
    train = as_tensors([(GREY, 0), (GREY, 1), (GREY, 2)])
    bright = np.full_like(GREY, 250)
    for dataset in (
        [(bright, 1)],
        ImageData(torch.from_numpy(bright)[None, None], torch.tensor([1]), train.classes),
    ):
        test = as_tensors(dataset, statistics_of=train)
        assert (test.mean, test.std, test.classes) == (train.mean, train.std, train.classes)
    other = ImageData(torch.from_numpy(bright)[None, None], torch.tensor([0]), ("cat",))
    with pytest.raises(ValueError, match="equal labels must mean equal classes"):
        as_tensors(other, statistics_of=train)


# ------------------------------------------------------------------------------------------------- split


def test_split_is_stratified_complete_and_exact():
    whole = image_data(count=1000, classes=7)
    whole = whole[whole.labels != 3]  # a class without images is no trouble
    whole = whole[torch.cat([torch.arange(100), torch.arange(len(whole) - 1, 199, -1)])]
    for validation in (1, 5, 6, 100, 333, len(whole) - 1):
        train, held_out = split(whole, validation)
        assert (len(train), len(held_out)) == (len(whole) - validation, validation)
        shares = held_out.labels.bincount(minlength=7) - whole.labels.bincount(minlength=7) * validation / len(whole)
        assert shares.abs().max() < 1
        both = [image.numpy().tobytes() for part in (train, held_out) for image in part.images]
        assert sorted(both) == sorted(image.numpy().tobytes() for image in whole.images)
        assert train.classes == held_out.classes == whole.classes


def test_split_keeps_labels_with_their_images():
    images = torch.arange(60, dtype=torch.uint8).view(-1, 1, 1, 1)
    whole = ImageData(images, torch.arange(60) % 3)
    for part in split(whole, 17, seed=5):
        assert torch.equal(part.images.flatten().long() % 3, part.labels)
        assert torch.equal(part.images.flatten().sort().values, part.images.flatten())


def test_split_is_the_same_for_a_seed_and_draws_from_no_global_generator():
    whole = image_data(count=300)
    state = torch.get_rng_state()
    first, again, other = (split(whole, 60, seed=seed)[1] for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(torch.get_rng_state(), state)


def test_split_carries_the_statistics_of_its_train_part_alone():
    whole = image_data(count=50)
    train, held_out = split(whole, 20)
    assert train.mean == held_out.mean == data._statistics(train.images)[0]
    assert train.std == held_out.std == data._statistics(train.images)[1]
    assert train.mean != whole.mean


@pytest.mark.parametrize("validation", [0, -1, 12, 13, 0.25, 3.0, True, "3", None])
def test_split_refuses_other_numbers(validation):
    with pytest.raises(ValueError, match="validation: expected"):
        split(image_data(), validation)
