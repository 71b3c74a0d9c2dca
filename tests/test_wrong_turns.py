"""s7.ipynb as people use it: cells twice, cells out of order, stopped, restarted, changed, without network or kit.

It trains on a few hundred images of MNIST, for two epochs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent

# Words by which the notebook's code cells are known.
FETCH, IMPORTS, SETTINGS, DEVICE, DATA = "KIT_URL", "%reload_ext", "SEED = ", "get_device", "load_mnist"
NETWORK, BEFORE, TRAIN, CURVES = "model.summary", "before training", "utils.train_network", "plot_history"
FINAL, CONFUSION = "final epoch", "plot_confusion"
UNTIL_TRAINED = [IMPORTS, SETTINGS, DEVICE, DATA, NETWORK, BEFORE, TRAIN, FINAL]
EPOCHS = 2


@contextmanager
def kernel(folder: Path, name: str = "s7.ipynb"):
    """A new kernel in `folder`: a function that runs cells of the notebook, known by a word, and returns what they say.

    Settings are given by name, and code for their values. An error is said as "NameError: ...", the cells after it
    are not run.
    """
    notebook = nbformat.read(folder / name, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    notebook.cells = [*cells, nbformat.v4.new_code_cell()]  # the last one is for other code
    client = NotebookClient(notebook, timeout=120, allow_errors=True, resources={"metadata": {"path": folder}})

    def run(*words: str, code: str = "", **settings) -> str:
        said = ""
        for word in [code] if code else words:
            place = -1 if code else next(at for at, cell in enumerate(cells) if word in cell.source)
            # A copy of the cell as it was read: the client keeps what it executes in the notebook.
            cell = nbformat.v4.new_code_cell(code or cells[place].source)
            if word == SETTINGS:
                for key, value in {"IMAGES": 512, "RECIPE": recipe(), **settings}.items():
                    cell.source, found = re.subn(rf"(?m)^{key} = .*", f"{key} = {value}", cell.source)
                    assert found == 1, key
            outputs = client.execute_cell(cell, place % len(notebook.cells)).outputs
            said += "".join(output.get("text", "") or str(output.get("data", "")) for output in outputs)
            if errors := [f"{output.ename}: {output.evalue}" for output in outputs if output.output_type == "error"]:
                return said + errors[0]
        return said

    with client.setup_kernel():
        yield run


def recipe(**changes) -> str:
    """Code for the default recipe with EPOCHS epochs, and with `changes`."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in {"epochs": EPOCHS, **changes}.items())
    return f"dataclasses.replace(utils.Recipe(), {arguments})"


