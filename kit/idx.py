"""IDX files, the format of MNIST and its relatives, and the kit's own copy of MNIST.

`load_mnist` needs no network: the four files are packed in `kit/mnist/`. `load_idx` reads any other dataset in the
same format, such as Fashion-MNIST or KMNIST.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from kit.data import ImageData

# The third byte of an IDX file names the type of its values, which are big-endian.
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_HEADER = 20  # bytes of the longest header: the magic number and 4 dimensions
_LIMIT = 4 << 30  # bytes that a .gz may unpack to, whatever its header says
_CHUNK = 1 << 16  # bytes read at once, so that a file that lies about its size costs no memory

MNIST = Path(__file__).with_name("mnist")
# name: MD5 of the unpacked file
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def load_mnist() -> tuple[ImageData, ImageData]:
    """Load MNIST as (train, test): 60,000 and 10,000 uint8 images (N, 1, 28, 28), int64 labels (N,), source "mnist".

    The files are part of the kit and are checked by their MD5. Raises FileNotFoundError or ValueError, naming the
    file and the remedy, if one is missing or damaged.
    """
    tensors = []
    for name, md5 in MD5.items():
        path = MNIST / f"{name}.gz"
        remedy = f'restore it: run "git checkout -- kit/mnist" in {MNIST.parent.parent}, or clone the kit again'
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; {remedy}")
        try:
            content = _read(path)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}; {remedy}") from None
        if (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
            raise ValueError(f"{path} is damaged: its content has the MD5 {found}, expected {md5}; {remedy}")
        tensors.append(_parse(content))
    return _train_and_test(tensors, tuple("0123456789"), "mnist")


def load_idx(folder: str | Path) -> tuple[ImageData, ImageData]:
    """Load four IDX files named as MNIST's, such as Fashion-MNIST's or KMNIST's, as (train, test).

    The files, plain or .gz, are looked for in `folder`, `folder/raw` and `folder/MNIST/raw`; of two, the plain one
    is read. Images have shape (N, 1, H, W), labels (N,); classes are named by their numbers, the source by the
    folder. The test set carries the statistics of the training images. Raises FileNotFoundError if a file is
    missing, ValueError if one is damaged or if the four do not belong together.
    """
    folder = Path(folder).expanduser()
    paths = [_find(folder, name) for name in MD5]
    tensors = [read_idx(path) for path in paths]
    for path, tensor, dimensions in zip(paths, tensors, (3, 1, 3, 1), strict=True):
        _check_kind(path, tensor, dimensions)
    images, labels = tensors[::2], tensors[1::2]
    for at, (some_images, some_labels) in enumerate(zip(images, labels, strict=True)):
        if len(some_images) != len(some_labels):
            raise ValueError(
                f"{paths[2 * at]} holds {len(some_images):,} images, but {paths[2 * at + 1]} holds "
                f"{len(some_labels):,} labels; expected one label for each image"
            )
    train_size, test_size = (f"{part.shape[1]} x {part.shape[2]}" for part in images)
    if train_size != test_size:
        raise ValueError(f"{folder}: training images are {train_size}, test images {test_size}; expected one size")
    train_range, test_range = (f"{int(part.min())} to {int(part.max())}" for part in labels)
    if train_range != test_range:
        raise ValueError(
            f"{folder}: training labels are {train_range}, test labels {test_range}; expected the same classes in both"
        )
    return _train_and_test(tensors, tuple(map(str, range(int(labels[0].max()) + 1))), folder.resolve().name)


def _find(folder: Path, name: str) -> Path:
    for place in (folder, folder / "raw", folder / "MNIST" / "raw"):
        for path in (place / name, place / f"{name}.gz"):
            if path.exists():
                return path
    raise FileNotFoundError(
        f"{name} and {name}.gz are missing in {folder}, its raw and its MNIST/raw; name the folder that holds them"
    )


def _check_kind(path: Path, tensor: Tensor, dimensions: int) -> None:
    """Images are uint8 with three dimensions; labels are whole numbers from 0 with one."""
    kind = "images" if dimensions == 3 else "labels"
    if tensor.ndim != dimensions:
        raise ValueError(
            f"{path} holds {tensor.ndim} dimensions, expected {dimensions} for {kind}; check that no file has the "
            "name of another"
        )
    if tensor.is_floating_point() or (kind == "images" and tensor.dtype != torch.uint8):
        expected = "uint8" if kind == "images" else "whole numbers"
        raise ValueError(f"{path} holds {tensor.dtype} {kind}, expected {expected}; convert the file")
    if kind == "labels" and int(tensor.min()) < 0:
        raise ValueError(f"{path} holds the label {int(tensor.min())}, expected 0 or more; number the classes from 0")


def _train_and_test(tensors: list[Tensor], classes: tuple[str, ...], source: str) -> tuple[ImageData, ImageData]:
    train = ImageData(tensors[0].unsqueeze(1), tensors[1].long(), classes, source)
    return train, ImageData(tensors[2].unsqueeze(1), tensors[3].long(), classes, source, train.mean, train.std)


def read_idx(path: str | Path) -> Tensor:
    """Read the tensor in an IDX file, plain or .gz: 1 to 4 dimensions, any of the format's six types.

    A .gz is never unpacked beyond the size that its IDX header announces. Raises FileNotFoundError, or ValueError,
    naming the file and the remedy, if the file is truncated, damaged, longer than its header says or no IDX file.
    """
    path = Path(path).expanduser()
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: expected an IDX file, found a folder or a device; name the file itself")
    try:
        return _parse(_read(path))
    except ValueError as error:
        raise ValueError(
            f"{path} is not a valid IDX file: {error}; download it again, or restore a good copy"
        ) from None


def _read(path: Path) -> bytearray:
    """Read a whole IDX file, unpacked: as many bytes as its header announces, and no more."""
    content = bytearray()
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file = gzip.GzipFile(fileobj=raw) if packed else raw
        try:
            content += file.read(_HEADER)
            _, shape, size = _layout(content)
            if packed and size > _LIMIT:
                raise ValueError(f"its header announces {size:,} bytes, expected {_LIMIT:,} at most")
            # One byte more shows whether anything follows, and makes gzip compare its checksum.
            while len(content) <= size and (chunk := file.read(min(_CHUNK, size + 1 - len(content)))):
                content += chunk
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"its gzip stream is damaged or cut short ({error})") from None
        if len(content) != size:
            found = "more" if len(content) > size else f"{len(content):,} bytes"
            raise ValueError(f"found {found}, expected {size:,} bytes for the dimensions {shape} in its header")
        if packed and _last_four(raw) != size % 2**32:  # gzip itself skips zeros behind a stream
            raise ValueError("bytes follow the end of its gzip stream, expected none")
    return content


def _last_four(raw: BinaryIO) -> int:
    """The number that closes a gzip file: the length of what is packed."""
    raw.seek(-4, os.SEEK_END)
    return int.from_bytes(raw.read(4), "little")


def _layout(header: bytes | bytearray) -> tuple[str, tuple[int, ...], int]:
    """(NumPy dtype, shape, size of the whole file in bytes) from the first bytes of an IDX file."""
    kind, dims = (header[2], header[3]) if len(header) >= 4 else (0, 0)
    if header[:2] != b"\0\0" or kind not in _TYPES or not 1 <= dims <= 4:
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
    dtype = _TYPES[kind]
    return dtype, shape, offset + math.prod(shape) * int(dtype[2])


def _parse(content: bytearray) -> Tensor:
    """The tensor in the bytes of a whole IDX file; uint8 shares their memory."""
    dtype, shape, _ = _layout(content[:_HEADER])
    values = np.frombuffer(content, dtype, offset=4 + 4 * len(shape))
    return torch.from_numpy(values.astype(dtype.replace(">", "="), copy=dtype != ">u1")).view(shape)
