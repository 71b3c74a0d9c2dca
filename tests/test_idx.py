"""kit/idx.py: an IDX file is whole or refused, and MNIST comes with the kit. No network."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from kit import idx
from kit.idx import load_idx, load_mnist, read_idx
from kit.mnist.pack import compress, pack

KIT = Path(__file__).resolve().parent.parent
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
TYPES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(values: np.ndarray) -> bytes:
    """Written here anew, so that a wrong reader and a wrong writer cannot agree."""
    kind = TYPES[values.dtype.str[1:]]
    header = bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


# ------------------------------------------------------------------------------------------- reading IDX


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(7,), (3, 5), (4, 3, 2), (2, 3, 2, 3)], ids=str)
def test_read_idx_reads_every_type_and_shape(tmp_path, kind, shape, packed):
    values = (np.random.default_rng(0).standard_normal(shape) * 90).astype(kind)
    content = idx_bytes(values)
    path = tmp_path / "values"
    path.write_bytes(gzip.compress(content) if packed else content)
    tensor = read_idx(path)
    assert tensor.shape == shape
    assert tensor.numpy().dtype == np.dtype(kind)
    assert (tensor.numpy() == values).all()
    tensor += 1  # the memory is the tensor's own


def test_read_idx_reads_more_than_one_chunk(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, 3 * idx._CHUNK + 5, np.uint8)
    for name, content in {"plain": idx_bytes(values), "packed": gzip.compress(idx_bytes(values), 1)}.items():
        (tmp_path / name).write_bytes(content)
        assert (read_idx(tmp_path / name).numpy() == values).all()


def test_read_idx_reads_a_gz_whose_checksum_lies_across_two_reads(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, 1 << 16, np.uint8)
    for end in range((1 << 16) - 50, 1 << 16):  # packed, it is some 36 bytes longer
        path = tmp_path / f"{end}.gz"
        path.write_bytes(gzip.compress(idx_bytes(values[:end]), 0))
        assert len(read_idx(path)) == end


def test_read_idx_message_names_the_file_what_was_found_and_the_remedy(tmp_path):
    content = idx_bytes(np.zeros((2, 3), np.uint8))
    (tmp_path / "some-file").write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"some-file.*found 17 bytes.*expected 18.*download it again"):
        read_idx(tmp_path / "some-file")
    with pytest.raises(ValueError, match="folder"):
        read_idx(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "missing")


class Fuzz:
    """Writes damaged files and asserts that each is refused without memory beyond what honesty needs."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0

    def refused(self, content: bytes, unpacked: int | None = None, or_equal: np.ndarray | None = None) -> None:
        """`unpacked`: honest bytes in a .gz. `or_equal`: these values are no lie (a flipped time stamp)."""
        self.count += 1
        path = self.folder / f"damaged-file-{self.count}"  # anew: some disks are slow to write over files
        path.write_bytes(content)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            tensor = read_idx(path)
        except ValueError as error:
            assert str(path) in str(error) and "download it again" in str(error)
        else:
            assert or_equal is not None, f"accepted silently: {content[:24].hex(' ')}"
            assert tensor.numpy().dtype == or_equal.dtype and np.array_equal(tensor.numpy(), or_equal)
        peak = tracemalloc.get_traced_memory()[1] - before
        assert peak < 3 * max(len(content), unpacked or 0) + (1 << 19), f"{peak:,} bytes for {content[:24]!r}"


@pytest.fixture
def fuzz(tmp_path):
    tracemalloc.start()
    yield Fuzz(tmp_path)
    tracemalloc.stop()


def fuzz_bases() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = {"u1": (5, 4, 3), "i1": (9,), "i2": (3, 5), "i4": (2, 3, 2), "f4": (2, 2, 2, 2), "f8": (3, 2)}
    return [(rng.standard_normal(shape) * 50).astype(kind) for kind, shape in shapes.items()]


