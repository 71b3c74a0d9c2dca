"""data.py: every file is whole or refused, every data set becomes the same kind of tensors. No network."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import os
import random
import struct
import subprocess
import sys
import threading
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from kit import data
from kit.data import ImageData, as_tensors, load_mnist, read_idx, split, write_atomically

KIT = Path(data.__file__).parent
TYPES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(values: np.ndarray) -> bytes:
    """Written here anew, so that a wrong reader and a wrong writer cannot agree."""
    kind = TYPES[values.dtype.str[1:]]
    header = bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


def digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 10


def litter(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def no_network(url: str):
    raise OSError("no network")


@pytest.fixture(autouse=True)
def untouched_network(monkeypatch):
    def touched(url):
        raise AssertionError(f"a test touched the network: {url}")

    monkeypatch.setattr(data, "_open_url", touched)
    monkeypatch.delenv("MNIST_ROOT", raising=False)


@pytest.fixture
def stand_in(monkeypatch) -> dict[str, bytes]:
    """Four tiny files take MNIST's place: 20 training and 10 test images."""
    files = {}
    for stem, (images, labels) in {"train": digits(20, 1), "t10k": digits(10, 2)}.items():
        files[f"{stem}-images-idx3-ubyte"] = idx_bytes(images)
        files[f"{stem}-labels-idx1-ubyte"] = idx_bytes(labels)
    monkeypatch.setattr(data, "_FILES", {name: facts(content) for name, content in files.items()})
    return files


def facts(content: bytes) -> tuple[int, str, str]:
    packed = gzip.compress(content, mtime=0)
    return len(content), hashlib.md5(content).hexdigest(), hashlib.md5(packed).hexdigest()


def place(root: Path, files: dict[str, bytes], packed: bool = False) -> Path:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if packed:
            (raw / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            (raw / name).write_bytes(content)
    return raw


def assert_whole(loaded: tuple[ImageData, ImageData], files: dict[str, bytes]) -> None:
    for part, stem in zip(loaded, ("train", "t10k"), strict=True):
        assert part.source == "mnist"
        assert part.images.numpy().tobytes() == files[f"{stem}-images-idx3-ubyte"][16:]
        assert bytes(part.labels.tolist()) == files[f"{stem}-labels-idx1-ubyte"][8:]


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
    values = np.random.default_rng(0).integers(0, 256, 3 * data._CHUNK + 5, np.uint8)
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
    with pytest.raises(ValueError, match=r"some-file.*found 17 bytes.*expected 18.*fetch it again"):
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
            assert str(path) in str(error) and data._REMEDY in str(error)
        else:
            assert or_equal is not None, f"accepted silently: {content[:24].hex(' ')}"
            assert tensor.numpy().dtype == or_equal.dtype and np.array_equal(tensor.numpy(), or_equal)
        peak = tracemalloc.get_traced_memory()[1] - before
        assert peak < 3 * max(len(content), unpacked or 0) + (1 << 18), f"{peak:,} bytes for {content[:24]!r}"


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


# ------------------------------------------------------------------------------------------ atomic files


class FailingFile:
    """A file that fails as a full disk does: half of the bytes are written, or none reach it."""

    def __init__(self, file, step: str, error: BaseException):
        self.file, self.step, self.error = file, step, error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        if self.step == "write":
            raise self.error

    def flush(self):
        if self.step == "flush":
            raise self.error

    def fileno(self):
        return self.file.fileno()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("step", ["open", "write", "flush", "fsync", "replace"])
@pytest.mark.parametrize("exists", [True, False], ids=["over an old file", "new"])
def test_write_atomically_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, step, error, exists):
    path = tmp_path / "file"
    if exists:
        path.write_bytes(b"old")

    def fail(*_):
        raise error

    if step in ("fsync", "replace"):
        monkeypatch.setattr(os, step, fail)
    elif step == "open":
        monkeypatch.setattr(data, "open", fail, raising=False)
    else:
        monkeypatch.setattr(data, "open", lambda *a: FailingFile(io.FileIO(*a), step, error), raising=False)
    with pytest.raises(type(error)):
        write_atomically(path, b"new and longer")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == (["file"] if exists else [])
    assert not exists or path.read_bytes() == b"old"


