"""The machine and the process: seeds, devices, several processes, memory, Ctrl-C, safe files."""

from __future__ import annotations

import ctypes
import functools
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from kit.settings import whole_number

# ------------------------------------------------------------------------------------------- Seeds and devices


def seed_everything(seed: int) -> None:
    """Seed the random generators of PyTorch (every device), Python and NumPy with `seed`, from 0 to 2**32 - 1."""
    import numpy

    seed = whole_number("seed", seed, 0)
    if seed >= 2**32:  # NumPy's limit
        raise ValueError(f"seed is {seed}; expected a whole number from 0 to 2**32 - 1")
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def get_device(prefer: str | None = None) -> torch.device:
    """Return the device to train on: `prefer` if given ("cpu", "cuda", "cuda:1", "mps"), else cuda, then mps, then cpu.

    Under torchrun each process gets the GPU of its local rank. Raises ValueError if the device is unavailable.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    usable = {"cuda": gpus > 0, "mps": torch.backends.mps.is_available(), "cpu": True}
    name = prefer or next(kind for kind, there in usable.items() if there)
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    available = [f"cuda:{number}" for number in range(gpus)] + [kind for kind in ("mps", "cpu") if usable[kind]]
    if (name if name.startswith("cuda") else name.partition(":")[0]) not in available:
        remedy = "; start no more processes than there are GPUs" if "LOCAL_RANK" in os.environ else ""
        raise ValueError(
            f"prefer is {prefer!r}: {name} is unavailable on this machine; available: {', '.join(available)}{remedy}"
        )
    return torch.device(name)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter of `model`, the CPU if it has none; TypeError for no network."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {model!r}; expected a network, an object such as Net()")
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


# ------------------------------------------------------------------------------------------- Several processes


def start_distributed() -> None:
    """Join the processes that torchrun started (NCCL with CUDA, else Gloo); without torchrun do nothing.

    With CUDA each process takes the GPU of its local rank as its own.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(get_device("cuda"))  # otherwise every process sends its objects through GPU 0
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def rank_and_world() -> tuple[int, int]:
    """Return this process's number and how many train together: (0, 1) unless `start_distributed` joined some."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum of `values` over all processes, each of which has to call this; one alone gets them back."""
    if rank_and_world()[1] == 1:
        return values
    wanted = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    sums = values.to(values.device if values.device.type == wanted else wanted, copy=True)
    torch.distributed.all_reduce(sums)
    return sums.to(values.device)


def from_first(function: Callable[[], Any]) -> Any:
    """Call `function` in the first process alone; return its result, or raise its error, in every process."""
    rank, world = rank_and_world()
    if world == 1:
        return function()
    results: list[Any] = [None, None]
    if rank == 0:
        try:
            results[0] = function()
        except Exception as error:
            results[1] = error
    torch.distributed.broadcast_object_list(results)
    if results[1] is not None:
        raise results[1]
    return results[0]


def from_all(value: Any) -> list[Any]:
    """Return the `value` of every process, in the order of their ranks."""
    values = [value] * rank_and_world()[1]
    if len(values) > 1:
        torch.distributed.all_gather_object(values, value)
    return values


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


def one_of_several(model: nn.Module) -> nn.Module:
    """Return `model` so that its gradients are averaged over all processes; `model` itself if there is one."""
    if rank_and_world()[1] == 1:
        return model
    wrapped = nn.parallel.DistributedDataParallel(model)
    wrapped.training = model.training
    return wrapped


def share_buffers(model: nn.Module) -> None:
    """Give every process the first one's buffers: BatchNorm's statistics of its share of the images."""
    if rank_and_world()[1] > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)


def train_mode(model: nn.Module) -> None:
    """Put `model` in train mode, but leave alone the modules that are in eval mode while `model` itself is not."""
    frozen = [module for module in model.modules() if not module.training] if model.training else []
    model.train()
    for module in frozen:
        module.training = False


_interrupted = False  # Ctrl-C came, and waits to be raised


def note_interrupt(*_: Any) -> None:
    """Remember that training is to end: `raise_interrupt` ends it."""
    global _interrupted
    _interrupted = True


def raise_interrupt() -> None:
    """Raise KeyboardInterrupt if one was noted: in all processes at once, each of which has to call this."""
    global _interrupted
    noted = sum_over_processes(torch.tensor(float(_interrupted), device="cpu"))
    _interrupted = False
    if noted:
        raise KeyboardInterrupt


@contextmanager
def interrupt_later() -> Iterator[None]:
    """Note Ctrl-C within the block in place of raising it; call `raise_interrupt` after the block.

    A process that was told to ignore Ctrl-C goes on ignoring it. Python delivers signals to the main thread only.
    """
    global _interrupted
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is note_interrupt:
        yield
        return
    _interrupted = False
    if before in (signal.SIG_IGN, None):
        yield
        return
    signal.signal(signal.SIGINT, note_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def second_interrupt_raises() -> Iterator[None]:
    """Within `interrupt_later`: the first Ctrl-C is noted all the same, one more raises KeyboardInterrupt at once."""

    def handle(*_: Any) -> None:
        if _interrupted:
            raise KeyboardInterrupt
        note_interrupt()

    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not note_interrupt
    ):
        yield
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, note_interrupt)


_interrupted_cell: int | None = None


def end_cell_after_interrupt() -> None:
    """Raise KeyboardInterrupt if training was interrupted before in the notebook cell that runs: a loop has to end."""
    if _interrupted_cell is not None and _interrupted_cell == _running_cell():
        raise KeyboardInterrupt("training was interrupted in this cell before")


def in_cell_interrupted_now() -> bool:
    """Return whether a notebook cell runs, and remember that training was interrupted in it."""
    global _interrupted_cell
    _interrupted_cell = _running_cell()
    return _interrupted_cell is not None


def _running_cell() -> int | None:
    """The number of the cell that IPython runs; None in a script."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return None if shell is None else shell.execution_count


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
    path = Path(path).resolve()  # a link stays one: its file is replaced
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


# ------------------------------------------------------------------------------------------------------ Versions


@functools.cache
def commit_of_kit() -> str | None:
    """Return the kit's commit, with "-dirty" behind it if tracked files were changed since; None without git.

    Result files do not count: a benchmark writes to them while it runs.
    """
    kit = Path(__file__).parent.parent
    run = functools.partial(subprocess.run, cwd=kit, capture_output=True, text=True)
    try:
        commit = run(["git", "rev-parse", "HEAD"]).stdout.strip()
        status = ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks/results"]
        changed = run(status).stdout
    except OSError:  # git is not installed
        return None
    return f"{commit}-dirty" if commit and changed else commit or None
