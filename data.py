"""Files and tensors: read IDX files, get MNIST, turn any data set into tensors, split it by class."""

from __future__ import annotations

import hashlib
import http.client
import io
import math
import operator
import os
import sys
import time
import urllib.request
import uuid
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

# ------------------------------------------------------------------------------------------------ tensors


@dataclass(eq=False, repr=False)
class ImageData:
    """Images and labels in memory, with class names and the statistics to normalise by.

    images: (N, C, H, W) uint8, or float32 for data that is float already.
    labels: (N,) int64, each from 0 to len(classes) - 1.
    classes: empty gives "0", "1", ... up to the largest label.
    mean, std: one value per channel of images scaled to 0..1; empty computes them from these images. A test
    set carries the statistics of its TRAINING images, never its own.
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
        """The subset at `indices` (int, slice, list or tensor of indices, or mask); statistics stay."""
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
    """Mean and population standard deviation per channel, of uint8 scaled to 0..1; float64, by chunks."""
    total = squares = torch.zeros(images.shape[1], dtype=torch.float64)
    for _, chunk in _chunks(images):
        values = chunk.to("cpu", torch.float64).transpose(0, 1).flatten(1)  # (C, n*H*W)
        total = total + values.sum(1)
        squares = squares + (values * values).sum(1)
    count = images.numel() // images.shape[1]
    mean = total / count
    std = (squares / count - mean * mean).clamp(min=0).sqrt()
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    # A channel without contrast has nothing to scale by: 1 lets normalising give zeros instead of NaN.
    std = torch.where(std > 1e-7 * mean.abs(), std, torch.full_like(std, scale))
    return tuple((mean / scale).tolist()), tuple((std / scale).tolist())


def as_tensors(dataset: Any, *, statistics_of: ImageData | None = None, source: str = "tensors") -> ImageData:
    """Any map-style data set of (image, label) as ImageData; an ImageData is returned as it is.

    Images may be PIL images, arrays (H, W) or (H, W, C), or tensors (H, W) or (C, H, W), all of one size.
    uint8 stays uint8 and floats become float32. PIL palettes become colour, transparency is laid over white.
    Labels are whole numbers. Class names come from `dataset.classes` where present. `statistics_of=train`
    makes a test set carry the class names and the statistics of its training set.
    Raises ValueError or TypeError that names the index of the first image or label that does not fit.
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
    """Ask a map-style data set for every pair, into one preallocated tensor each."""
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"dataset: expected a map-style data set of (image, label), with len() and [index], found "
            f"{type(dataset).__name__}; put a stream through a DataLoader, which the training takes as it is"
        )
    if len(dataset) == 0:
        raise ValueError("dataset: it is empty, expected at least one (image, label) pair; check its folder or filter")
    labels = torch.empty(len(dataset), dtype=torch.int64)
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
            images = torch.empty((len(dataset), *tensor.shape), dtype=tensor.dtype)
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
    if image.mode not in ("L", "RGB", "F"):
        grey = image.mode in ("1", "LA")
        if "A" in image.getbands() or "transparency" in image.info:
            from PIL import Image

            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("L" if grey else "RGB")
    return np.array(image)


