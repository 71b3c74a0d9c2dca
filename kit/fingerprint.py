"""A checksum of settings and of the code behind them: it tells whether two trainings do the same.

Where `kit.settings.as_plain` names a class or function, `fingerprint` also reads its code, and that of everything
it refers to within the project. It changes when a layer, a default or a helper function changes; comments, line
numbers and names do not matter. What is installed (torch, say) or built in counts by its name.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import itertools
import json
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from kit.settings import Names, as_plain, captured_by, checksum, code_parts, name_of, names_in


def fingerprint(*values: Any) -> str:
    """Return a checksum of `values` and of the project's code behind them, as 16 hexadecimal digits.

    Equal values give equal checksums in any process of one Python version (bytecode differs between versions).
    Values may be anything: networks, functions, lambdas, classes from a notebook cell, partials, containers.
    """
    walk = _Walk()
    described = [walk.describe(value) for value in values]
    return checksum(json.dumps([described, walk.code]).encode())


def code_checksums(*things: Any) -> dict[str, str]:
    """Return, by its name, a checksum of each function and class of the project among `things` and in their code.

    That is the code of functions, methods and base classes, and of what they call by a global name; values do not
    matter, for they may change while a training runs, nor do docstrings.
    """
    checksums: dict[str, set[str]] = {}
    seen: list[Any] = []
    waiting = [*things]
    while waiting:
        thing = waiting.pop()
        if not isinstance(thing, types.FunctionType | type) or not is_own(thing.__module__):
            continue
        if any(thing is known for known in seen):
            continue
        seen.append(thing)
        outer = methods(thing) if isinstance(thing, type) else [thing]
        functions = [function for wrapper in outer for function in _unwrapped(wrapper)]
        for function in functions:
            waiting += [function.__globals__.get(name) for name in names_in(function.__code__).loaded]
        waiting += thing.__bases__ if isinstance(thing, type) else ()
        parts = (part for function in functions for part in code_parts(_without_text(function)))
        checksums.setdefault(name_of(thing), set()).add(checksum(*parts))
    return {name: " ".join(sorted(found)) for name, found in sorted(checksums.items())}


def methods(cls: type) -> list[types.FunctionType]:
    """Return the functions in the body of `cls`: methods, static and class methods, and those of properties."""
    members = [member for _, member in sorted(vars(cls).items())]
    parts = [part for member in members if isinstance(member, property) for part in (member.fget, member.fset)]
    functions = [*(getattr(member, "__func__", member) for member in members), *parts]
    return [function for function in functions if isinstance(function, types.FunctionType)]


def _unwrapped(function: Any) -> Iterator[types.FunctionType]:
    """Yield `function`, and what decorators have wrapped in it."""
    while isinstance(function, types.FunctionType):
        yield function
        function = getattr(function, "__wrapped__", None)


def _without_text(function: types.FunctionType) -> types.CodeType:
    """Return the code of `function` without its docstring."""
    code = function.__code__
    has_text = function.__doc__ is not None and code.co_consts[:1] == (function.__doc__,)
    return code.replace(co_consts=(None, *code.co_consts[1:])) if has_text else code


_MADE_BY_PYTHON = types.MemberDescriptorType | types.GetSetDescriptorType  # for `__slots__`; copies lack them


class _Walk:
    """Describes values as plain data; each function and class of the project once, in the order of discovery."""

    def __init__(self) -> None:
        self.code: list[Any] = []  # the descriptions of the functions and classes
        self.found: list[Any] = []  # the functions and classes themselves
        self.open: set[int] = set()  # ids of the objects being described, to stop at cycles
        self.state = functools.cache(_assigned_globals)

    def describe(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            return [type(value).__name__, repr(value)]
        if isinstance(value, Tensor | numpy.ndarray | numpy.generic):
            return as_plain(value)
        if isinstance(value, types.ModuleType):
            return value.__name__
        if isinstance(value, types.BuiltinFunctionType):
            return name_of(value)
        if isinstance(value, types.FunctionType | type):
            return self._code_of(value)
        if isinstance(value, functools._lru_cache_wrapper):
            return self.describe(value.__wrapped__)
        if isinstance(value, staticmethod | classmethod):
            return self.describe(value.__func__)
        if isinstance(value, property):
            return self.describe([value.fget, value.fset, value.fdel])
        if id(value) in self.open:
            return "cycle"
        self.open.add(id(value))
        try:
            return self._content(value)
        finally:
            self.open.remove(id(value))

    def _content(self, value: Any) -> Any:
        """Describe a container by its items, and any other object by what pickle would keep of it."""
        if isinstance(value, list | tuple):
            return [self.describe(type(value)), *map(self.describe, value)]
        if isinstance(value, dict):
            return [self.describe(type(value)), *([self.describe(key), self.describe(value[key])] for key in value)]
        if isinstance(value, set | frozenset):
            return [type(value).__name__, *sorted(map(self._apart, value))]
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:  # a lock, a file, a generator: only its kind can be told
            return self.describe(type(value))
        if isinstance(reduced, str):  # the name of a global
            return f"{type(value).__module__}.{reduced}"
        parts = [list(part) if isinstance(part, Iterator) else part for part in reduced]
        return [self.describe(type(value)), *map(self.describe, parts)]

    def _apart(self, value: Any) -> str:
        """Describe `value` whatever was described before it: the order of a set differs from process to process."""
        walk = _Walk()
        walk.open = self.open
        return json.dumps([walk.describe(value), walk.code])

    def _code_of(self, thing: Any) -> Any:
        if getattr(thing, "hooked", False):  # torch wraps a class's step when the first optimizer of it is made
            thing = thing.__wrapped__
        if not is_own(thing.__module__):
            return name_of(thing)
        for place, known in enumerate(self.found):
            if known is thing:
                return {"code": place}
        place = len(self.found)
        self.found.append(thing)
        self.code.append(None)
        self.code[place] = self._class(thing) if isinstance(thing, type) else self._function(thing)
        return {"code": place}

    def _class(self, cls: type) -> Any:
        members = {
            name: self.describe(member)
            for name, member in sorted(vars(cls).items())
            if isinstance(member, types.FunctionType | staticmethod | classmethod | property)
            or not (name.startswith("__") or isinstance(member, _MADE_BY_PYTHON))
        }
        return [[self.describe(base) for base in cls.__bases__], members]

    def _function(self, function: types.FunctionType) -> Any:
        captured = [self.describe(value) for value in captured_by(function).values()]
        state = self.state(function.__globals__.get("__name__"))
        used = {name: self.describe(value) for name, value in _references(function) if name not in state}
        defaults = self.describe([function.__defaults__, function.__kwdefaults__])
        return [checksum(*code_parts(function.__code__)), defaults, captured, used]


def _assigned_globals(module: str | None) -> set[str]:
    """Return the globals that functions of `module` assign, if it is the kit's: they hold what happened before.

    In a module of the user they may be settings, and count.
    """
    if module not in sys.modules or not str(module).startswith("kit."):
        return set()
    functions = [inspect.unwrap(value) for value in vars(sys.modules[module]).values() if callable(value)]
    steps = (dis.get_instructions(function) for function in functions if isinstance(function, types.FunctionType))
    return {step.argval for step in itertools.chain.from_iterable(steps) if step.opname == "STORE_GLOBAL"}


def _references(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of the globals that `function` reads, and of what it may read in the project's modules."""
    names = names_in(function.__code__)
    values = {name: value for name, value in captured_by(function).items() if isinstance(value, types.ModuleType)}
    values |= {name: function.__globals__[name] for name in names.loaded if name in function.__globals__}
    for name, wanted, level in names.imported:
        with contextlib.suppress(Exception):  # an import that may never be reached, of what is not there or broken
            module = __import__(name, function.__globals__, None, wanted, level)
            values["." * level + (name if wanted else name.partition(".")[0])] = module
    for name, value in sorted(values.items(), key=lambda item: item[0]):
        yield name, value
        yield from _of_module(name, value, names)


