"""Any dataset as two tensors: images and labels in memory, with class names and statistics.

`as_tensors` converts any map-style dataset to `ImageData`; `split` sets validation images aside, class by class.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kit.settings import whole_number


@dataclass(eq=False, repr=False)
class ImageData:
    """Images and labels in memory, with class names and the statistics to normalise by.

    images: (N, C, H, W) uint8 from 0 to 255, or float32.
    labels: (N,) int64, each from 0 to len(classes) - 1.
    classes: the name of each class; if empty, "0", "1", ... up to the largest label.
    source: where the images come from, for messages and titles.
    mean, std: one value per channel, of uint8 images scaled to 0..1 and of float images as they are; if empty, they
    are computed from these images. A test set carries the statistics of its TRAINING images, never its own.
    Raises TypeError for a wrong dtype, ValueError for wrong dimensions, lengths, labels or non-finite values.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...] = ()
    source: str = "tensors"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_images(self.images)
        _check_labels(self.labels, len(self.images))
        if not self.classes:
            if (largest := int(self.labels.max())) >= 1_000_000:  # an id: as many names would fill the memory
                raise ValueError(
                    f"labels: the largest is {largest:,}; number the classes from 0, or name them in classes="
                )
            self.classes = tuple(str(label) for label in range(int(self.labels.max()) + 1))
        self.classes = tuple(str(name) for name in self.classes)
        if (largest := int(self.labels.max())) >= len(self.classes):
            raise ValueError(
                f"labels: the largest is {largest}, expected 0 to {len(self.classes) - 1} for "
                f"{len(self.classes)} classes; number the labels from 0, or name every class in classes="
            )
        if not self.mean and not self.std:
            self.mean, self.std = _statistics(self.images)
        self.mean, self.std = tuple(map(float, self.mean)), tuple(map(float, self.std))
        _check_statistics(self.mean, self.std, self.images.shape[1])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Any) -> ImageData:
        """Return the subset at `indices` (int, slice, list or tensor of indices, or mask), with the same statistics."""
        if not isinstance(indices, slice):
            indices = torch.as_tensor(indices, device=self.labels.device)
            indices = indices.long() if indices.numel() == 0 else torch.atleast_1d(indices)
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def __repr__(self) -> str:
        size = "x".join(map(str, self.images.shape[1:]))
        dtype = str(self.images.dtype).removeprefix("torch.")
        classes = f"{len(self.classes)} classes"
        return f"ImageData({len(self):,} images {size} {dtype}, {classes}, source={self.source!r})"


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.dtype not in (torch.uint8, torch.float32):
        found = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"images: expected a uint8 or float32 tensor, found {found}; use images.float(), or as_tensors(dataset)"
        )
    if images.dim() != 4 or images.numel() == 0:
        raise ValueError(
            f"images: expected (N, C, H, W) with at least one image, found {tuple(images.shape)}; "
            "grey images (N, H, W) become (N, 1, H, W) by images.unsqueeze(1)"
        )
    if images.dtype == torch.float32:
        for start, chunk in _chunks(images):
            if not (finite := chunk.isfinite().flatten(1).all(1)).all():
                index = start + int(finite.logical_not().nonzero()[0])
                raise ValueError(f"images: image {index} holds NaN or infinite values; repair it or leave it out")


def _check_labels(labels: Tensor, length: int) -> None:
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        found = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels: expected an int64 tensor of class numbers, found {found}; use labels.long()")
    if labels.shape != (length,):
        raise ValueError(
            f"labels: expected one label for each of the {length} images, shape ({length},), found "
            f"{tuple(labels.shape)}; check that images and labels belong together"
        )
    if int(labels.min()) < 0:
        raise ValueError(f"labels: found {int(labels.min())}, expected 0 or more; number the classes from 0")


