"""Finished runs on disk: one JSON file each, named by the checksum of its settings and sealed with one of its own."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from kit.runtime import write_atomically
from kit.settings import checksum


def run_file(folder: Path, settings: dict[str, Any]) -> Path:
    """Return the file for a run with `settings`, plain data."""
    return folder / f"{_checksum_of(settings)}.json"


def save_run(path: Path, settings: dict[str, Any], run: dict[str, Any]) -> None:
    """Write `run` and its `settings` to `path`, whole or not at all."""
    content = {"settings": settings, "run": run}
    write_atomically(path, (json.dumps(content | {"checksum": _checksum_of(content)}, indent=1) + "\n").encode())


def load_run(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the run stored in `path`, or None if the file is missing or, with a warning that names it, damaged."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        content = {"settings": stored["settings"], "run": stored["run"]}
        if stored["checksum"] != _checksum_of(content):
            raise ValueError("its checksum does not match")
        if _checksum_of(content["settings"]) != _checksum_of(settings):
            raise ValueError("it belongs to other settings")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{path} is damaged ({error}); it is left out, and the run is repeated", stacklevel=4)
        return None
    return content["run"]


def _checksum_of(content: Any) -> str:
    return checksum(json.dumps(content, sort_keys=True).encode())