def test_write_atomically_syncs_before_it_renames(tmp_path, monkeypatch):
    steps = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append(Path(a).stat().st_size), rename(a, b))[1])
    write_atomically(tmp_path / "new" / "folder" / "file", b"12345")
    assert steps == ["fsync", 5]
    assert (tmp_path / "new" / "folder" / "file").read_bytes() == b"12345"


def test_write_atomically_from_eight_threads_leaves_one_whole_file(tmp_path):
    contents = [bytes([i]) * 100_000 for i in range(8)]
    threads = [threading.Thread(target=write_atomically, args=(tmp_path / "file", c)) for c in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() in contents
    assert len(list(tmp_path.iterdir())) == 1


# ------------------------------------------------------------------------------------------------ MNIST


def test_mnist_from_extracted_files_writes_nothing(tmp_path, stand_in, recwarn):
    raw = place(tmp_path, stand_in)
    train, test = load_mnist(tmp_path)
    assert_whole((train, test), stand_in)
    assert sorted(p.name for p in raw.iterdir()) == sorted(stand_in)
    assert not recwarn.list
    assert train.images.shape == (20, 1, 28, 28) and train.images.dtype == torch.uint8
    assert train.labels.dtype == torch.int64
    assert train.classes == tuple("0123456789")
    assert (test.mean, test.std) == (train.mean, train.std) != data._statistics(test.images)


def test_mnist_root_is_the_argument_then_the_environment_then_data(tmp_path, stand_in, monkeypatch):
    place(tmp_path / "data", stand_in)
    monkeypatch.chdir(tmp_path)
    assert_whole(load_mnist(), stand_in)
    monkeypatch.setenv("MNIST_ROOT", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(data, "_open_url", no_network)
    with pytest.warns(UserWarning, match="elsewhere"):
        assert load_mnist()[0].source == "sample"
    assert_whole(load_mnist("data"), stand_in)


def test_mnist_from_gz_is_extracted_once(tmp_path, stand_in, recwarn):
    raw = place(tmp_path, stand_in, packed=True)
    assert_whole(load_mnist(tmp_path), stand_in)
    assert {name: (raw / name).read_bytes() for name in stand_in} == stand_in
    for path in raw.glob("*.gz"):
        path.unlink()
    assert_whole(load_mnist(tmp_path), stand_in)
    assert not recwarn.list and not litter(tmp_path)


DAMAGES = {
    "truncated": lambda content: content[:-1],
    "half-extracted": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "corrupted": lambda content: content[:-3] + bytes([content[-3] ^ 16]) + content[-2:],
    "wrong-magic": lambda content: b"\0\0\x09" + content[3:],
    "longer": lambda content: content + b"\0",
    "another set": lambda content: content[:8] + bytes(len(content) - 8),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", data._FILES)
def test_damaged_mnist_file_is_repaired_from_a_sound_gz(tmp_path, stand_in, name, damage):
    raw = place(tmp_path, stand_in)
    place(tmp_path, stand_in, packed=True)
    (raw / name).write_bytes(damage(stand_in[name]))
    with pytest.warns(UserWarning, match=rf"{name} is damaged(.|\n)*replaced, from {name}.gz"):
        assert_whole(load_mnist(tmp_path), stand_in)
    assert (raw / name).read_bytes() == stand_in[name] and not litter(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_whole(load_mnist(tmp_path), stand_in)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_mnist_file_without_gz_or_network_is_refused_by_name(tmp_path, stand_in, monkeypatch, damage):
    monkeypatch.setattr(data, "_open_url", no_network)
    raw = place(tmp_path, stand_in)
    name = "t10k-labels-idx1-ubyte"
    (raw / name).write_bytes(damage(stand_in[name]))
    with pytest.warns(UserWarning, match=rf"NOT MNIST(.|\n)*{name} is damaged(.|\n)*Remedy"):
        assert load_mnist(tmp_path)[0].source == "sample"


@pytest.mark.parametrize("damage", [d for n, d in DAMAGES.items() if n not in ("wrong-magic",)])
def test_damaged_gz_is_refused_by_name(tmp_path, stand_in, monkeypatch, damage):
    monkeypatch.setattr(data, "_open_url", no_network)
    raw = place(tmp_path, stand_in, packed=True)
    path = raw / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged"):
        assert load_mnist(tmp_path)[0].source == "sample"
    assert not (raw / "train-images-idx3-ubyte").exists()


def test_every_flipped_bit_of_a_file_with_a_known_md5_is_seen(tmp_path, stand_in):
    """What read_idx cannot see in a plain file, a pixel or a type changed, the MD5 does."""
    name = "train-labels-idx1-ubyte"
    path, content = tmp_path / name, stand_in[name]
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert data._verified(path, name)[0] is None
    path.write_bytes(content)
    assert data._verified(path, name) == (content, "")


def test_mnist_gz_bomb_is_not_unpacked(tmp_path, stand_in):
    name = "t10k-labels-idx1-ubyte"
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(stand_in[name] + bytes(30 << 20), 9))
    tracemalloc.start()
    content, damage = data._verified(tmp_path / f"{name}.gz", name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert content is None and "more than" in damage
    assert peak < 1 << 18


@pytest.mark.parametrize("packed", [False, True], ids=["damaged", "gz alone"])
def test_mnist_root_that_cannot_be_written_works(tmp_path, stand_in, monkeypatch, packed):
    raw = place(tmp_path, stand_in, packed=True)
    if not packed:
        (raw / "t10k-labels-idx1-ubyte").write_bytes(b"damaged")

    def read_only(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(data, "write_atomically", read_only)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_whole(load_mnist(tmp_path), stand_in)
    assert len(caught) == (0 if packed else 1)
    assert packed or "could not be written" in str(caught[0].message)


class Response(io.BytesIO):
    def __init__(self, content: bytes):
        super().__init__(content)
        self.headers = {"Content-Length": str(len(content))}


@pytest.fixture
def mirrors(stand_in, monkeypatch):
    """Two mirrors that serve the stand-in files; answers[mirror] replaces what one of them says."""
    asked, answers = [], {}

    def open_url(url):
        asked.append(url)
        mirror, name = next(m for m in data._MIRRORS if url.startswith(m)), url.rsplit("/", 1)[-1]
        answer = answers.get(mirror, gzip.compress(stand_in[name.removesuffix(".gz")], mtime=0))
        if isinstance(answer, Exception):
            raise answer
        return Response(answer)

    monkeypatch.setattr(data, "_open_url", open_url)
    return asked, answers


def test_mnist_is_downloaded_from_the_first_mirror_and_kept(tmp_path, stand_in, mirrors, recwarn):
    assert_whole(load_mnist(tmp_path), stand_in)
    raw = tmp_path / "MNIST" / "raw"
    assert sorted(p.name for p in raw.iterdir()) == sorted([*stand_in, *(f"{name}.gz" for name in stand_in)])
    assert mirrors[0] == [f"{data._MIRRORS[0]}{name}.gz" for name in stand_in]
    assert not recwarn.list
    assert_whole(load_mnist(tmp_path), stand_in)
    assert len(mirrors[0]) == 4  # nothing is fetched twice


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (OSError("refused"), "refused"),
        (TimeoutError(), "TimeoutError"),
        (b"", "0 bytes with MD5"),
        (b"<html>", "6 bytes with MD5"),
        (bytes(100_000), "sends more than 16,720 bytes"),
    ],
    ids=["refused", "time-out", "nothing", "a page", "too much"],
)
def test_a_mirror_that_fails_is_asked_once_and_the_next_one_serves(tmp_path, stand_in, mirrors, answer, words):
    asked, answers = mirrors
    answers[data._MIRRORS[0]] = answer
    with pytest.warns(UserWarning, match=rf"{data._MIRRORS[0]}train-images-idx3-ubyte.gz failed: .*{words}"):
        assert_whole(load_mnist(tmp_path), stand_in)
    assert [url.startswith(data._MIRRORS[1]) for url in asked] == [False, True, True, True, True]


def test_a_download_that_takes_too_long_is_given_up(tmp_path, stand_in, mirrors, monkeypatch):
    monkeypatch.setattr(data, "_DOWNLOAD_SECONDS", -1)
    with pytest.warns(UserWarning, match="too slow"):
        assert load_mnist(tmp_path)[0].source == "sample"
    assert len(mirrors[0]) == 2


def test_damaged_mnist_file_is_replaced_by_download(tmp_path, stand_in, mirrors):
    raw = place(tmp_path, stand_in)
    (raw / "t10k-images-idx3-ubyte").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"t10k-images-idx3-ubyte is damaged(.|\n)*It was replaced, from https"):
        assert_whole(load_mnist(tmp_path), stand_in)
    assert (raw / "t10k-images-idx3-ubyte").read_bytes() == stand_in["t10k-images-idx3-ubyte"]
    assert len(mirrors[0]) == 1


def test_nothing_but_https_is_asked_or_followed():
    assert all(url.startswith("https://") for url in data._MIRRORS)
    for url in ("http://example.org/file", "ftp://example.org/file", "file:///etc/passwd"):
        with pytest.raises(ValueError, match="expected https"):
            data._HttpsOnly().redirect_request(None, None, 302, "Found", {}, url)


def test_offline_gives_the_sample_and_a_warning_no_one_can_overlook(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(data, "_open_url", lambda url: (asked.append(url), no_network(url)))
    with pytest.warns(UserWarning) as caught:
        train, test = load_mnist(tmp_path)
    message = str(caught[0].message)
    for words in (
        "THIS IS NOT MNIST",
        "4,000",
        "1,000",
        "not comparable",
        "no network",
        "Remedy",
        "MNIST_ROOT",
    ):
        assert words in message
    assert str(tmp_path / "MNIST" / "raw") in message and message.count("\n") >= 8
    assert caught[0].filename == __file__  # it points at the caller's line
    assert len(asked) == len(data._MIRRORS)  # not again for the other three files
    assert not list(tmp_path.iterdir())
    for part, count in ((train, 400), (test, 100)):
        assert part.source == "sample" and part.classes == tuple("0123456789")
        assert part.images.shape == (10 * count, 1, 28, 28)
        assert part.labels.bincount().tolist() == [count] * 10
        assert len(set(part.labels[:50].tolist())) > 5  # shuffled
    assert (test.mean, test.std) == (train.mean, train.std)
    assert train.mean[0] == pytest.approx(0.13, abs=0.01) and train.std[0] == pytest.approx(0.308, abs=0.01)
    seen = {image.numpy().tobytes() for image in train.images}
    assert len(seen) == 4000 and not any(image.numpy().tobytes() in seen for image in test.images)


def test_without_the_sample_the_error_says_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_open_url", no_network)
    monkeypatch.setattr(data, "_SAMPLE", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"sample is not there(.|\n)*Remedy"):
        load_mnist(tmp_path)


def test_the_sample_is_made_the_same_to_the_byte(tmp_path):
    spec = importlib.util.spec_from_file_location("make_sample", KIT / "sample" / "make_sample.py")
    make_sample = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_sample)
    images = read_idx(KIT / "sample" / "t10k-images-idx3-ubyte.gz").numpy()
    for name in ("one.gz", "other.gz"):
        make_sample.write_idx(tmp_path / name, images)
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "other.gz").read_bytes()
    assert (read_idx(tmp_path / "one.gz").numpy() == images).all()
    train, test = make_sample.split_indices(np.repeat(np.arange(10), 500))
    assert sorted([*train, *test]) == list(range(5000))
    assert hashlib.md5(train.astype("<i8").tobytes()).hexdigest() == SPLIT_MD5


SPLIT_MD5 = "157d7db102a039a5cf3f8dddb6bdfd06"

LOADERS = """
import json, os, sys
from kit import data

root, table = json.loads(sys.argv[1])
data._FILES = {name: tuple(facts) for name, facts in table.items()}
data._MIRRORS = ()
wait, start = os.pipe()
for _ in range(8):
    if os.fork() == 0:
        os.close(start)
        os.read(wait, 1)  # until the parent closes its end: all begin at once
        train, test = data.load_mnist(root)
        assert not {"torchvision", "matplotlib"} & set(sys.modules)
        sums = int(train.images.sum()), int(test.images.sum())
        os.write(1, f"{train.source} {len(train)} {sums}\\n".encode())
        os._exit(0)
os.close(start)
for _ in range(8):
    os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starting 8 interpreters takes a minute where there is no fork")
def test_eight_processes_that_extract_at_once_each_get_all(tmp_path):
    files = {}
    for stem, (images, labels) in {"train": digits(2000, 1), "t10k": digits(1000, 2)}.items():
        files[f"{stem}-images-idx3-ubyte"] = idx_bytes(images)
        files[f"{stem}-labels-idx1-ubyte"] = idx_bytes(labels)
    raw = place(tmp_path, files, packed=True)
    arguments = json.dumps([str(tmp_path), {name: facts(content) for name, content in files.items()}])
    command = [sys.executable, "-W", "error::UserWarning", "-c", LOADERS, arguments]
    result = subprocess.run(command, cwd=KIT, capture_output=True, text=True, timeout=120)
    sums = int(digits(2000, 1)[0].sum()), int(digits(1000, 2)[0].sum())
    assert result.stdout.splitlines() == [f"mnist 2000 {sums}"] * 8, result.stderr
    assert sorted(p.name for p in raw.iterdir()) == sorted([*files, *(f"{name}.gz" for name in files)])
    assert {name: (raw / name).read_bytes() for name in files} == files


# --------------------------------------------------------------------------------------------- ImageData


def image_data(count: int = 12, classes: int = 3, channels: int = 1, seed: int = 0) -> ImageData:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, 6, 5), dtype=torch.uint8, generator=generator)
    return ImageData(images, torch.arange(count) % classes)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_statistics_are_per_channel_of_images_scaled_to_one(dtype):
    images = torch.randint(0, 256, (4000, 3, 16, 15), dtype=torch.uint8)  # several chunks
    images[:, 1] //= 2
    images = images if dtype == torch.uint8 else images.float() / 255 + torch.tensor([0, 0, 1e3]).view(3, 1, 1)
    made = ImageData(images, torch.zeros(4000, dtype=torch.int64))
    exact = images.double() / (255 if dtype == torch.uint8 else 1)
    assert made.mean == pytest.approx(exact.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert made.std == pytest.approx(exact.std((0, 2, 3), correction=0).tolist(), rel=1e-6)


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
    ids=str,
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


def test_as_tensors_gives_torchvisions_mnist_the_same_by_the_short_way_and_the_long(tmp_path, stand_in):
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    place(tmp_path, stand_in)
    dataset = MNIST(tmp_path)
    short, long = as_tensors(dataset), as_tensors(Subset(dataset, range(20)))
    assert short.images.shape == (20, 1, 28, 28) and short.images.dtype == torch.uint8
    assert torch.equal(short.images, long.images) and torch.equal(short.labels, long.labels)
    assert short.classes == long.classes == tuple(MNIST.classes)
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