def _check_statistics(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
    if not len(mean) == len(std) == channels:
        raise ValueError(
            f"mean, std: expected {channels} values each, one per channel, found {len(mean)} and {len(std)}; "
            "leave both out to compute them"
        )
    if not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError(f"mean, std: expected finite values with std above 0, found {mean} and {std}")


def _chunks(images: Tensor, values: int = 1 << 19) -> Iterator[tuple[int, Tensor]]:
    """(first index, some images) pairs of about `values` values each: they fit the processor's cache."""
    step = max(1, values // max(1, images[0].numel()))
    for start in range(0, len(images), step):
        yield start, images[start : start + step]


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation per channel, of uint8 scaled to 0..1."""
    total, squares = _byte_sums(images) if images.dtype == torch.uint8 else _float_sums(images)
    count = images.numel() // images.shape[1]
    mean = total / count
    std = (squares / count - mean * mean).clamp(min=0).sqrt()
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    # A channel without contrast has nothing to scale by: 1 lets normalising give zeros instead of NaN.
    std = torch.where(std > 1e-7 * mean.abs(), std, torch.full_like(std, scale))
    return tuple((mean / scale).tolist()), tuple((std / scale).tolist())


def _byte_sums(images: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the values and of their squares per channel (C,), from a histogram: no float copy of all pixels."""
    channels = range(images.shape[1])
    counts = torch.zeros(len(channels), 256, dtype=torch.int64, device="cpu")
    for _, chunk in _chunks(images):
        for channel in channels:
            counts[channel] += torch.bincount(chunk[:, channel].flatten(), minlength=256).cpu()
    values = torch.arange(256, device="cpu")
    return (counts * values).sum(1).double(), (counts * values * values).sum(1).double()


def _float_sums(images: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the values and of their squares per channel (C,), in float64, by chunks."""
    total = squares = torch.zeros(images.shape[1], dtype=torch.float64, device="cpu")
    for _, chunk in _chunks(images):
        values = chunk.to("cpu", torch.float64).transpose(0, 1).flatten(1)  # (C, n*H*W)
        total = total + values.sum(1)
        squares = squares + (values * values).sum(1)
    return total, squares


def as_tensors(dataset: Any, *, statistics_of: ImageData | None = None, source: str = "tensors") -> ImageData:
    """Convert a map-style dataset of (image, label) pairs to ImageData; return an ImageData as it is.

    Images may be PIL images, arrays (H, W) or (H, W, C), or tensors (H, W) or (C, H, W), all of one size.
    uint8 stays uint8, floats become float32, PIL palettes become RGB, and transparent pixels are laid over white.
    Labels are whole numbers from 0. Class names come from `dataset.classes` if it has them. With
    `statistics_of=train` a test set carries the class names and the statistics of its training set.
    Raises ValueError or TypeError, naming the index of the first image or label that does not fit; ValueError for
    uint8 images with the statistics of floats that are not from 0 to 1.
    """
    if isinstance(dataset, ImageData):
        data = dataset
    else:
        images, labels = _torchvision_tensors(dataset) or _stack(dataset)
        classes = _class_names(dataset) or (statistics_of.classes if statistics_of else ())
        given = (statistics_of.mean, statistics_of.std) if statistics_of else ()
        data = ImageData(images, labels, classes, source, *given)
    if statistics_of is None:
        return data
    if data.classes != statistics_of.classes:
        raise ValueError(
            f"dataset: its classes are {data.classes}, those of statistics_of are {statistics_of.classes}; "
            "equal labels must mean equal classes, so give both sets the same list of classes"
        )
    refuse_other_scale("dataset", data.images, statistics_of)
    return replace(data, mean=statistics_of.mean, std=statistics_of.std)


def _class_names(dataset: Any) -> tuple[str, ...]:
    while not hasattr(dataset, "classes") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset  # a torch.utils.data.Subset keeps the names inside
    classes = getattr(dataset, "classes", ())
    return tuple(map(str, classes)) if isinstance(classes, (list, tuple)) else ()


def _torchvision_tensors(dataset: Any) -> tuple[Tensor, Tensor] | None:
    """torchvision's MNIST family without transforms holds its tensors already: no need to ask one by one."""
    if type(dataset).__module__ != "torchvision.datasets.mnist" or (dataset.transform or dataset.target_transform):
        return None
    images, labels = dataset.data, dataset.targets
    if images.dtype != torch.uint8 or images.dim() != 3 or labels.shape != images.shape[:1]:
        return None
    return images.unsqueeze(1), labels.long()


def _stack(dataset: Any) -> tuple[Tensor, Tensor]:
    """Ask a map-style dataset for every pair, into one preallocated tensor each."""
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"dataset: expected a map-style dataset of (image, label), with len() and [index], found "
            f"{type(dataset).__name__}; put a stream through a DataLoader, which the training takes as it is"
        )
    if len(dataset) == 0:
        raise ValueError("dataset: it is empty, expected at least one (image, label) pair; check its folder or filter")
    labels = torch.empty(len(dataset), dtype=torch.int64, device="cpu")
    images = None
    for index in range(len(dataset)):
        pair = dataset[index]
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"dataset[{index}]: expected a pair (image, label), found a {type(pair).__name__}")
        try:
            tensor = _image_tensor(pair[0])
            labels[index] = _label_number(pair[1])
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"dataset[{index}]: {error}") from None
        if images is None:
            images = torch.empty((len(dataset), *tensor.shape), dtype=tensor.dtype, device="cpu")
        if tensor.shape != images.shape[1:] or tensor.dtype != images.dtype:
            raise ValueError(
                f"dataset[{index}]: image (C, H, W) is {tuple(tensor.shape)} {tensor.dtype}, expected "
                f"{tuple(images.shape[1:])} {images.dtype} as in dataset[0]; bring all to one size and mode, "
                "as by transform=transforms.Compose([transforms.Grayscale(), transforms.Resize((28, 28))])"
            )
        images[index] = tensor
    assert images is not None  # len(dataset) > 0
    return images, labels


def _label_number(label: Any) -> int:
    try:
        number = operator.index(label)
    except TypeError:
        raise TypeError(
            f"label {label!r} is a {type(label).__name__}, expected a whole number; number the classes from 0"
        ) from None
    if number < 0:
        raise ValueError(f"label {number} is negative, expected 0 or more; number the classes from 0")
    return number


def _image_tensor(image: Any) -> Tensor:
    """One image of any kind as (C, H, W), uint8 or float32."""
    if hasattr(image, "getbands"):  # PIL, without importing it
        image = _pil_array(image)
    if isinstance(image, np.ndarray):
        if image.ndim == 3 and image.shape[2] > 4 >= image.shape[0]:
            raise ValueError(
                f"array of shape {image.shape} looks channels-first, expected (H, W) or (H, W, C); "
                "use torch.from_numpy(image) for (C, H, W)"
            )
        image = torch.from_numpy(np.array(image, image.dtype.newbyteorder("="), order="C"))
        image = image.permute(2, 0, 1) if image.dim() == 3 else image
    elif not isinstance(image, Tensor):
        raise TypeError(f"image is a {type(image).__name__}, expected a PIL image, an array or a tensor")
    elif image.dim() == 3 and image.shape[0] > 4 >= image.shape[2]:
        raise ValueError(
            f"tensor of shape {tuple(image.shape)} looks channels-last, expected (H, W) or (C, H, W); "
            "use image.permute(2, 0, 1)"
        )
    if image.dim() not in (2, 3) or image.numel() == 0:
        raise ValueError(f"image has shape {tuple(image.shape)}, expected (H, W) or three dimensions, none of them 0")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise TypeError(f"image is {image.dtype}, expected uint8 (0 to 255) or float (0 to 1); scale it to one of them")
    image = image if image.dtype == torch.uint8 else image.detach().to(torch.float32)
    return image if image.dim() == 3 else image.unsqueeze(0)


