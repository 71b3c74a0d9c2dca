"""Checkpoints: save and load them safely, and resume a training run to the bit.

`fit` saves everything that changes while it trains, and the settings of the run beside it. A checkpoint is resumed
only by a run with the same settings; where code has been edited since, a warning says so.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import enum
import functools
import hashlib
import io
import platform
import random
import tempfile
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from kit.averaging import WeightAverage
from kit.data import ImageData, on_unit_scale
from kit.fingerprint import code_checksums, is_own, methods
from kit.runtime import (
    device_of,
    from_all,
    from_first,
    interrupt_later,
    raise_interrupt,
    rank_and_world,
    write_atomically,
)
from kit.settings import as_plain, captured_by, differences, incomparable, name_of, names_in, slots_of

_SEAL = b"KITSHA01"  # a checkpoint is torch.save's bytes, this mark and the SHA-256 of those bytes

# ------------------------------------------------------------------------------------------------------- Files


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write `state`, tensors and plain values, to `path` ("~" is your home): whole or not at all, with a checksum."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_atomically(Path(path).expanduser(), payload + _SEAL + hashlib.sha256(payload).digest())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the state that `save_checkpoint` wrote to `path`, on the CPU; `fit` saves the weights as "model".

    Raises FileNotFoundError, or ValueError for a file that is damaged, foreign, or holds anything but tensors
    and plain values: such a file is never unpickled into code.
    """
    whole = Path(path).expanduser().read_bytes()
    payload, seal, digest = whole[:-40], whole[-40:-32], whole[-32:]
    if seal != _SEAL:
        raise ValueError(f"{path} is cut short or is no checkpoint of this kit: it lacks the closing checksum")
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError(f"{path} is damaged: its checksum does not match; delete it, or restore a sound copy")
    try:
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} was refused: it holds more than tensors and plain values ({error})") from error


# ---------------------------------------------------------------------------------------------- Save and resume


