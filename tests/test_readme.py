"""What the README shows works as pasted."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str, pages: list[Path] = PAGES[:1]) -> list[str]:
    texts = [page.read_text(encoding="utf-8") for page in pages]
    return [block for text in texts for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


def test_the_ten_lines_for_another_notebook_and_those_for_handwriting_work_as_pasted(tmp_path):
    lines, handwriting = (block for block in blocks("python") if "path/to/the/kit" in block)
    assert len([line for line in lines.splitlines() if line]) <= 10
    lines = lines.replace("= load_mnist()\n", "= load_mnist()\ntrain = train[:1500]\n")
    command = [sys.executable, "-W", "error", "-c", (lines + handwriting).replace("path/to/the/kit", str(ROOT))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "epoch 2/2" in done.stdout and done.stdout.rstrip().endswith("])")
    assert (tmp_path / "seven.png").stat().st_size > 5000


def test_every_python_block_is_valid_python():
    for block in blocks("python", PAGES):
        compile(block, "page", "exec")


def test_the_commands_name_files_and_modules_that_exist():
    for block in blocks("bash", PAGES):
        for name in re.findall(r"[\w./-]+\.(?:py|ipynb|txt)\b", block):
            assert (ROOT / name).exists() or name == "train.py", name
        for name in re.findall(r"-m ((?:benchmarks|examples)[\w.]*)", block):
            assert importlib.util.find_spec(name), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing
