"""write_atomically: a file is always whole, the old one or the new one."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import pytest

from kit import runtime
from kit.runtime import write_atomically


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
        monkeypatch.setattr(runtime, "open", fail, raising=False)
    else:
        monkeypatch.setattr(runtime, "open", lambda *a: FailingFile(io.FileIO(*a), step, error), raising=False)
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
