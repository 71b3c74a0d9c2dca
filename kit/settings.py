"""Settings as plain data: what is stored with a result must be readable, comparable and free of addresses."""

from __future__ import annotations

import contextlib
import dataclasses
import dis
import enum
import functools
import hashlib
import itertools
import math
import numbers
import pathlib
import random
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn

NOT_COMPARED = "not compared"  # marks an object of whose settings as_plain sees nothing but the class
_LONG = 1000  # a longer list is replaced by its checksum
_DEEP = 12  # objects inside objects: deeper ones are not compared


def as_plain(value: Any, known: tuple[Any, ...] = ()) -> Any:
    """Return `value` as plain data that JSON can hold: equal settings give equal data, in any process.

    Numbers, texts, lists and dictionaries stay. A tensor or array becomes its type, shape and checksum; a function
    that can be imported becomes its name; a lambda or a function defined inside another one, or in a notebook,
    becomes its name and a checksum of its code, with its defaults and the values that it refers to; any other
    object becomes its class and its attributes. Of an object that hides its attributes, as many do that are written
    in C, the class alone is left: `incomparable` finds these. So it is for the objects in `known`, which are
    described elsewhere.
    """
    return _plain(value, frozenset(map(id, known)), ())


def incomparable(plain: Any, name: str = "") -> list[str]:
    """Return a line for each part of `plain`, made by `as_plain`, of which only the class is known."""
    if isinstance(plain, dict):
        if plain.get(NOT_COMPARED):
            return [f"{name} ({plain['class']})"]
        return [line for key, item in plain.items() for line in incomparable(item, f"{name}.{key}" if name else key)]
    if isinstance(plain, list):
        return [line for place, item in enumerate(plain) for line in incomparable(item, f"{name}[{place}]")]
    return []


def name_of(value: Any) -> str:
    """Return the full name of a class or function, such as "torch.optim.sgd.SGD"."""
    return f"{value.__module__}.{value.__qualname__}"


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """Return `value`, of Python or NumPy, as an int; raise ValueError unless it is whole and at least `least`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least {least}")
    return int(value)


def real_number(name: str, value: Any, most: float = math.inf) -> float:
    """Return `value`, of Python or NumPy, as a float; raise ValueError unless it is finite and from 0 to `most`."""
    if not _is_finite(value) or not 0 <= value <= most:
        limits = "of at least 0" if math.isinf(most) else f"from 0 to {most}"
        raise ValueError(f"{name} is {value!r}; expected a finite number {limits}")
    return float(value)


def positive_number(name: str, value: Any, most: float = math.inf) -> float:
    """Return `value` as `real_number` does; raise ValueError for 0 as well."""
    if not _is_finite(value) or not 0 < value <= most:
        limit = "" if math.isinf(most) else f" and at most {most}"
        raise ValueError(f"{name} is {value!r}; expected a finite number above 0{limit}")
    return float(value)


def refuse_uncallable(name: str, value: Any, *, or_class: bool = False) -> None:
    """Raise TypeError unless `value` can be called; a class, which makes such objects, counts only with `or_class`."""
    if not callable(value):
        raise TypeError(f"{name} is {value!r}; expected something to call")
    if isinstance(value, type) and not or_class:
        raise TypeError(f"{name} is the class {value.__name__}; expected an object of it: {value.__name__}()")


def _is_finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def checksum(*parts: Any) -> str:
    """Return the SHA-256 of `parts`, bytes or contiguous arrays, as 16 hexadecimal digits."""
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
    both_nan = saved != saved and now != now
    return [] if saved == now or both_nan else [f"{name}: saved {saved!r}, now {now!r}"]


def _plain(value: Any, known: frozenset[int], owners: tuple[int, ...]) -> Any:
    """`as_plain` of `value`, a part of the objects with the ids `owners`, which are not described once more."""
    simple = _plain_number(value)
    if simple is not None or value is None:
        return simple
    if isinstance(value, type | types.BuiltinFunctionType):
        return name_of(value)
    if isinstance(value, types.ModuleType):
        return value.__name__
    if isinstance(value, Tensor):
        return _plain_tensor(value)
    if id(value) in known or id(value) in owners:
        return {"class": name_of(type(value))}
    if len(owners) > _DEEP:
        return {"class": name_of(type(value)), NOT_COMPARED: True}
    plain = functools.partial(_plain, known=known, owners=(*owners, id(value)))
    if isinstance(value, numpy.ndarray):
        return plain(value.tolist()) if value.dtype.hasobject else _plain_array(value)
    if isinstance(value, dict):
        return {str(key) if _plain_number(key) is not None else str(plain(key)): plain(value[key]) for key in value}
    if isinstance(value, list | tuple):
        items = [plain(item) for item in value]
        return items if len(items) <= _LONG else {"list": len(items), "checksum": checksum(repr(items).encode())}
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=repr)
    if isinstance(value, functools.partial):
        return {"partial": plain(value.func), "args": plain(value.args), "keywords": plain(value.keywords)}
    if isinstance(value, types.MethodType):
        return {"method": value.__func__.__qualname__, "of": plain(value.__self__)}
    if isinstance(value, types.FunctionType):
        return _plain_function(value, plain)
    return _plain_object(value, plain)


def _plain_number(value: Any) -> Any:
    """A number or text as Python's own, whatever library it is of; None if `value` is neither."""
    if isinstance(value, enum.Enum):
        return f"{name_of(type(value))}.{value.name}"
    kinds: Any = ((str, str), (bool | numpy.bool_, bool), (numbers.Integral, int), (numbers.Real, float))
    for general, plain in kinds:
        if isinstance(value, general):
            return plain(value)
    if isinstance(value, pathlib.PurePath | torch.dtype | torch.device | torch.layout | torch.memory_format):
        return str(value)
    if isinstance(value, complex | numpy.generic | range | slice):
        return repr(value)
    return checksum(value) if isinstance(value, bytes | bytearray) else None