def _pil_array(image: Any) -> np.ndarray:
    """A PIL image of any mode as (H, W) or (H, W, 3) uint8, transparency over white; mode F stays float."""
    if image.mode.startswith("I"):
        raise ValueError(f"image has mode {image.mode!r} (16 or 32 bits), expected 8 bits; scale it to a float array")
    if image.mode not in ("L", "RGB", "F") or "transparency" in image.info:
        grey = image.mode in ("1", "L", "LA")
        if "A" in image.getbands() or "transparency" in image.info:
            from PIL import Image

            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("L" if grey else "RGB")
    return np.array(image)


def split(data: ImageData, validation: int, *, seed: int = 0) -> tuple[ImageData, ImageData]:
    """Split `data` into (train, validation): exactly `validation` images set aside, the same share of every class.

    `seed` decides which images are drawn. Both parts keep the order of `data` and carry the statistics of the train
    part alone. Raises ValueError unless `validation` is a whole number from 1 to len(data) - 1 and `seed` one of at
    least 0.
    """
    if isinstance(validation, bool) or not isinstance(validation, (int, np.integer)):
        raise ValueError(
            f"validation: expected a whole number of images, found {validation!r}; "
            "for a fraction use int(0.1 * len(data))"
        )
    if not 0 < validation < len(data):
        raise ValueError(
            f"validation: expected 1 to {len(data) - 1} of the {len(data)} images, found {validation}; "
            "both parts need an image"
        )
    labels = data.labels.cpu()
    counts = torch.bincount(labels, minlength=len(data.classes))
    # Largest remainders: round every share down, then one more for the classes that lost most by it.
    shares = counts * int(validation) // len(data)
    remainders = counts * int(validation) % len(data)
    shares[remainders.argsort(descending=True, stable=True)[: int(validation) - int(shares.sum())]] += 1
    generator = torch.Generator("cpu").manual_seed(whole_number("seed", seed, 0))
    held_out = torch.zeros(len(data), dtype=torch.bool, device="cpu")
    for label, share in enumerate(shares.tolist()):
        members = (labels == label).nonzero().squeeze(1)
        held_out[members[torch.randperm(len(members), generator=generator, device="cpu")[:share]]] = True
    held_out = held_out.to(data.labels.device)
    train = replace(data, images=data.images[~held_out], labels=data.labels[~held_out], mean=(), std=())
    return train, replace(
        train, images=data.images[held_out], labels=data.labels[held_out], mean=train.mean, std=train.std
    )


def statistics_on(device: torch.device, data: ImageData) -> tuple[Tensor, Tensor]:
    """Return the mean and std of `data` on `device`, (C, 1, 1) each."""
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (data.mean, data.std))
    return mean, std


def on_unit_scale(images: Tensor) -> bool:
    """Return whether `to_floats` gives values from 0 to 1, or hardly beyond, as after a bicubic interpolation."""
    return images.dtype == torch.uint8 or bool(images.min() >= -0.25 and images.max() <= 1.25)


def refuse_other_scale(name: str, images: Tensor, data: ImageData) -> None:
    """Raise ValueError if `images` are uint8 and `data` are floats on another scale, so that its statistics mislead."""
    if images.dtype == torch.uint8 and not on_unit_scale(data.images):
        low, high = data.images.min().item(), data.images.max().item()
        raise ValueError(
            f"{name}: images are uint8, but those that the statistics come from are floats from {low:.3g} to "
            f"{high:.3g}; bring the images to that scale first, with the transforms of the training images"
        )


def to_floats(images: Tensor) -> Tensor:
    """Return uint8 images as floats from 0 to 1, and floats as float32 of the same values."""
    return images.float().mul_(1 / 255) if images.dtype == torch.uint8 else images.float()


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (images - mean) / std, a new tensor: `images` may be a view, or belong to someone else."""
    return images.sub(mean).div_(std)
