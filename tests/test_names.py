"""The kit beside other code: which names it takes in a notebook of another folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

KIT = Path(__file__).resolve().parent.parent
THEIRS = (
    "data",
    "plots",
    "digits",
    "idx",
    "optim",
    "checkpoints",
    "runtime",
    "settings",
    "export",
    "mnist",
    "make_demo",
)

CODE = """
import sys
from pathlib import Path

kit, here = Path(sys.argv[1]), Path.cwd()
sys.path[:] = [str(here), *sys.path] if sys.argv[2] == "before" else [*sys.path, str(here)]
sys.path.insert(1 if sys.argv[2] == "before" else 0, str(kit))

import compare, model, utils
utils.plot_images(utils.load_mnist()[1][:2])

files = {name: Path(getattr(module, "__file__", None) or here) for name, module in sys.modules.items()}
taken = {name.partition(".")[0] for name, file in files.items()
         if kit in file.parents and "site-packages" not in file.parts}  # a virtual environment may lie in the kit
assert taken <= {"model", "utils", "compare", "kit"}, taken

for name in sys.argv[3:]:
    assert __import__(name).WHOSE == "theirs", name
from utils import load_mnist, split, plot_history, prepare_digit
assert load_mnist()[0].source == "mnist"
print("both work")
"""


@pytest.mark.parametrize("order", ["before", "behind"])
def test_the_kit_and_a_folder_with_files_of_the_same_names_do_not_disturb_each_other(tmp_path, order):
    """Another folder's own data.py, plots.py, digits.py and so on, found before the kit or behind it."""
    for name in THEIRS:
        (tmp_path / f"{name}.py").write_text('WHOSE = "theirs"\n')
    command = [sys.executable, "-c", CODE, str(KIT), order, *THEIRS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "both work\n", done.stderr


def test_nothing_in_kit_imports_utils_or_model():
    """Each module of kit/, imported alone in one process."""
    code = (
        "import importlib, sys\n"
        f"for name in {sorted(path.stem for path in (KIT / 'kit').glob('*.py'))}:\n"
        "    importlib.import_module('kit.' + name)\n"
        "assert not {'utils', 'model', 'compare', 'benchmarks', 'examples'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=KIT, check=True)