def _of_module(name: str, value: Any, names: Names, passed_on: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield what code with these `names` may read in `value`, if it is a module of the project.

    Of its submodules only those that the code names outright, or may name because it has `passed_on` the module under
    another name: which others there are depends on what else a process has imported.
    """
    if not (isinstance(value, types.ModuleType) and is_own(value.__name__)):
        return
    passed_on = passed_on or name in names.passed_on
    for attribute in sorted(names.attributes & vars(value).keys()):
        path, part = f"{name}.{attribute}", vars(value)[attribute]
        if passed_on or path in names.paths or not isinstance(part, types.ModuleType):
            yield path, part
            rest = names._replace(attributes=names.attributes - {attribute})  # modules may name one another
            yield from _of_module(path, part, rest, passed_on)


@functools.cache
def is_own(module: str | None) -> bool:
    """Return whether `module` is the user's or the kit's: neither installed nor part of Python."""
    if module in (None, "__main__") or module not in sys.modules:
        return True
    file = getattr(sys.modules[module], "__file__", None)
    if file is None:  # built in
        return False
    installed = {"site-packages", "dist-packages"} & set(Path(file).parts)
    places = Path(sysconfig.get_path("stdlib")), Path(str(torch.__file__)).parents[1]
    return not installed and not any(Path(file).is_relative_to(place) for place in places)