def test_fuzz_truncation_at_every_byte_and_trailing_bytes(fuzz):
    rng = random.Random(4)
    for values in fuzz_bases():
        content = idx_bytes(values)
        packed = gzip.compress(content, mtime=0)
        for end in range(len(content)):
            fuzz.refused(content[:end])
            fuzz.refused(gzip.compress(content[:end], mtime=0))
        for end in range(len(packed)):
            fuzz.refused(packed[:end])
        for extra in (b"\0", b"\n", b"\0" * 1000, content, packed, rng.randbytes(70_000)):
            fuzz.refused(content + extra)
            fuzz.refused(packed + extra)
            fuzz.refused(gzip.compress(content + extra, mtime=0), unpacked=len(content + extra))
    assert fuzz.count >= 1000


def test_fuzz_magic_counts_and_dimensions(fuzz):
    rng = random.Random(5)
    for values in fuzz_bases():
        content = idx_bytes(values)
        wrong = [(position, value) for position in (0, 1) for value in (1, 31, 80, 255)]
        wrong += [(2, value) for value in range(0, 256, 5) if value not in TYPES.values()]
        wrong += [(3, value) for value in range(0, 256, 5) if value != values.ndim]
        for position, value in wrong:
            damaged = bytearray(content)
            damaged[position] = value
            fuzz.refused(bytes(damaged))
        for axis in range(values.ndim):
            right = values.shape[axis]
            counts = [0, right - 1, right + 1, right << 8, 1 << 24, 1 << 31, (1 << 32) - 1]
            for count in counts + [rng.randrange(right + 1, 1 << 32) for _ in range(8)]:
                damaged = bytearray(content)
                damaged[4 + 4 * axis : 8 + 4 * axis] = struct.pack(">I", count)
                fuzz.refused(bytes(damaged))
                fuzz.refused(gzip.compress(bytes(damaged), mtime=0))
        everything = bytearray(content)
        everything[4 : 4 + 4 * values.ndim] = b"\xff" * 4 * values.ndim
        fuzz.refused(bytes(everything))
        fuzz.refused(gzip.compress(bytes(everything), mtime=0))
    assert fuzz.count >= 800


def test_no_values_and_five_dimensions_are_refused_even_where_the_size_is_right(fuzz):
    for shape in [(0,), (0, 28, 28), (3, 0), (1, 2, 1, 2, 1)]:
        fuzz.refused(idx_bytes(np.zeros(shape, np.uint8)))
        fuzz.refused(gzip.compress(idx_bytes(np.zeros(shape, np.uint8))))


def test_fuzz_flipped_header_bits_but_those_that_name_another_type_of_the_same_size(fuzz):
    """uint8/int8 and int32/float32 are one bit apart: no reader can tell. The MD5 test below covers that."""
    sizes = {kind: int(name[1]) for name, kind in TYPES.items()}
    for values in fuzz_bases():
        content = idx_bytes(values)
        for bit in range(8 * (4 + 4 * values.ndim)):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            if sizes.get(damaged[2]) == sizes[content[2]] and damaged[2] != content[2]:
                continue
            fuzz.refused(bytes(damaged))
    assert fuzz.count >= 500


