"""How s7.ipynb looks to its readers: JupyterLab and Jupyter Notebook, in a headless Chromium.

Run it by hand, for it takes some minutes and needs chromium:

    SCREENSHOTS=screenshots python -m pytest tests/browser_check.py

Each of the two runs all cells on some of MNIST's images, looks for errors, warnings, bars that stay, broken tables and
missing pictures, and photographs the whole notebook, light and dark, into the folder that SCREENSHOTS names.
"""

from __future__ import annotations

import base64
import importlib.util
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TOKEN = "browser-check"
WIDTH, HEIGHT = 1280, 900
EPOCHS = 2
RECIPE = f"dataclasses.replace(utils.Recipe(), epochs={EPOCHS})"
PARAMETERS = {"IMAGES": "4000", "RECIPE": RECIPE, "COMPARE_SEEDS": "2"}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("websocket") is None, reason="websocket-client is not installed"),
]


@pytest.fixture(scope="module", params=["lab", "notebook"])
def seen(request, tmp_path_factory):
    """What the page holds after all cells were run: a dictionary of plain values, see LOOK."""
    package = {"lab": "jupyterlab", "notebook": "notebook"}[request.param]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"jupyter {request.param} is not installed")
    folder = tmp_path_factory.mktemp(request.param)
    pictures = Path(os.environ.get("SCREENSHOTS") or folder / "screenshots").resolve()
    pictures.mkdir(parents=True, exist_ok=True)
    copy_kit(folder / "kit")
    place = {"lab": "lab/tree", "notebook": "notebooks"}[request.param]
    with jupyter(package, folder) as address, chromium(folder) as page:
        page("Page.navigate", url=f"{address}/{place}/s7.ipynb?token={TOKEN}")
        ask = asker(page)
        wait(lambda: ask("window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status") == "idle")
        ask(RUN_ABOVE)
        wait(lambda: ask("done(0, training)"), seconds=120)
        ask(RUN_REST)
        wait(lambda: ask("done(0)"), seconds=600)
        found = ask(LOOK)
        photograph(page, ask, pictures / f"{request.param}-light")
        ask("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
        time.sleep(2)
        photograph(page, ask, pictures / f"{request.param}-dark")
    print(f"\nthe screenshots are in {pictures}")
    return found


def test_every_cell_ran_without_error_or_warning(seen):
    cells = seen["cells"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    printed = "".join(output.get("text", "") for cell in cells for output in cell["outputs"])
    assert "source: mnist" in printed and f"epoch {EPOCHS}/{EPOCHS}" in printed
    assert not re.findall(r"\w*Warning\b", printed)
    assert "IProgress" not in printed and "Error displaying widget" not in seen["text"]


def test_a_bar_shows_each_epoch_and_goes_away(seen):
    for epoch in range(1, EPOCHS + 1):
        assert any(f"epoch {epoch}/{EPOCHS}" in text for text in seen["bars"]), seen["bars"]
    assert any(re.search(r"\[00:\d\d<00:\d\d, .*batch/s", text) for text in seen["bars"]), seen["bars"]
    assert seen["bars_left"] == []


def test_a_saved_run_holds_no_bar_that_nobody_can_draw(seen):
    """A widget lives as long as its kernel: opened again, the notebook would say that it cannot be displayed."""
    kinds = {kind for cell in seen["cells"] for output in cell["outputs"] for kind in output.get("data", {})}
    assert "image/png" in kinds and not [kind for kind in kinds if "widget" in kind]


def test_the_table_and_the_epochs_are_monospaced_and_unwrapped(seen):
    ours = [text for text in seen["texts"] if "Param #" in text["text"] or re.match(r"epoch +\d", text["text"])]
    assert len(ours) >= 2
    for text in ours:
        assert "mono" in text["font"], text
        assert text["lines_seen"] == text["lines"] and text["scroll_width"] <= text["width"], text


def test_the_pictures_are_there_and_fit(seen):
    assert len(seen["pictures"]) >= 5
    for picture in seen["pictures"]:
        assert picture["natural_width"] > 300 and picture["width"] > 300, picture
        assert picture["width"] <= picture["room"], picture


# ---------------------------------------------------------------------------------------------- In the page

# What is out of sight is not laid out. So the cells before the training run first; then it is brought into view, and
# its bars are noted as they pass.
RUN_ABOVE = """
(() => {
  document.head.insertAdjacentHTML("beforeend", "<style>.Toastify {display: none}</style>");  // questions about news
  const {content, sessionContext} = jupyterapp.shell.currentWidget;
  window.show = async (at) => {
    await content.scrollToItem(at, "auto");
    content.widgets[at].node.scrollIntoView({behavior: "instant"});
    await new Promise((resolve) => setTimeout(resolve, 500));
  };
  window.done = (from, to) => {
    const code = content.widgets.slice(from, to).filter((cell) => cell.model.type === "code");
    return code.every((cell) => cell.model.executionCount !== null) && sessionContext.session.kernel.status === "idle";
  };
  window.training = content.widgets.findIndex((cell) => cell.model.sharedModel.source.includes("utils.train_network("));
  content.activeCellIndex = training;
  jupyterapp.commands.execute("notebook:run-all-above");
})()
"""

RUN_REST = """
(async () => {
  const {content} = jupyterapp.shell.currentWidget;
  await show(training);
  window.bars = new Set();
  setInterval(() => {
    for (const text of document.querySelectorAll(".jp-OutputArea-output pre")) {
      for (const line of text.innerText.split("\\n")) if (line.includes("%|")) bars.add(line);
    }
  }, 20);
  content.activeCellIndex = training;
  jupyterapp.commands.execute("notebook:run-all-below");
})()
"""

LOOK = """
(async () => {
  const {content} = jupyterapp.shell.currentWidget;
  const found = {texts: [], pictures: [], bars_left: [], bars: [...bars], text: ""};
  found.cells = content.model.toJSON().cells.filter((cell) => cell.cell_type === "code");
  for (const [at, cell] of content.widgets.entries()) {
    await show(at);
    found.text += cell.node.innerText;
    for (const pre of cell.node.querySelectorAll(".jp-OutputArea-output pre")) {
      const style = getComputedStyle(pre);
      found.texts.push({
        text: pre.innerText, font: style.fontFamily, width: pre.clientWidth, scroll_width: pre.scrollWidth,
        lines: pre.textContent.trimEnd().split("\\n").length,
        lines_seen: Math.round(pre.clientHeight / parseFloat(style.lineHeight)),
      });
    }
    for (const image of cell.node.querySelectorAll(".jp-OutputArea-output img")) {
      found.pictures.push({
        natural_width: image.naturalWidth, width: image.getBoundingClientRect().width,
        room: cell.node.clientWidth,
      });
    }
  }
  found.bars_left = found.texts.map(({text}) => text).filter((text) => text.includes("%|"));
  return found;
})()
"""


def photograph(page, ask, name: Path) -> None:
    """The notebook from top to bottom, one file for each screenful."""
    scroller = "jupyterapp.shell.currentWidget.content.outerNode"
    ask(f"{scroller}.scrollTop = 0")
    for number in itertools.count(1):
        time.sleep(0.7)
        shot = page("Page.captureScreenshot", format="png")["data"]
        Path(f"{name}-{number:02}.png").write_bytes(base64.b64decode(shot))
        before = ask(f"{scroller}.scrollTop")
        ask(f"{scroller}.scrollTop += 0.9 * {scroller}.clientHeight")
        if number > 50 or ask(f"{scroller}.scrollTop") <= before:
            return


# ------------------------------------------------------------------------------------ Jupyter and Chromium


def copy_kit(folder: Path) -> None:
    """The kit as it is cloned, its notebook without outputs and with fewer images and epochs."""
    folder.mkdir()
    for source in ROOT.glob("*.py"):
        shutil.copy(source, folder)
    for name in ("kit", "benchmarks", "examples/photos"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    notebook = nbformat.read(ROOT / "s7.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            for name, code in PARAMETERS.items():
                cell.source, changed = re.subn(rf"(?m)^{name} = .*", f"{name} = {code}", cell.source)
                assert changed == 1, name
    nbformat.write(notebook, folder / "s7.ipynb")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait(ready, seconds: float = 120):
    """Ask `ready` until it gives something true, and return that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := ready():
            return value
        time.sleep(0.3)
    raise TimeoutError(f"not ready after {seconds} s")


@contextmanager
def jupyter(package: str, folder: Path):
    """`jupyter lab` or `jupyter notebook` in the kit's copy, without network and with nobody's settings."""
    settings = {f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    nowhere = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
    environment = {**os.environ, **settings, **nowhere, "no_proxy": "127.0.0.1"}
    environment |= {"IPYTHONDIR": str(folder / "ipython")}
    environment.pop("TQDM_DISABLE", None)
    port = free_port()
    options = [f"--ServerApp.port={port}", f"--IdentityProvider.token={TOKEN}", "--no-browser", "--allow-root"]
    with (folder / "jupyter.log").open("w") as log:
        command = [sys.executable, "-m", package, *options, "--expose-app-in-browser"]
        server = subprocess.Popen(command, cwd=folder / "kit", env=environment, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            wait(lambda: server.poll() is None and answers(f"{address}/api?token={TOKEN}"))
            yield address
        finally:
            server.terminate()
            server.wait(30)


def answers(url: str) -> bytes | None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return direct.open(url, timeout=5).read()
    except OSError:
        return None


@contextmanager
def chromium(folder: Path):
    """A headless Chromium with one page: a function that sends it a command of the DevTools protocol."""
    import websocket

    profile = folder / "profile"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "--no-proxy-server", "about:blank"]
    with (folder / "chromium.log").open("w") as log:
        browser = subprocess.Popen([CHROMIUM, *flags], stdout=log, stderr=log)
        try:
            file = profile / "DevToolsActivePort"
            port = wait(lambda: file.exists() and file.read_text().partition("\n")[0])
            targets = json.loads(wait(lambda: answers(f"http://127.0.0.1:{port}/json/list")))
            (url,) = (target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
            connection = websocket.create_connection(url, timeout=60, suppress_origin=True, http_no_proxy=["*"])
            numbers = itertools.count(1)

            def send(method: str, **parameters):
                number = next(numbers)
                connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
                while (answer := json.loads(connection.recv())).get("id") != number:
                    pass  # events, which nobody asked for
                assert "error" not in answer, answer
                return answer["result"]

            send("Emulation.setFocusEmulationEnabled", enabled=True)  # JupyterLab's current notebook is the focused one
            send("Emulation.setDeviceMetricsOverride", width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False)
            yield send
            connection.close()
        finally:
            browser.terminate()
            browser.wait(30)


def asker(page):
    """A function that evaluates an expression in the page, and a promise until it is kept."""

    def ask(expression: str):
        answer = page("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    return ask
