"""Settings as plain data: what is stored with a result must be readable, comparable and free of addresses."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import types
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import Tensor, nn


def as_plain(value: Any) -> Any:
    """Return `value` as plain data that JSON can hold: equal settings give equal data, in any process.

    Numbers, texts, lists and dictionaries stay. A tensor or array becomes its type, shape and checksum; a function
    that can be imported becomes its name; a lambda or a function defined inside another one, or in a notebook,
    becomes its name and a checksum of its code, defaults and captured values; any other object becomes its class
    and its attributes.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, numpy.generic):
        return value.item()
    if isinstance(value, Tensor | numpy.ndarray):
        return _plain_tensor(torch.as_tensor(value))
    if isinstance(value, dict):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, functools.partial):
        return {"partial": as_plain(value.func), "args": as_plain(value.args), "keywords": as_plain(value.keywords)}
    if isinstance(value, types.MethodType):
        return {"method": value.__func__.__qualname__, "of": as_plain(value.__self__)}
    if isinstance(value, types.FunctionType):
        return _plain_function(value)
    if isinstance(value, type | types.BuiltinFunctionType):
        return name_of(value)
    if isinstance(value, torch.dtype | torch.device | torch.memory_format):
        return str(value)
    return _plain_object(value)


def name_of(value: Any) -> str:
    """Return the full name of a class or function, such as "torch.optim.sgd.SGD"."""
    return f"{value.__module__}.{value.__qualname__}"


def checksum(*parts: bytes) -> str:
    """Return the SHA-256 of `parts`, as 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def differences(saved: Any, now: Any, name: str = "") -> list[str]:
    """Return one line for each setting that differs: "name: saved value, now value"."""
    if isinstance(saved, dict) and isinstance(now, dict):
        keys = [*now, *(key for key in saved if key not in now)]
        nested = [differences(saved.get(key), now.get(key), f"{name}.{key}" if name else str(key)) for key in keys]
        return [line for lines in nested for line in lines]
    if isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        nested = [differences(*pair, f"{name}[{place}]") for place, pair in enumerate(zip(saved, now, strict=True))]
        return [line for lines in nested for line in lines]
    return [] if saved == now else [f"{name}: saved {saved!r}, now {now!r}"]


def _plain_tensor(tensor: Tensor) -> dict[str, Any]:
    values = tensor.detach().cpu().contiguous()
    raw = values.reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b""
    return {"tensor": str(tensor.dtype), "shape": list(tensor.shape), "checksum": checksum(raw)}


def _plain_function(function: types.FunctionType) -> Any:
    name = name_of(function)
    if "<" not in name and function.__module__ != "__main__":
        return name
    captured = [as_plain(value) for value in inspect.getclosurevars(function).nonlocals.values()]
    return {
        "function": function.__qualname__,
        "code": checksum(*code_parts(function.__code__)),
        "defaults": as_plain([function.__defaults__, function.__kwdefaults__]),
        "captured": captured,
    }


def code_parts(code: types.CodeType) -> Iterator[bytes]:
    """Yield what makes up a function, wherever it stands: its instructions, names and constants."""
    yield code.co_code
    yield repr((code.co_names, code.co_varnames)).encode()
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from code_parts(constant)
        elif isinstance(constant, frozenset):  # its order differs from process to process
            yield repr(sorted(map(repr, constant))).encode()
        else:
            yield repr(constant).encode()


def _plain_object(value: Any) -> dict[str, Any]:
    """The class and attributes of an object; a module's include its parameters and buffers."""
    if dataclasses.is_dataclass(value):
        attributes = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, nn.Module):
        public = {key: item for key, item in vars(value).items() if not key.startswith("_")}
        attributes = public | dict(value.state_dict()) | dict(value.named_children())
    else:
        attributes = dict(getattr(value, "__dict__", {}))
    return {"class": name_of(type(value))} | {key: as_plain(item) for key, item in attributes.items()}