def test_fuzz_flipped_bits_in_gz_files_are_refused_or_change_no_value(fuzz):
    for values in fuzz_bases()[:3]:
        packed = gzip.compress(idx_bytes(values), mtime=0)
        for bit in range(8 * len(packed)):
            damaged = bytearray(packed)
            damaged[bit // 8] ^= 1 << bit % 8
            fuzz.refused(bytes(damaged), or_equal=values)
    assert fuzz.count >= 1000


def test_fuzz_random_bytes_and_foreign_files(fuzz):
    rng = random.Random(6)
    prefixes = [
        b"",
        b"\x1f\x8b",
        b"\x1f\x8b\x08\0\0\0\0\0\0\0",
        b"\0\0\x08\x03",
        b"\0\0\x0e\x04",
        b"\x89PNG",
        b"PK\3\4",
    ]
    for prefix in prefixes:
        for _ in range(40):
            fuzz.refused(prefix + rng.randbytes(rng.randrange(200)))
    assert fuzz.count >= 250


def test_gzip_bombs_are_not_unpacked_beyond_their_header(fuzz):
    zeros = bytes(30 << 20)
    small = idx_bytes(np.zeros((2, 3), np.uint8))
    bomb = gzip.compress(small + zeros, 9, mtime=0)
    fuzz.refused(bomb, unpacked=len(small))
    assert len(bomb) < 40_000
    fuzz.refused(gzip.compress(zeros, 9, mtime=0))  # no header at all
    fuzz.refused(gzip.compress(small, mtime=0) + bomb)  # behind the end of a sound stream
    huge = b"\0\0\x08\x03" + struct.pack(">3I", 60_000, 1 << 16, 1 << 16)
    fuzz.refused(gzip.compress(huge + zeros, 9, mtime=0))  # announces 257 TB: refused before any of it
    hungry = b"\0\0\x08\x01" + struct.pack(">I", 3 << 30)
    fuzz.refused(gzip.compress(hungry + b"few bytes", mtime=0))  # announces 3 GB, within the limit, and has 9 bytes


# ------------------------------------------------------------------------------------------ the kit's MNIST


def test_mnist_is_mnist_to_the_byte(mnist):
    """The tensors, written as IDX files again, have the MD5s of the original files."""
    for part, stem in zip(mnist, ("train", "t10k"), strict=True):
        files = {
            f"{stem}-images-idx3-ubyte": idx_bytes(part.images[:, 0].numpy()),
            f"{stem}-labels-idx1-ubyte": idx_bytes(part.labels.numpy().astype(np.uint8)),
        }
        assert {name: hashlib.md5(content).hexdigest() for name, content in files.items()} == {
            name: MNIST_MD5[name] for name in files
        }


def test_mnist_has_the_promised_shapes_types_and_statistics(mnist):
    for part, count in zip(mnist, (60_000, 10_000), strict=True):
        assert part.images.shape == (count, 1, 28, 28) and part.images.dtype == torch.uint8
        assert part.labels.shape == (count,) and part.labels.dtype == torch.int64
        assert (part.classes, part.source) == (tuple("0123456789"), "mnist")
    train, test = mnist
    assert (test.mean, test.std) == (train.mean, train.std)
    assert (round(train.mean[0], 4), round(train.std[0], 4)) == (0.1307, 0.3081)


def test_mnist_is_read_in_any_folder_without_environment_or_network(tmp_path):
    """In a process of its own, with nothing in its environment and every connection refused."""
    code = f"""
import sys
sys.path.insert(0, {str(KIT)!r})
def watch(event, arguments):
    assert not event.startswith("socket."), event
sys.addaudithook(watch)
from kit.idx import load_mnist
train, test = load_mnist()
assert not {{"torchvision", "matplotlib"}} & set(sys.modules)
print(len(train), len(test), int(train.images[0].sum()))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["60000", "10000", "27525"], done.stderr
    assert not list(tmp_path.iterdir())


def test_mnist_ignores_the_default_device():
    with torch.device("meta"):
        train, test = load_mnist()
    assert {tensor.device.type for part in (train, test) for tensor in (part.images, part.labels)} == {"cpu"}


DAMAGES = {
    "truncated": lambda packed: packed[:-1],
    "half": lambda packed: packed[: len(packed) // 2],
    "empty": lambda packed: b"",
    "a flipped bit": lambda packed: packed[:1000] + bytes([packed[1000] ^ 16]) + packed[1001:],
    "longer": lambda packed: packed + b"\0",
    "one label changed": lambda packed: compress(gzip.decompress(packed)[:-1] + b"\x0a"),
    "plain text": lambda packed: b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.fixture
def copy_of_mnist(tmp_path, monkeypatch) -> Path:
    """The kit's files in a folder where a test may damage them; the labels come first, so that the tests are quick."""
    folder = tmp_path / "kit" / "mnist"
    shutil.copytree(idx.MNIST, folder, copy_function=os.symlink)
    monkeypatch.setattr(idx, "MNIST", folder)
    monkeypatch.setattr(idx, "MD5", dict(sorted(MNIST_MD5.items(), key=lambda item: "labels" not in item[0])))
    return folder


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_of_mnist_is_named_with_the_remedy(copy_of_mnist, damage):
    path = copy_of_mnist / "train-labels-idx1-ubyte.gz"
    packed = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(packed))
    with pytest.raises(
        ValueError, match=rf"{path} is damaged: .*git checkout -- kit/mnist.* in {copy_of_mnist.parent.parent}"
    ):
        load_mnist()