def split(data: ImageData, validation: int, *, seed: int = 0) -> tuple[ImageData, ImageData]:
    """(train, validation): exactly `validation` images set aside, of every class its share, drawn by `seed`.

    Both parts keep the order of `data` and carry the statistics of the train part alone.
    Raises ValueError unless `validation` is a whole number from 1 to len(data) - 1.
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
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(data), dtype=torch.bool)
    for label, share in enumerate(shares.tolist()):
        members = (labels == label).nonzero().squeeze(1)
        held_out[members[torch.randperm(len(members), generator=generator)[:share]]] = True
    held_out = held_out.to(data.labels.device)
    train = replace(data, images=data.images[~held_out], labels=data.labels[~held_out], mean=(), std=())
    return train, replace(
        train, images=data.images[held_out], labels=data.labels[held_out], mean=train.mean, std=train.std
    )


# ---------------------------------------------------------------------------------------------- IDX files

# The third byte of an IDX file names the type of its values, which are big-endian.
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_HEADER = 20  # bytes of the longest header: the magic number and 4 dimensions
_IDX_PACKED_LIMIT = 4 << 30  # bytes that a .gz may unpack to, whatever its header says
_CHUNK = 1 << 20
_REMEDY = "fetch it again, or put back a sound copy"


def read_idx(path: str | Path) -> Tensor:
    """The tensor in an IDX file, plain or gzipped: 1 to 4 dimensions, any of the format's six types.

    Raises ValueError, naming the file and the remedy, for a file that is truncated, damaged, longer than its
    header says or no IDX file. A .gz is never unpacked beyond what its IDX header announces.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: expected an IDX file, found a folder or a device; name the file itself")
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = zlib.decompressobj(wbits=31) if packed else None
        data = bytearray()
        try:
            _fill(data, _IDX_HEADER, file, stream)
            _, _, size = _idx_layout(data)
            if not packed and (found := os.fstat(file.fileno()).st_size) != size:
                raise ValueError(f"found {found:,} bytes, expected {size:,} by its header")
            if packed and size > _IDX_PACKED_LIMIT:
                raise ValueError(f"its header announces {size:,} bytes, expected {_IDX_PACKED_LIMIT:,} at most")
            _fill(data, size + 1, file, stream)  # one byte more shows whether anything follows
            if stream:
                _check_end(data, size, file, stream)
            return _parse_idx(data)
        except (ValueError, zlib.error) as error:
            raise ValueError(f"{path} is not a sound IDX file: {error}; {_REMEDY}") from None


def _fill(data: bytearray, length: int, file: BinaryIO, stream: Any = None) -> None:
    """Append to `data` until it has `length` bytes or the file ends; `stream`, if any, unpacks it."""
    while (wanted := min(length - len(data), _CHUNK)) > 0:
        if stream is None:
            packed = chunk = file.read(wanted)
        else:
            packed = stream.unconsumed_tail or file.read(1 << 16)
            chunk = stream.decompress(packed, wanted)
        data += chunk
        if not chunk and (not packed or (stream and stream.eof)):
            return


def _check_end(data: bytearray, size: int, file: BinaryIO, stream: Any) -> None:
    """That a gzip stream held `size` bytes, passed its own checksum, and that nothing follows it."""
    if len(data) > size:
        raise ValueError(f"its gzip stream unpacks to more than the {size:,} bytes that the header announces")
    if not stream.eof:
        raise ValueError(f"its gzip stream ends after {len(data):,} of {size:,} bytes, before its checksum")
    if stream.unused_data or file.read(1):
        raise ValueError("other bytes follow the end of its gzip stream")


def _idx_layout(header: bytes | bytearray) -> tuple[str, tuple[int, ...], int]:
    """(numpy dtype, shape, size of the whole file in bytes) from the first bytes of an IDX file."""
    kind, dims = (header[2], header[3]) if len(header) >= 4 else (0, 0)
    if header[:2] != b"\0\0" or kind not in _IDX_TYPES or not 1 <= dims <= 4:
        raise ValueError(
            f"it starts with {bytes(header[:4]).hex(' ') or 'nothing'}, expected the magic number 00 00, "
            "a type (08, 09, 0b, 0c, 0d or 0e) and the number of dimensions (01 to 04)"
        )
    offset = 4 + 4 * dims
    if len(header) < offset:
        raise ValueError(f"it ends within its header: found {len(header)} bytes, expected {offset} and the values")
    shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(4, offset, 4))
    if 0 in shape:
        raise ValueError(f"its dimensions are {shape}, expected 1 or more each")
    dtype = _IDX_TYPES[kind]
    return dtype, shape, offset + math.prod(shape) * int(dtype[2])


def _parse_idx(data: bytearray) -> Tensor:
    """The tensor in the bytes of a whole IDX file; uint8 shares their memory."""
    dtype, shape, size = _idx_layout(data[:_IDX_HEADER])
    if len(data) != size:
        raise ValueError(f"found {len(data):,} bytes, expected {size:,} for the dimensions {shape}")
    values = np.frombuffer(data, dtype, offset=4 + 4 * len(shape))
    return torch.from_numpy(values.astype(dtype.replace(">", "="), copy=dtype != ">u1")).view(shape)