class Run(NamedTuple):
    """All that changes while `fit` trains, and so all that a checkpoint must hold."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: Any
    train_batches: Any
    test_batches: Any
    history: Any
    average: WeightAverage | None
    criteria: dict[str, Any]  # "criterion" and "test_criterion"


def save_run(run: Run, settings: dict[str, Any], path: str | Path) -> None:
    """Save the state of `run`, with the random states of all processes; the first process writes the file."""
    state = _snapshot(run) | {"settings": settings, "data": _statistics_of(run.train_batches)}
    from_first(lambda: save_checkpoint(path, state))
    if len(run.history) == 1:  # what cannot be read back must be known before the training goes on
        from_first(lambda: load_checkpoint(path) and None)
        if rank_and_world()[0] == 0:
            _warn_of_changes(run, settings)


def _warn_of_changes(run: Run, settings: dict[str, Any]) -> None:
    """Name what has changed since the start in the network, the batches and criteria, and is not saved with them."""
    criteria = {name: criterion for name, criterion in run.criteria.items() if not isinstance(criterion, nn.Module)}
    now: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # whatever training has put there, the run goes on
        now = {
            "model": _plain_model(run.model),
            "train_batches": _plain_batches(run.train_batches),
            "test_batches": _plain_batches(run.test_batches),
            **as_plain(criteria, (run.model, run.optimizer)),
        }
    changed = differences({name: settings[name] for name in now}, now)
    # The state of a generator is saved, and a frozen module may be in either mode between two epochs.
    changed = [line for line in changed if ".initial_seed: " not in line and ".training: " not in line]
    if changed:
        shown = [line[:200].replace(": saved ", ": was ") for line in changed[:10]]
        more = [f"and {len(changed) - 10} more"] if len(changed) > 10 else []
        warnings.warn(
            "checkpoint: these changed during the first epoch and are not saved, so a run that is resumed may not go "
            "on exactly; keep what counts in a buffer of the network (register_buffer), or leave checkpoint out:\n  "
            + "\n  ".join(shown + more),
            stacklevel=4,
        )


def try_folder(path: str | Path) -> None:
    """Raise OSError now, not after the first epoch, if nothing can be written beside `path`."""
    folder = Path(path).expanduser().parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def tidy_options(run: Run) -> None:
    """Replace NumPy's numbers among the options: a file with them is refused, and float32 is rounded otherwise.

    And note the first learning rates of a ReduceLROnPlateau, which it does not do itself: what moves since is no
    setting.
    """
    if isinstance(run.scheduler, ReduceLROnPlateau) and not hasattr(run.scheduler, _FIRST_RATES):
        setattr(run.scheduler, _FIRST_RATES, [group["lr"] for group in run.optimizer.param_groups])
    schedulers = [run.scheduler] if run.scheduler is not None else []
    for scheduler in schedulers:
        schedulers += getattr(scheduler, "_schedulers", [])
    for options in [*run.optimizer.param_groups, *(vars(scheduler) for scheduler in schedulers)]:
        options.update(_without_numpy(options))


def resume(run: Run, settings: dict[str, Any], path: str | Path, verbose: bool) -> None:
    """Bring `run` to the state saved in `path`, if there is one: either all of it, or nothing changes.

    A random state whose generator is unavailable, such as that of a GPU in a run on the CPU, is left out, and a
    warning says so. Raises ValueError for a checkpoint of another run, or one that does not fit.
    """
    state = from_first(lambda: _load_for(settings, path))
    if state is None:
        return
    before, problem = copy.deepcopy(_snapshot(run)), None
    with interrupt_later():
        try:
            missing = _restore(run, state)
        except Exception as error:
            problem = error
        if any(from_all(problem is not None)):
            _restore(run, before)
            raise ValueError(f"{path} does not fit this run, which is unchanged: {problem}") from problem
    raise_interrupt()
    if missing and rank_and_world()[0] == 0:
        warnings.warn(
            f"{path}: the run goes on with other random numbers than without the stop, for these random states are "
            f"in the file or in this process, but not in both: {', '.join(missing)}",
            stacklevel=3,
        )
    if verbose:
        print(f"{path} holds {len(run.history)} finished epochs of this run: going on from there.", flush=True)


def _load_for(settings: dict[str, Any], path: str | Path) -> dict[str, Any] | None:
    """The state in `path`, if a run with these settings saved it; None without a file."""
    if not Path(path).expanduser().exists():
        return None
    state = load_checkpoint(path)
    (saved, code), (now, code_now) = map(_apart_from_code, (state.get("settings", {}), settings))
    if lines := differences(saved, now):
        raise ValueError(
            f"{path} belongs to another run; give checkpoint another name, or delete the file to start afresh. "
            "What differs:\n  " + "\n  ".join(lines)
        )
    both = code.keys() & code_now.keys() if code.get("python") == code_now["python"] else set()
    if changed := sorted(name for name in both if code[name] != code_now[name]):
        warnings.warn(
            f"{path}: this code has been changed since the file was saved: {', '.join(changed)}. The epochs so far "
            "were trained by the code before, the run goes on with that of now; delete the file to start afresh",
            stacklevel=3,
        )
    return state


def _apart_from_code(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    return {name: part for name, part in settings.items() if name != "code"}, settings.get("code", {})


def _snapshot(run: Run) -> dict[str, Any]:
    """The state of `run`, as tensors and plain values; the tensors are the live ones."""
    state = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict() if run.scheduler is not None else None,
        "history": dataclasses.asdict(run.history),
        "average": run.average.state_dict() if run.average is not None else None,
        "criteria": [criterion.state_dict() for criterion in _modules_of(run.criteria)],
        "losses": _losses_of(run.train_batches),
    }
    return {key: _without_numpy(item) for key, item in state.items()} | {"generators": from_all(_random_states(run))}


def _restore(run: Run, state: dict[str, Any]) -> list[str]:
    """Bring `run` to `state`; return the names of random states that are in one of them only."""
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    if run.scheduler is not None:
        run.scheduler.load_state_dict(state["scheduler"])
    if run.average is not None:
        run.average.load_state_dict(state["average"])
    for criterion, saved in zip(_modules_of(run.criteria), state.get("criteria", []), strict=False):
        criterion.load_state_dict(saved)
    if (losses := _losses_of(run.train_batches)) is not None:
        losses.copy_(state["losses"])
    for field in dataclasses.fields(run.history):
        getattr(run.history, field.name)[:] = state["history"][field.name]
    states, generators = state["generators"][rank_and_world()[0]], _generators_of(run)
    for name in states.keys() & generators.keys():
        _set_state(generators[name], states[name])
    return sorted(states.keys() ^ generators.keys())


def _modules_of(criteria: dict[str, Any]) -> list[nn.Module]:
    """The criteria that may learn, or hold weights of the classes."""
    return [criterion for criterion in criteria.values() if isinstance(criterion, nn.Module)]


def _losses_of(batches: Any) -> Tensor | None:
    """The last loss of each image, where `Batches` draws by it: saved with the run, but no setting."""
    losses = getattr(batches, "losses", None)
    return losses if isinstance(losses, Tensor) and hasattr(batches, "note_losses") else None


def _without_numpy(state: Any) -> Any:
    """`state` with Python's numbers in place of NumPy's."""
    if isinstance(state, numpy.generic):
        return state.item()
    if type(state) in (list, tuple):
        return type(state)(map(_without_numpy, state))
    return {key: _without_numpy(item) for key, item in state.items()} if type(state) is dict else state


def _statistics_of(batches: Any) -> dict[str, Any] | None:
    """What a program that uses the network needs to know of the training images."""
    data = getattr(batches, "data", None)
    if not isinstance(data, ImageData):
        return None
    described = {"images": len(data), "mean": list(data.mean), "std": list(data.std), "classes": list(data.classes)}
    return described | {"unit_scale": on_unit_scale(data.images)}


# ------------------------------------------------------------------------------------------------ Random states

_DEEP = 50  # objects inside objects: deeper ones are chains of data, not what draws random numbers


def _random_states(run: Run) -> dict[str, Any]:
    return {name: _state_of(generator) for name, generator in _generators_of(run).items()}


def _generators_of(run: Run) -> dict[str, Any]:
    """Every random generator that training draws from, by name, with its device unless that is the CPU."""
    device = device_of(run.model)
    generators = {"torch": torch.default_generator, "python": random, "numpy": numpy.random}
    if device.type in ("cuda", "mps"):
        generators[device.type] = device
    batches = {"train_batches": run.train_batches, "test_batches": run.test_batches}
    owners = batches | run.criteria | {"model": run.model, "scheduler": run.scheduler}
    for name, owner in owners.items():
        for path, generator in _generators_in(owner, name, {id(run.model), id(run.optimizer)} - {id(owner)}):
            kind = generator.device.type if isinstance(generator, torch.Generator) else "cpu"
            generators[path if kind == "cpu" else f"{path} on {kind}"] = generator
    return generators


_GENERATOR = torch.Generator | numpy.random.Generator | numpy.random.RandomState | random.Random


def _generators_in(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The random generators in `value`, its attributes and their parts, each with the path that leads to it."""
    return ((place, part) for place, part in _reached_from(value, path, seen) if isinstance(part, _GENERATOR))