def _plain_tensor(tensor: Tensor) -> dict[str, Any]:
    values = tensor.detach().cpu()
    values = values.contiguous() if values.layout == torch.strided else values.to_dense()
    raw = values.reshape(-1).view(torch.uint8).numpy() if values.numel() else b""
    return {"tensor": str(tensor.dtype), "shape": list(tensor.shape), "checksum": checksum(raw)}


def _plain_array(array: numpy.ndarray) -> dict[str, Any]:
    raw = numpy.ascontiguousarray(array).reshape(-1).view(numpy.uint8) if array.size else b""
    return {"array": str(array.dtype), "shape": list(array.shape), "checksum": checksum(raw)}


def _plain_function(function: types.FunctionType, plain: Any) -> Any:
    name = name_of(function)
    if "<" not in name and function.__module__ != "__main__":
        return name
    used = {
        key: function.__globals__[key]
        for key in sorted(names_in(function.__code__).loaded)
        if key in function.__globals__
    }
    return {
        "function": function.__qualname__,
        "code": checksum(*code_parts(function.__code__)),
        "defaults": plain([function.__defaults__, function.__kwdefaults__]),
        "captured": plain(captured_by(function)),
        "globals": {key: _plain_global(item, plain) for key, item in used.items()},
    }


def _plain_global(value: Any, plain: Any) -> Any:
    """A global variable that a function refers to: a setting, or anything else that a notebook holds."""
    comparable = type | types.FunctionType | types.BuiltinFunctionType | types.ModuleType
    comparable |= Tensor | list | tuple | dict | None
    if isinstance(value, comparable) or _plain_number(value) is not None:
        return plain(value)
    return {"class": name_of(type(value)), NOT_COMPARED: True}


def code_parts(code: types.CodeType) -> Iterator[bytes]:
    """Yield what makes up a function, wherever it stands: its instructions, names and constants."""
    if "__firstlineno__" in code.co_names:  # a class body, which keeps its line number since Python 3.13
        instructions = list(dis.get_instructions(code))
        line = [step.argval for step in instructions].index("__firstlineno__") - 1
        for step in (*instructions[:line], *instructions[line + 2 :]):
            yield step.opname.encode()
            yield from _constant_parts(step.argval)
        return
    yield code.co_code
    yield getattr(code, "co_exceptiontable", b"")  # Python 3.11 and newer: which `try` each instruction is in
    yield repr((code.co_names, code.co_varnames)).encode()
    for constant in code.co_consts:
        yield from _constant_parts(constant)