def write_atomically(path: str | Path, data: bytes | bytearray | memoryview) -> None:
    """Write `data` to `path` so that the file is the old or the new one, whole, whatever happens.

    It goes to a temporary file in the same folder (made if need be), is flushed to the disk and renamed.
    On any error the old file is untouched, the temporary one is removed, and the error goes on (OSError).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # Ctrl-C as well
        temporary.unlink(missing_ok=True)
        raise


# -------------------------------------------------------------------------------------------------- MNIST

# name: (bytes, MD5 of the extracted file, MD5 of the .gz on the mirrors)
_FILES = {
    "train-images-idx3-ubyte": (
        47_040_016,
        "6bbc9ace898e44ae57da46a324031adb",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    ),
    "train-labels-idx1-ubyte": (
        60_008,
        "a25bea736e30d166cdddb491f175f624",
        "d53e105ee54ea40749a09fcbcd1e9432",
    ),
    "t10k-images-idx3-ubyte": (
        7_840_016,
        "2646ac647ad5339dbf082846283269ea",
        "9fb629c4189551a2d022fa330f9573f3",
    ),
    "t10k-labels-idx1-ubyte": (
        10_008,
        "27ae3e4e09519cfbb04c329615203637",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
}
_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_SAMPLE = Path(__file__).with_name("sample")
_SOCKET_SECONDS = 10  # without a byte from the mirror
_DOWNLOAD_SECONDS = 120  # for one file from one mirror


def load_mnist(root: str | Path | None = None) -> tuple[ImageData, ImageData]:
    """(train, test) of MNIST: images (N, 1, 28, 28) uint8, labels (N,) int64, source "mnist".

    `root`, else MNIST_ROOT from the environment, else "data", holds the four files in MNIST/raw, extracted
    or .gz. Every file is verified by its MD5; a damaged one is replaced from its .gz, a missing one is
    downloaded. A root that cannot be written works too. Where nothing can be had, the kit's offline sample of
    4,000 and 1,000 digits comes instead, with a warning and source "sample".
    """
    raw = Path(root or os.environ.get("MNIST_ROOT") or "data").expanduser() / "MNIST" / "raw"
    notes: list[str] = []  # what went wrong, in words
    mirrors = list(_MIRRORS)  # one that fails is not asked again
    files = {name: _from_disk(raw / name, notes) for name in _FILES}
    for name in _FILES:
        if files[name] is None:
            files[name] = _from_mirrors(raw / name, mirrors, notes)
        if files[name] is None:
            break
    if None in files.values():
        return _load_sample(raw, notes)
    if notes:
        warnings.warn("MNIST was loaded, but:\n" + "\n".join(notes), stacklevel=2)
    return _train_and_test([_parse_idx(data) for data in files.values() if data is not None], "mnist")


def _train_and_test(tensors: list[Tensor], source: str) -> tuple[ImageData, ImageData]:
    classes = tuple(str(digit) for digit in range(10))
    train = ImageData(tensors[0].unsqueeze(1), tensors[1].long(), classes, source)
    return train, ImageData(tensors[2].unsqueeze(1), tensors[3].long(), classes, source, train.mean, train.std)


def _from_disk(path: Path, notes: list[str]) -> bytearray | None:
    """The bytes of one extracted file, from the file itself or the .gz beside it; None without either."""
    data, damage = _verified(path, path.name)
    if data is not None:
        return data
    if damage:
        notes.append(f"{path} {damage}.")
    packed = path.with_name(f"{path.name}.gz")
    data, packed_damage = _verified(packed, path.name)
    if packed_damage:
        notes.append(f"{packed} {packed_damage}.")
    if data is None:
        return None
    failure = _store(path, data)
    if damage:
        notes.append(f"-> {failure or 'It was replaced'}, from {packed.name}.")
    return data


def _verified(file: Path | io.BytesIO, name: str) -> tuple[bytearray | None, str]:
    """(the bytes of MNIST's file `name`, "") from the file or its .gz, else (None, what is wrong with it).

    A file that is not there has nothing wrong. No more is read than MNIST's file has, and its MD5 decides.
    """
    size, md5, _ = _FILES[name]
    packed = isinstance(file, io.BytesIO) or file.suffix == ".gz"
    stream = zlib.decompressobj(wbits=31) if packed else None
    data = bytearray()
    try:
        with file if isinstance(file, io.BytesIO) else open(file, "rb") as opened:
            if not packed and (found := os.fstat(opened.fileno()).st_size) != size:
                return None, f"is damaged: {found:,} bytes, expected {size:,}"
            _fill(data, size + 1, opened, stream)
            if stream:
                _check_end(data, size, opened, stream)
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"cannot be read: {error}"
    except (ValueError, zlib.error) as error:
        return None, f"is damaged: {error}"
    found_md5 = _md5(data)
    return (data, "") if found_md5 == md5 else (None, f"is damaged: MD5 {found_md5}, expected {md5}")


def _md5(data: bytes | bytearray) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _store(path: Path, data: bytearray) -> str:
    """Write a file; where that fails (read-only root, full disk) say so: the bytes are in memory anyway."""
    try:
        write_atomically(path, data)
    except OSError as error:
        return f"It could not be written ({error}) and is used from memory"
    return ""


def _from_mirrors(path: Path, mirrors: list[str], notes: list[str]) -> bytearray | None:
    """Download one .gz and keep it and the file in it; mirrors that fail are taken off the list."""
    size, _, md5 = _FILES[path.name]
    while mirrors:
        url = f"{mirrors[0]}{path.name}.gz"
        try:
            packed = _download(url, size + 1024, md5)  # a .gz is hardly ever longer than what it holds
        except (OSError, ValueError, http.client.HTTPException) as error:
            notes.append(f"{url} failed: {str(error) or type(error).__name__}.")
            mirrors.pop(0)
            continue
        data, damage = _verified(io.BytesIO(packed), path.name)
        if data is None:
            notes.append(f"{url} {damage}.")
            mirrors.pop(0)
            continue
        packed_path = path.with_name(f"{path.name}.gz")
        replaced = path.exists() or packed_path.exists()
        failure = _store(packed_path, packed) or _store(path, data)
        if replaced or failure:
            notes.append(f"-> {path.name}: {failure or 'It was replaced'}, from {mirrors[0]}.")
        return data
    return None


def somebody_watches() -> bool:
    """Whether a progress bar is seen: in a terminal or a notebook, unless TQDM_DISABLE is set.

    Bars are text: a widget lives as long as its kernel, and a saved notebook would show an error in its place.
    """
    in_notebook = type(sys.stdout).__module__.startswith("ipykernel")
    return not os.environ.get("TQDM_DISABLE") and (in_notebook or sys.stdout.isatty())


def _download(url: str, limit: int, md5: str) -> bytearray:
    """The bytes at `url`: no more than `limit`, in bounded time, verified."""
    from tqdm import tqdm

    packed = bytearray()
    end = time.monotonic() + _DOWNLOAD_SECONDS
    with _open_url(url) as response:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        name = url.rsplit("/", 1)[-1]
        look: dict[str, Any] = {"leave": False, "disable": not somebody_watches(), "file": sys.stdout}
        with tqdm(total=total, desc=name, unit="B", unit_scale=True, **look) as bar:
            while chunk := response.read1(1 << 16):  # read1 returns what has come, so that the clock is looked at
                packed += chunk
                bar.update(len(chunk))
                if len(packed) > limit:
                    raise ValueError(f"it sends more than {limit:,} bytes")
                if time.monotonic() > end:
                    raise TimeoutError(f"{len(packed):,} bytes in {_DOWNLOAD_SECONDS} s, too slow")
    if (found := _md5(packed)) != md5:
        raise ValueError(f"{len(packed):,} bytes with MD5 {found}, expected {md5}")
    return packed


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not newurl.lower().startswith("https://"):
            raise ValueError(f"it redirects to {newurl}, expected https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open_url(url: str) -> Any:
    """The only line that touches the network."""
    return urllib.request.build_opener(_HttpsOnly).open(url, timeout=_SOCKET_SECONDS)


def _load_sample(raw: Path, notes: list[str]) -> tuple[ImageData, ImageData]:
    reasons = "\n".join(f"  {note}" for note in notes)
    line, names = "=" * 80, "\n  ".join(_FILES)
    message = f"""
{line}
THIS IS NOT MNIST, but the kit's offline sample: 4,000 training and 1,000 test digits.
The digits are real, but few: accuracies on them are not comparable with those on MNIST.

Why: MNIST is not whole in {raw}, and the mirrors did not give it:
{reasons}

Remedy: connect to the network and load again; or put the four files, or their .gz,
  {names}
into {raw}; or name a folder whose MNIST/raw
holds them, by load_mnist(root) or by MNIST_ROOT in the environment.
{line}"""
    try:
        tensors = [read_idx(_SAMPLE / f"{name}.gz") for name in _FILES]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the offline sample is not there either: {error}\n{message}") from None
    warnings.warn(message, stacklevel=3)
    return _train_and_test(tensors, "sample")