def _reached_from(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """`value`, its attributes and their parts, each once, with the path that leads to it; those in `seen` are left."""
    waiting = [(value, path, 0)]
    while waiting:
        value, path, depth = waiting.pop()
        if id(value) in seen or depth > _DEEP:
            continue
        seen.add(id(value))
        yield path, value
        parts = _parts_of(value).items()
        waiting += [(part, f"{path}.{key}", depth + 1) for key, part in reversed(parts)]


def _parts_of(value: Any) -> dict[Any, Any]:
    """What `value` may hold or read a random generator, or code, in, by name."""
    parts: dict[Any, Any] = {}
    if isinstance(value, _GENERATOR):
        pass
    elif isinstance(value, types.FunctionType):
        parts = _read_by(value)
    elif isinstance(value, types.MethodType):
        parts = {"self": value.__self__, "function": value.__func__}
    elif isinstance(value, types.BuiltinFunctionType):  # of an object, or of a module
        parts = {"self": value.__self__}
    elif isinstance(value, functools.partial):
        parts = {"func": value.func, "args": value.args, **value.keywords}
    elif isinstance(value, list | tuple | dict):  # long ones are data
        parts = dict(value.items() if isinstance(value, dict) else enumerate(value)) if len(value) <= 100 else {}
    elif not isinstance(value, type | types.ModuleType | Tensor):
        left_out = ("_iterator", "_modules", "_parameters", "_buffers")
        with contextlib.suppress(Exception):  # objects without attributes, or with a `__dict__` of their own making
            parts = {key: item for key, item in vars(value).items() if key not in left_out}
        parts |= slots_of(value)
        if isinstance(value, nn.Module):
            parts |= value._modules
        for cls in filter(lambda cls: is_own(cls.__module__), type(value).__mro__):
            parts |= {f"{cls.__name__}.{name}": item for name, item in vars(cls).items() if not name.startswith("__")}
            parts |= {f"{method.__name__}()": method for method in methods(cls)}
    return parts


def _read_by(function: types.FunctionType) -> dict[Any, Any]:
    """What a function draws from may be captured, a default, or a global of the user's module."""
    parts = captured_by(function) | dict(enumerate(function.__defaults__ or ())) | (function.__kwdefaults__ or {})
    if is_own(function.__module__):
        names = names_in(function.__code__)
        parts |= {name: function.__globals__.get(name) for name in names.loaded}
        for name, module in [*parts.items()]:
            if isinstance(module, types.ModuleType) and is_own(module.__name__):
                found = {f"{name}.{attribute}": getattr(module, attribute, None) for attribute in names.attributes}
                parts |= {key: item for key, item in sorted(found.items()) if not isinstance(item, types.ModuleType)}
    return parts


def _state_of(generator: Any) -> Any:
    if isinstance(generator, torch.device):
        return _on_device(generator, "get_rng_state")
    if isinstance(generator, numpy.random.Generator):
        return _lists(generator.bit_generator.state)
    if isinstance(generator, random.Random) or generator is random:
        return generator.getstate()
    return _lists(generator.get_state())


def _lists(state: Any) -> Any:
    """`state` with lists in place of NumPy's arrays, which a checkpoint could not be read with."""
    if isinstance(state, dict):
        return {key: _lists(item) for key, item in state.items()}
    if isinstance(state, tuple):
        return tuple(map(_lists, state))
    return state.tolist() if isinstance(state, numpy.ndarray) else state


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.device):
        _on_device(generator, "set_rng_state", state)
    elif isinstance(generator, numpy.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random) or generator is random:
        generator.setstate(state)
    else:
        generator.set_state(state)