def _constant_parts(constant: Any) -> Iterator[bytes]:
    if isinstance(constant, types.CodeType):
        yield from code_parts(constant)
    else:  # a set's order differs from process to process
        yield repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant).encode()


def captured_by(function: types.FunctionType) -> dict[str, Any]:
    """Return the variables of enclosing functions that `function` reads, by name."""
    captured = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # a cell that is still empty
            captured[name] = cell.cell_contents
    return captured


def slots_of(value: Any) -> dict[str, Any]:
    """Return what the slots of `value` hold, by name, without the empty ones."""
    held = {}
    for kind in type(value).__mro__:
        slots = vars(kind).items() if "__slots__" in vars(kind) else ()
        for name, slot in slots:
            if isinstance(slot, types.MemberDescriptorType):
                with contextlib.suppress(AttributeError):  # empty; `getattr` would call `__getattr__`
                    held[name] = slot.__get__(value)
    return held


class Names(NamedTuple):
    """What a piece of code and the functions within it name."""

    loaded: set[str]  # global variables
    imported: set[tuple[str, tuple[str, ...], int]]  # (module, names imported from it, number of leading dots)
    attributes: set[str]
    paths: set[str]  # variables with the attributes that are read of them at once, such as "layers.blocks.size"
    passed_on: set[str]  # those of them of which anything may be read elsewhere, by another name


@functools.cache
def names_in(code: types.CodeType) -> Names:
    """Return the names in `code` and in the functions within it; do not change them, they are kept."""
    names = Names(set(), set(), set(), set(), set())
    bound: set[str] = set()  # a class body reads its own names by the instruction that reads globals
    path = ""
    before: list[Any] = [None, None]  # the two values that were loaded last
    for step in dis.get_instructions(code):
        if step.opname == "EXTENDED_ARG":
            continue
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            path = f"{path}.{step.argval}"
            names.paths.add(path)
        else:
            if not (step.opname.startswith("STORE_") and step.argval == path):  # `import a` is stored as a
                names.passed_on.add(path)
            # Some instructions load two variables.
            path = str(step.argval[-1] if isinstance(step.argval, tuple) and step.argval else step.argval)
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):
            names.attributes.add(step.argval)
        elif step.opname == "STORE_NAME":
            bound.add(step.argval)
        elif step.opname == "LOAD_GLOBAL" or (step.opname == "LOAD_NAME" and step.argval not in bound):
            names.loaded.add(step.argval)
        elif step.opname == "IMPORT_NAME":  # behind the loading of the dots and of the names
            level, wanted = before[0] or 0, before[1] or ()
            names.imported.add((step.argval, wanted, level))
            module = "." * level + step.argval
            path = step.argval.partition(".")[0]
            parts = {f"{module}.{name}" for name in wanted} or {
                *itertools.accumulate(module.split("."), "{}.{}".format)
            }
            names.paths.update(parts)
            names.passed_on.update(parts - {path})
        before = [before[1], step.argval]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = names_in(constant)
            names.loaded.update(inner.loaded)
            names.imported.update(inner.imported)
            names.attributes.update(inner.attributes)
            names.paths.update(inner.paths)
            names.passed_on.update(inner.passed_on)
    return names


def _plain_object(value: Any, plain: Any) -> dict[str, Any]:
    """The class and attributes of an object; a module's include its parameters and buffers."""
    described = {"class": name_of(type(value))}
    if isinstance(value, torch.Generator):
        return described | {"initial_seed": value.initial_seed()}
    if isinstance(value, random.Random):  # what it has drawn says nothing about its seed
        return described | {NOT_COMPARED: True}
    if dataclasses.is_dataclass(value):
        attributes = {
            field.name: getattr(value, field.name) for field in dataclasses.fields(value) if hasattr(value, field.name)
        }
    elif isinstance(value, nn.Module):
        public = {key: item for key, item in vars(value).items() if not key.startswith("_")}
        attributes = public | dict(value.state_dict()) | dict(value.named_children())
    elif type(value).__dictoffset__:  # `hasattr` would call `__getattr__`
        attributes = vars(value) | slots_of(value)
    elif not (attributes := slots_of(value)):
        return described | {NOT_COMPARED: True}
    return described | {key: plain(item) for key, item in attributes.items()}