def copy_kit(folder: Path) -> Path:
    for source in ROOT.glob("*.py"):
        shutil.copy(source, folder)
    for name in ("kit", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the kit: few test images, no network, no GPU."""
    folder = copy_kit(tmp_path_factory.mktemp("kit"))
    notebook = nbformat.read(ROOT / "s7.ipynb", as_version=4)
    for cell in notebook.cells:
        if DATA in cell.source:
            cell.source += "\ntest = test[:256]"
    nbformat.write(notebook, folder / "s7.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "http_proxy": "http://127.0.0.1:9",
            "https_proxy": "http://127.0.0.1:9",
            "CUDA_VISIBLE_DEVICES": "",
            "TQDM_DISABLE": "1",
        }.items():
            patch.setenv(name, value)
        yield folder


@pytest.fixture(scope="module")
def one_kernel(folder):
    with kernel(folder) as run:
        yield run


@pytest.fixture
def run(folder, one_kernel):
    """The one kernel, as good as new: nothing is defined, no checkpoint is there, model.py is the kit's."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    one_kernel(code="%reset -f")
    yield one_kernel
    shutil.copy(ROOT / "model.py", folder)


def epochs(said: str) -> list[str]:
    """The lines of the epochs, without their times."""
    return re.findall(r"epoch +\d+/\d+ .* %", said)


def final(said: str) -> str:
    return re.search(r"final epoch .*", said)[0]


# --------------------------------------------------------------------------------------- Order and repetition


def test_a_cell_before_its_time_says_which_name_is_missing(run):
    assert run(DEVICE) == "NameError: name 'utils' is not defined"
    run(IMPORTS, SETTINGS, DEVICE, NETWORK)
    assert run(TRAIN) == "NameError: name 'train' is not defined"
    assert run(BEFORE) == "NameError: name 'test' is not defined"
    run(DATA)
    assert run(CURVES) == run(FINAL) == "NameError: name 'history' is not defined"
    assert run(CONFUSION, code="del net") == "" and run(CONFUSION) == "NameError: name 'net' is not defined"


def test_cells_run_twice_say_the_same_twice(run):
    first = run(*UNTIL_TRAINED)
    assert "Error" not in first and len(epochs(first)) == EPOCHS
    assert "Total params" in run(NETWORK)
    again = run(TRAIN, FINAL)  # with the network of the second time: the checkpoint brings back the trained one
    assert "holds 2 finished epochs" in again and not epochs(again) and final(again) == final(first)
    assert final(run(TRAIN, FINAL)) == final(first)
    pictures = [run(CURVES), run(CURVES), run(CONFUSION), run(CONFUSION)]
    assert all("image/png" in picture for picture in pictures)
    assert pictures[0] == pictures[1] and pictures[2] == pictures[3]
    assert "Error" not in run(*UNTIL_TRAINED)


# ------------------------------------------------------------------------------- Stopped, restarted, changed


def test_after_a_restart_finished_epochs_are_kept_and_the_numbers_are_those_of_one_run(folder, run):
    whole = run(*UNTIL_TRAINED, CHECKPOINT=None)
    with kernel(folder) as stopped:
        stopped(*UNTIL_TRAINED[: UNTIL_TRAINED.index(TRAIN)])
        stopped(code="def stop(history):\n    raise KeyboardInterrupt  # as the stop button does")
        stopped(code="import functools\nutils.train_network = functools.partial(utils.train_network, on_epoch=stop)")
        said = stopped(TRAIN)
        assert "Interrupted after 1 of 2 epochs" in said and epochs(said) == epochs(whole)[:1]
    run(code="%reset -f")
    resumed = run(*UNTIL_TRAINED)
    assert "holds 1 finished epochs of this run" in resumed
    assert epochs(resumed) == epochs(whole)[1:] and final(resumed) == final(whole)


def test_another_seed_or_number_of_epochs_trains_anew(run):
    first = run(*UNTIL_TRAINED)
    other_seed = run(*UNTIL_TRAINED, SEED=1)
    longer = run(*UNTIL_TRAINED, RECIPE=recipe(epochs=3))
    assert all("Error" not in said and "going on from there" not in said for said in (first, other_seed, longer))
    assert [len(epochs(said)) for said in (first, other_seed, longer)] == [2, 2, 3]
    assert epochs(other_seed)[0] != epochs(first)[0]
    back = run(*UNTIL_TRAINED)
    assert "holds 2 finished epochs" in back and final(back) == final(first)


def test_another_learning_rate_says_what_differs_and_what_helps(folder, run):
    run(*UNTIL_TRAINED)
    said = run(*UNTIL_TRAINED, RECIPE=recipe(lr=0.01))
    assert "ValueError: runs/" in said and "belongs to another run" in said and "delete the file" in said
    assert "0.05" in said and "0.01" in said
    shutil.rmtree(folder / "runs")
    assert len(epochs(run(*UNTIL_TRAINED, RECIPE=recipe(lr=0.01)))) == EPOCHS


def test_an_edit_of_the_network_counts_when_its_cell_runs_again(folder, run):
    table = run(IMPORTS, SETTINGS, DEVICE, NETWORK)
    text = (folder / "model.py").read_text(encoding="utf-8")
    edited = text.replace("nn.SiLU(", "nn.ReLU(")
    assert "SiLU" in table and edited != text
    (folder / "model.py").write_text(edited, encoding="utf-8")
    edited_table = run(NETWORK)
    assert "Total params" in edited_table and "ReLU" in edited_table and "SiLU" not in edited_table


# -------------------------------------------------------------------------- No network, no GPU, no kit


def test_without_network_and_gpu_it_trains_on_mnist(run):
    said = run(*UNTIL_TRAINED, CHECKPOINT=None)
    assert re.search(r"on (cpu|mps)\n", said)
    assert "source: mnist" in said and "images (512, 1, 28, 28)" in said
    assert len(epochs(said)) == EPOCHS and "Warning" not in said


def test_the_first_cell_fetches_the_kit_and_installs_no_more_than_is_missing(folder, tmp_path, monkeypatch):
    origin, elsewhere, tools = tmp_path / "origin", tmp_path / "elsewhere", tmp_path / "tools"
    origin.mkdir()
    copy_kit(origin)
    git = ["git", "-c", "user.name=kit", "-c", "user.email=kit@localhost", "-C", str(origin)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "The kit"]):
        subprocess.run([*git, *command], check=True)
    tools.mkdir()  # a pip that only notes what it is asked for
    (tools / "pip").write_text(f'#!/bin/sh\necho "$@" >> {tools}/asked\n')
    (tools / "pip").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # should it not be asked by that name
    monkeypatch.delenv("KIT_URL", raising=False)
    elsewhere.mkdir()
    shutil.copy(folder / "s7.ipynb", elsewhere)
    with kernel(elsewhere) as run:
        said = run(FETCH)
        assert "AssertionError" in said and "KIT_URL" in said and "start in the kit's folder" in said
        assert "Error" not in run(code=f"%env KIT_URL={origin.as_uri()}")
        assert "Error" not in run(FETCH)
        assert run(code="import os, model; print(os.path.abspath(model.__file__))").strip() == str(
            elsewhere / "kit" / "model.py"
        )
        assert "Error" not in run(FETCH, IMPORTS)  # once more does nothing
        assert not (elsewhere / "kit" / "kit" / "model.py").exists()
    asked = (tools / "asked").read_text().split() if (tools / "asked").exists() else []
    assert {word for word in asked if not word.startswith("-")} <= {"install", "torchsummary"}