def _on_device(device: torch.device, function: str, *state: Tensor) -> Any:
    """Call a function of torch.cuda or torch.mps, which has one GPU only."""
    return getattr(getattr(torch, device.type), function)(*state, *([device] if device.type == "cuda" else []))


# ----------------------------------------------------------------------------------------------------- Settings

# What torch's schedulers change while they step.
_MOVING = {"last_epoch", "best", "num_bad_epochs", "cooldown_counter", "T_cur", "T_i"}
_MOVING |= {"_last_lr", "_step_count", "_is_initial", "_get_lr_called_within_step"}
_FIRST_RATES = "first_learning_rates"  # kept with a ReduceLROnPlateau, whose optimizer keeps none


def describe_run(run: Run, **settings: Any) -> dict[str, Any]:
    """Return the settings of `run` and further `settings` as plain data: what does not change during training.

    "code" holds checksums of the code of the run's parts, by name. A warning names what cannot be compared. Raises
    ValueError for batches whose random states cannot be saved.
    """
    for name, batches in (("train_batches", run.train_batches), ("test_batches", run.test_batches)):
        if getattr(batches, "persistent_workers", False):
            raise ValueError(
                f"{name} keep their workers from epoch to epoch, and what these have drawn cannot be saved; give the "
                "DataLoader persistent_workers=False, or leave checkpoint out"
            )
    known = (run.model, run.optimizer)
    settings |= {name: _untrained(criterion, known) for name, criterion in run.criteria.items()}
    described = {
        "model": _plain_model(run.model),
        "optimizer": _plain_optimizer(run),
        "scheduler": _plain_scheduler(run.scheduler, run.optimizer),
        "train_batches": _plain_batches(run.train_batches),
        "test_batches": _plain_batches(run.test_batches),
        "processes": rank_and_world()[1],
        "code": _code(run),
        **{name: as_plain(value, known) for name, value in settings.items()},
    }
    if (unknown := _incomparable_in(run.model) + incomparable(described)) and rank_and_world()[0] == 0:
        warnings.warn(
            "checkpoint: whether these are still the same when the run is resumed cannot be checked, so keep them "
            f"the same: {', '.join(unknown)}",
            stacklevel=3,
        )
    return described