def test_a_missing_file_of_mnist_is_named_with_the_remedy(copy_of_mnist):
    path = copy_of_mnist / "t10k-labels-idx1-ubyte.gz"
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{path} is missing; .*git checkout -- kit/mnist"):
        load_mnist()


def test_every_flipped_bit_of_a_file_is_seen(copy_of_mnist, monkeypatch):
    """What read_idx cannot see, such as another type of the same size or another time stamp, the MD5 and gzip do."""
    labels = idx_bytes(np.arange(20, dtype=np.uint8) % 10)
    name, path = "train-labels-idx1-ubyte", copy_of_mnist / "train-labels-idx1-ubyte.gz"
    monkeypatch.setattr(idx, "MD5", {name: hashlib.md5(labels).hexdigest()})
    path.unlink()
    for bit in range(8 * len(labels)):
        damaged = bytearray(labels)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(compress(bytes(damaged)))
        with pytest.raises(ValueError, match="is damaged"):
            load_mnist()


# ---------------------------------------------------------------------------------------------- packing MNIST


@pytest.mark.skipif("ng" in zlib.ZLIB_RUNTIME_VERSION, reason="zlib-ng packs the same content into other bytes")
@pytest.mark.parametrize("name", [name for name in idx.MD5 if name != "train-images-idx3-ubyte"])  # that one takes 15 s
def test_packing_gives_the_committed_bytes_again(name):
    committed = (idx.MNIST / f"{name}.gz").read_bytes()
    assert compress(gzip.decompress(committed)) == committed


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_pack_writes_the_four_files_and_nothing_if_one_is_wrong(tmp_path, monkeypatch, packed):
    files = four_files()
    source, target = place(tmp_path / "source", files, packed), tmp_path / "target"
    monkeypatch.setattr(
        "kit.mnist.pack.MD5", {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    )
    pack(source, target)
    assert {path.name: gzip.decompress(path.read_bytes()) for path in target.iterdir()} == {
        f"{name}.gz": content for name, content in files.items()
    }
    place(source, {"t10k-labels-idx1-ubyte": files["train-labels-idx1-ubyte"]}, packed)
    shutil.rmtree(target)
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte has the MD5"):
        pack(source, target)
    assert not target.exists()


# ------------------------------------------------------------------------------------- other sets in the format


def four_files(train: int = 20, test: int = 10, **changes: np.ndarray) -> dict[str, bytes]:
    """A tiny data set in MNIST's format; arrays in `changes`, such as t10k_labels, take the place of its own."""
    draw = np.random.default_rng(1)
    arrays = {}
    for stem, count in (("train", train), ("t10k", test)):
        arrays[f"{stem}_images"] = draw.integers(0, 256, (count, 6, 5), np.uint8)
        arrays[f"{stem}_labels"] = np.arange(count, dtype=np.uint8) % 10
    arrays |= changes
    names = {kind: f"{kind.replace('_', '-')}-idx{3 if 'images' in kind else 1}-ubyte" for kind in arrays}
    return {names[kind]: idx_bytes(array) for kind, array in arrays.items()}


def place(folder: Path, files: dict[str, bytes], packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}{'.gz' * packed}").write_bytes(compress(content) if packed else content)
    return folder


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("below", [".", "raw", "MNIST/raw"])
def test_load_idx_finds_the_files_in_the_folder_and_below(tmp_path, below, packed):
    files = four_files()
    place(tmp_path / "clothes" / below, files, packed)
    train, test = load_idx(str(tmp_path / "clothes"))
    for part, stem, count in ((train, "train", 20), (test, "t10k", 10)):
        assert part.images.shape == (count, 1, 6, 5) and part.images.dtype == torch.uint8
        assert part.images.numpy().tobytes() == files[f"{stem}-images-idx3-ubyte"][16:]
        assert bytes(part.labels.tolist()) == files[f"{stem}-labels-idx1-ubyte"][8:]
        assert (part.classes, part.source) == (tuple("0123456789"), "clothes")
    assert (test.mean, test.std) == (train.mean, train.std)
    assert train.mean[0] == pytest.approx(train.images.double().mean().item() / 255)


def test_a_plain_file_is_read_before_a_packed_one_and_an_upper_folder_before_a_lower(tmp_path):
    place(tmp_path / "raw", four_files(train=30))
    place(tmp_path, four_files(train=40), packed=True)
    assert len(load_idx(tmp_path)[0]) == 40
    place(tmp_path, four_files(train=50))
    assert len(load_idx(tmp_path)[0]) == 50


def test_load_idx_of_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    place(tmp_path / "clothes", four_files())
    assert len(load_idx("~/clothes")[0]) == 20


def test_a_missing_file_is_named_with_the_places(tmp_path):
    files = four_files()
    del files["t10k-labels-idx1-ubyte"]
    place(tmp_path, files)
    with pytest.raises(FileNotFoundError, match=rf"t10k-labels-idx1-ubyte.*missing in {tmp_path}.*raw"):
        load_idx(tmp_path)


@pytest.mark.parametrize("name", idx.MD5)
def test_a_truncated_file_is_refused_by_name(tmp_path, name):
    files = four_files()
    place(tmp_path, files | {name: files[name][:-1]})
    with pytest.raises(ValueError, match=rf"{name} is not a valid IDX file: found .*expected"):
        load_idx(tmp_path)


LABELS = np.arange(20, dtype=np.uint8) % 10
IMAGES = np.zeros((20, 6, 5), np.uint8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_labels": LABELS[:19]}, r"train-images.* holds 20 images, but .*train-labels.* holds 19 labels"),
        ({"t10k_images": IMAGES[:7]}, r"t10k-images.* holds 7 images, but .*t10k-labels.* holds 10 labels"),
        ({"t10k_images": IMAGES[:10, :5]}, "training images are 6 x 5, test images 5 x 5"),
        ({"t10k_labels": LABELS[:10] + np.uint8(1)}, "training labels are 0 to 9, test labels 1 to 10"),
        ({"train_labels": LABELS // np.uint8(2)}, "training labels are 0 to 4, test labels 0 to 9"),
        ({"train_images": LABELS}, "train-images.* holds 1 dimensions, expected 3 for images"),
        ({"t10k_labels": IMAGES}, "t10k-labels.* holds 3 dimensions, expected 1 for labels"),
        ({"train_images": IMAGES.astype("f4")}, "train-images.* holds torch.float32 images, expected uint8"),
        ({"train_labels": LABELS.astype("f4")}, "train-labels.* holds torch.float32 labels, expected whole numbers"),
        ({"train_labels": LABELS.astype("i1") - 1}, "train-labels.* holds the label -1"),
    ],
)
def test_files_that_do_not_belong_together_are_refused_with_both_numbers(tmp_path, changes, words):
    place(tmp_path, four_files(**changes))
    with pytest.raises(ValueError, match=words):
        load_idx(tmp_path)


@pytest.mark.parametrize(
    ("one", "other"), [("train-images-idx3", "train-labels-idx1"), ("train-images-idx3", "t10k-images-idx3")]
)
def test_swapped_files_are_refused(tmp_path, one, other):
    files = four_files()
    one, other = f"{one}-ubyte", f"{other}-ubyte"
    files[one], files[other] = files[other], files[one]
    place(tmp_path, files)
    with pytest.raises(ValueError, match="expected"):
        load_idx(tmp_path)
