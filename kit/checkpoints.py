"""Checkpoints: save and load them safely, and resume a training run to the bit.

`fit` saves everything that changes while it trains, and the settings of the run beside it. A checkpoint is resumed
only by the run that made it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import io
import random
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from kit.runtime import device_of, from_first, rank_and_world, write_atomically

_SEAL = b"KITSHA01"  # a checkpoint is torch.save's bytes, this mark and the SHA-256 of those bytes


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write `state`, tensors and plain values, to `path`: whole or not at all, sealed with a checksum."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, payload + _SEAL + hashlib.sha256(payload).digest())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote to `path`, on the CPU; `["model"]` holds the weights `fit` saved.

    Raises FileNotFoundError, or ValueError for a file that is damaged, foreign, or holds anything but tensors
    and plain values: such a file is never unpickled into code.
    """
    whole = Path(path).read_bytes()
    payload, seal, digest = whole[:-40], whole[-40:-32], whole[-32:]
    if seal != _SEAL:
        raise ValueError(f"{path} is cut short or is no checkpoint of this kit: it lacks the closing checksum")
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError(f"{path} is damaged: its checksum does not match; delete it, or restore a sound copy")
    try:
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} was refused: it holds more than tensors and plain values ({error})") from error


class Run(NamedTuple):
    """All that changes while `fit` trains, and so all that a checkpoint must hold."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: Any
    train_batches: Any
    history: Any


def snapshot(run: Run, settings: dict[str, str]) -> dict[str, Any]:
    return {
        "settings": settings,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict() if run.scheduler is not None else None,
        "generators": _generator_states(run),
        "history": dataclasses.asdict(run.history),
    }


def _generator_states(run: Run) -> dict[str, Any]:
    """The state of every generator that training draws from, as tensors and plain values."""
    import numpy

    numpy_state: Any = numpy.random.get_state()
    kind, keys, *rest = numpy_state
    states = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
    }
    if (device := device_of(run.model)).type in ("cuda", "mps"):
        states["device"] = getattr(torch, device.type).get_rng_state()
    states |= {name: generator.get_state() for name, generator in _own_generators(run.train_batches).items()}
    return states


def _own_generators(batches: Any) -> dict[str, torch.Generator]:
    """The generators that `Batches` or a DataLoader and its sampler draw from, where they have their own."""
    owners = {"batches": batches, "sampler": getattr(batches, "sampler", None)}
    generators = {name: getattr(owner, "generator", None) for name, owner in owners.items()}
    return {name: generator for name, generator in generators.items() if isinstance(generator, torch.Generator)}


def resume(run: Run, settings: dict[str, str], path: str | Path, verbose: bool) -> None:
    """Bring `run` to the state saved in `path`, once it is sure that the very same run saved it."""
    import numpy

    state = from_first(load_checkpoint(path) if rank_and_world()[0] == 0 else None)
    if differences := _differences(state.get("settings", {}), settings):
        raise ValueError(
            f"{path} belongs to another run; give checkpoint another name, or delete the file to start afresh. "
            f"What differs (- in the file, + now):\n" + "\n".join(differences)
        )
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    if run.scheduler is not None:
        run.scheduler.load_state_dict(state["scheduler"])
    generators = state["generators"]
    torch.set_rng_state(generators["torch"])
    random.setstate(generators["python"])
    numpy.random.set_state(generators["numpy"])
    if "device" in generators:
        getattr(torch, device_of(run.model).type).set_rng_state(generators["device"])
    for name, generator in _own_generators(run.train_batches).items():
        generator.set_state(generators[name])
    for name, values in state["history"].items():
        getattr(run.history, name)[:] = values
    if verbose:
        print(f"{path} holds {len(run.history)} finished epochs of this run: going on from there.", flush=True)


def describe_run(run: Run, epochs: int, scheduler_step: str, criterion: Any) -> dict[str, str]:
    """What must be equal for a checkpoint to fit, as text: nothing in it changes while training goes on."""
    moving = {"last_epoch", "best", "num_bad_epochs", "cooldown_counter", "T_cur", "T_i"}
    steps = run.scheduler.state_dict() if run.scheduler is not None else {}
    steps = {key: value for key, value in steps.items() if key not in moving and not key.startswith("_")}
    batches = run.train_batches
    data = getattr(batches, "data", None) or getattr(batches, "dataset", None)
    return {
        "network": repr(run.model),
        "parameters": "\n".join(f"{name} {tuple(p.shape)}" for name, p in run.model.state_dict().items()),
        "training images": str(len(data)) if data is not None else "unknown",
        "batches": str(len(batches)) if hasattr(batches, "__len__") else "unknown",
        "batch size": str(getattr(batches, "batch_size", "unknown")),
        "seed of the batches": str(getattr(batches, "seed", "unknown")),
        "augmentation": repr(getattr(batches, "augment", None)),
        "augmented epochs": str(getattr(batches, "augment_epochs", None)),
        "epochs": str(epochs),
        "optimizer": f"{type(run.optimizer).__name__} {run.optimizer.defaults}",
        "scheduler": f"{type(run.scheduler).__name__} {steps}, stepped per {scheduler_step}",
        "criterion": _name(criterion),
    }


def _name(criterion: Any) -> str:
    """A name without addresses in memory, which differ from run to run."""
    if isinstance(criterion, functools.partial):
        return f"{_name(criterion.func)} {criterion.keywords}"
    return (
        repr(criterion)
        if isinstance(criterion, nn.Module)
        else getattr(criterion, "__qualname__", type(criterion).__name__)
    )


def _differences(saved: dict[str, str], now: dict[str, str]) -> list[str]:
    lines = []
    for key in now:
        if saved.get(key) != now[key]:
            old, new = str(saved.get(key)).splitlines(), now[key].splitlines()
            changed = [line for line in difflib.ndiff(old, new) if line[0] in "-+"]
            lines += [f"{key}:", *(f"  {line}" for line in changed)]
    return lines
