"""Result files: where they are, how they are written, and what was measured with which versions and machine."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kit.runtime import commit_of_kit, write_atomically
from kit.settings import checksum

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def write(path: Path, report: dict[str, Any]) -> None:
    """Write `report` to `path` as JSON, its "runs" one to a line."""
    head = {key: value for key, value in report.items() if key != "runs"}
    text = json.dumps(head, indent=1)
    if "runs" in report:
        runs = ",\n  ".join(json.dumps(run) for run in report["runs"])
        text = text[:-2] + f',\n "runs": [\n  {runs}\n ]\n}}'
    write_atomically(path, f"{text}\n".encode())


def commit() -> str | None:
    """Return the commit that is checked out, with "-dirty" behind it if tracked files were changed since."""
    return commit_of_kit()


def versions() -> dict[str, str]:
    """Return the versions of Python and torch."""
    return {"python": platform.python_version(), "torch": torch.__version__}


def layers(network: nn.Module) -> str:
    """Return a checksum of the layers of `network` and their sizes, which changes when one of them does."""
    return checksum(repr(network).encode())


def machine() -> dict[str, Any]:
    """Return the processor, its cores and the widest vector instructions that torch uses on it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
