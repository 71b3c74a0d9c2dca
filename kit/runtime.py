"""The machine and the process: seeds, devices, several processes, memory, Ctrl-C, safe files."""

from __future__ import annotations

import ctypes
import functools
import os
import random
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import nn

# ------------------------------------------------------------------------------------------- Seeds and devices


def seed_everything(seed: int) -> None:
    """Seed the random generators of PyTorch (every device), Python and NumPy with `seed`, from 0 to 2**32 - 1."""
    import numpy

    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}; give a whole number from 0 to 2**32 - 1")
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def get_device(prefer: str | None = None) -> torch.device:
    """Return the device to train on: `prefer` if given ("cpu", "cuda", "cuda:1", "mps"), else cuda, then mps, then cpu.

    Under torchrun each process gets the GPU of its local rank. Raises ValueError if `prefer` is unavailable.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    usable = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    name = prefer or next(kind for kind, there in usable.items() if there)
    kind = name.partition(":")[0]
    if not usable.get(kind, False):
        there = ", ".join(kind for kind, yes in usable.items() if yes)
        raise ValueError(f"prefer is {prefer!r}, which is unavailable on this machine; available: {there}")
    return torch.device(f"cuda:{local_rank}" if name == "cuda" else name)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter of `model`; the CPU if it has none."""
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


# ------------------------------------------------------------------------------------------- Several processes


def start_distributed() -> None:
    """Join the processes that torchrun started (NCCL with CUDA, else Gloo); without torchrun do nothing."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def rank_and_world() -> tuple[int, int]:
    """Return this process's number and how many train together: (0, 1) unless `start_distributed` joined some."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def from_first(value: Any) -> Any:
    """Return the first process's `value` in every process: the others may not see its disk."""
    if rank_and_world()[1] == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


# ------------------------------------------------------------------------------------------ Modes and interrupts


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode within the block; afterwards each module is back in its own mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def interrupt_later() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block (Python delivers it to the main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def follow_parent(parent: int) -> None:
    """Make this worker process leave Ctrl-C to the process `parent` that started it, and end when `parent` ends.

    A thread checks twice a second, so that even SIGKILL of `parent` leaves no worker (except on Windows, which does
    not tell a process that its parent has ended).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="follow_parent", daemon=True).start()


def somebody_watches() -> bool:
    """Return whether a progress bar can be seen: in a terminal or a notebook, unless TQDM_DISABLE is set.

    Bars are text: a widget lives only as long as its kernel, and a saved notebook would show an error in its place.
    """
    in_notebook = type(sys.stdout).__module__.startswith("ipykernel")
    return not os.environ.get("TQDM_DISABLE") and (in_notebook or sys.stdout.isatty())


# ------------------------------------------------------------------------------------------------------- Memory


@functools.cache
def keep_freed_memory() -> None:
    """Make this process keep the memory that tensors free, if its C library is glibc.

    By default glibc returns every large tensor's memory to the system, which zeroes it page by page before the
    next tensor gets it: with a small network that is almost half of a training step on the CPU. Set any
    MALLOC_... variable in the environment to switch this off.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # malloc.h
    for option, megabytes in ((m_mmap_threshold, 32), (m_trim_threshold, 1024), (m_top_pad, 64)):
        mallopt(option, megabytes << 20)


# -------------------------------------------------------------------------------------------------------- Files


def write_atomically(path: str | Path, data: bytes | bytearray | memoryview) -> None:
    """Write `data` to `path` so that the file is always whole: either the old one or the new one.

    The data goes to a temporary file in the same folder (created if missing), is flushed to disk and renamed.
    On any error the old file is untouched, the temporary file is removed, and the error is raised (OSError).
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