def _untrained(criterion: Any, known: tuple[nn.Module, Optimizer]) -> Any:
    """A copy of a criterion without the values that training changes, or what is no module as it is."""
    if not isinstance(criterion, nn.Module):
        return criterion
    model, optimizer = known
    learning = {id(weight): weight for weight in criterion.parameters() if weight.requires_grad}
    moving = {id(buffer): buffer for buffer in model.buffers()}
    held = {*map(id, criterion.modules())} & {*map(id, model.modules())}
    kept = {id(value) for part in criterion.modules() for value in vars(part).values() if _is_computed(value)}
    if not (learning or held or kept):
        return criterion
    copies: dict[int, Any] = {key: nn.Parameter(torch.zeros_like(weight)) for key, weight in learning.items()}
    copies |= {key: torch.zeros_like(buffer) for key, buffer in moving.items()}
    copies |= dict.fromkeys(kept)
    return copy.deepcopy(criterion, copies | {id(model): nn.Module(), id(optimizer): optimizer})


def _is_computed(value: Any) -> bool:
    """Whether `value` is the result of a forward pass, such as a loss that a criterion keeps."""
    return isinstance(value, Tensor) and not value.is_leaf


def _plain_model(model: nn.Module) -> dict[str, Any]:
    """Its modules with their plain attributes, its parameters' shapes, and what the user has frozen."""
    modules = {}
    for name, module in model.named_modules():
        public = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        public["training"] = module.training or not model.training  # a frozen module says False
        compared = {key: value for key, value in public.items() if _is_setting(value)}
        modules[name or "all"] = {"class": name_of(type(module))} | as_plain(compared, tuple(model.modules()))
    return {
        "modules": modules,
        "parameters": {
            name: f"{tensor.dtype} {tuple(tensor.shape)}{'' if tensor.requires_grad else ' frozen'}"
            for name, tensor in model.named_parameters()
        },
    }


_SETTING = bool | int | float | str | list | tuple | dict | numpy.generic | enum.Enum | torch.dtype | type | None
_SETTING |= types.FunctionType | types.BuiltinFunctionType | functools.partial


def _is_setting(value: Any) -> bool:
    """Whether an attribute of a module can be compared, and does not change in training as an object may."""
    is_config = dataclasses.is_dataclass(value) and not isinstance(value, nn.Module)
    return (isinstance(value, _SETTING) or is_config) and not _made_by_torch(value)


def _incomparable_in(model: nn.Module) -> list[str]:
    """A line for each public attribute that may be a setting and is not compared, since it may be state as well."""
    return [
        f"model.modules.{name or 'all'}.{key} ({name_of(type(value))})"
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if not (key.startswith("_") or _is_setting(value) or isinstance(value, nn.Module))
        and (isinstance(value, Tensor | numpy.ndarray) or is_own(type(value).__module__))
        and not _is_derived(module, key)
    ]


def _is_derived(module: nn.Module, name: str) -> bool:
    """Whether weight_norm, spectral_norm or pruning makes a tensor of `module` from parameters of a similar name."""
    return any(hasattr(module, name + ending) for ending in ("_g", "_orig", "_mask"))


def _made_by_torch(value: Any) -> bool:
    """Whether `value` was made by a function of a library, as the forward pass is by torch.compile."""
    return isinstance(value, types.FunctionType) and "<locals>" in value.__qualname__ and not is_own(value.__module__)


