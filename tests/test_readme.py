"""What the README shows works as pasted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_ten_lines_for_another_notebook_work_as_pasted(tmp_path):
    (lines,) = (block for block in blocks("python") if "path/to/the/kit" in block)
    assert len([line for line in lines.splitlines() if line]) <= 10
    # No network: the offline sample it must be.
    quiet = {"MNIST_ROOT": str(tmp_path / "nothing"), "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", lines.replace("path/to/the/kit", str(ROOT))],
        cwd=tmp_path,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "epoch 2/2" in done.stdout and done.stdout.rstrip().endswith("])")


def test_every_python_block_is_valid_python():
    for block in blocks("python"):
        compile(block, "README.md", "exec")


def test_the_commands_name_files_that_are_there():
    for block in blocks("bash"):
        for name in re.findall(r"[\w./-]+\.(?:py|ipynb|txt)\b", block):
            assert (ROOT / name).exists() or name == "train.py", name