def _code(run: Run) -> dict[str, str]:
    """Checksums of the project's code in the parts of `run`; bytecode differs between versions of Python."""
    owners = [run.model, run.scheduler, run.train_batches, run.test_batches, *run.criteria.values()]
    seen = {id(run.optimizer)}
    parts = [run.optimizer, *(part for owner in owners for _, part in _reached_from(owner, "", seen))]
    things = [part if isinstance(part, types.FunctionType | type) else type(part) for part in parts]
    in_classes = {name_of(method) for thing in things if isinstance(thing, type) for method in methods(thing)}
    things = [thing for thing in things if name_of(thing) not in in_classes]  # their class is named
    return {"python": ".".join(platform.python_version_tuple()[:2])} | code_checksums(*things)


def _plain_optimizer(run: Run) -> dict[str, Any]:
    names = {id(tensor): name for name, tensor in run.model.named_parameters()}
    first = getattr(run.scheduler, _FIRST_RATES, [])
    groups = []
    for place, group in enumerate(run.optimizer.param_groups):
        # A scheduler moves lr, whose start is initial_lr; one that moves the momentum too leaves max_momentum.
        moving = {"params", *(["lr"] if "initial_lr" in group else [])}
        moving |= {"momentum", "betas"} if "max_momentum" in group else set()
        options = as_plain({key: value for key, value in group.items() if key not in moving})
        options |= {"lr": as_plain(first[place])} if place < len(first) and "initial_lr" not in group else {}
        groups.append(options | {"params": [names.get(id(tensor), "not in model") for tensor in group["params"]]})
    return {"class": name_of(type(run.optimizer)), "groups": groups}


def _plain_scheduler(scheduler: Any, optimizer: Optimizer) -> dict[str, Any] | None:
    if scheduler is None:
        return None
    constant = {
        key: value for key, value in vars(scheduler).items() if key not in {*_MOVING, _FIRST_RATES, "optimizer"}
    }
    nested = [_plain_scheduler(part, optimizer) for part in constant.pop("_schedulers", [])]
    described = {"class": name_of(type(scheduler))} | as_plain(constant, (scheduler, optimizer))
    return described | ({"schedulers": nested} if nested else {})


def _plain_batches(batches: Any) -> Any:
    if not isinstance(batches, DataLoader):
        if isinstance(batches, list | tuple) or not hasattr(batches, "__dict__"):
            return as_plain(batches)
        public = {key: value for key, value in vars(batches).items() if not key.startswith("_")}
        if _losses_of(batches) is not None:
            public.pop("losses", None)  # it may be a property
        return _plain_parts(batches, public | {"data": _plain_data(getattr(batches, "data", None))})
    dataset = batches.dataset
    options = ("batch_size", "drop_last", "num_workers", "collate_fn", "worker_init_fn", "generator")
    described = {"class": name_of(type(batches)), "dataset": _plain_data(dataset)}
    described |= {name: as_plain(getattr(batches, name), (dataset,)) for name in options}
    for name in ("sampler", "batch_sampler"):
        sampler = getattr(batches, name)
        known = (dataset, batches.sampler)  # a batch sampler may hold the sampler
        described[name] = _plain_parts(sampler, getattr(sampler, "__dict__", {}), *known)
    inner = getattr(batches.batch_sampler, "sampler", batches.sampler)
    if inner is not batches.sampler:  # it came with the batch sampler, and its epoch moves too
        described["batch_sampler"]["sampler"] = _plain_parts(inner, getattr(inner, "__dict__", {}), dataset)
    return described


def _plain_parts(owner: Any, attributes: dict[str, Any], *known: Any) -> dict[str, Any]:
    """The class and attributes of what yields batches or indices, without its position and place."""
    constant = {key: value for key, value in attributes.items() if key not in ("epoch", "device")}
    if not hasattr(owner, "__dict__"):
        return as_plain(owner)
    return {"class": name_of(type(owner))} | as_plain(constant, (owner, *known))


def _plain_data(data: Any) -> Any:
    """A fingerprint of a dataset: of an `ImageData` its tensors and statistics, of any other all its attributes."""
    if isinstance(data, ImageData):
        data = {name: getattr(data, name) for name in ("images", "labels", "classes", "mean", "std")}
    return as_plain(data)
