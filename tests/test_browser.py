"""The notebooks in JupyterLab in a real browser: opened, run by Lab's own command, read back cell by cell.

Needs Chromium; skips without it. The browser is driven through its debugging protocol, on this machine only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from typing import Any

import pytest
from small_run import small_run

from talas_lib import assess, params, paths

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-allow-origins=*",
    "--window-size=1400,1600",
]
STATE = """(() => {
  const widget = window.jupyterapp && window.jupyterapp.shell.currentWidget;
  if (!widget || !widget.content || !widget.content.model || !widget.sessionContext.isReady) return null;
  const cells = Array.from(widget.content.widgets).filter(cell => cell.model.type === 'code');
  const outputs = cells.map(cell => JSON.stringify(cell.model.outputs.toJSON()));
  return {cells: cells.length, run: cells.filter(cell => cell.model.executionCount).length,
          errors: outputs.filter(text => text.includes('"output_type":"error"')),
          idle: widget.sessionContext.session?.kernel?.status === 'idle'};
})()"""

# cells outside of the window are otherwise not part of the page
WHOLE = """(() => {
  const notebook = window.jupyterapp.shell.currentWidget.content;
  notebook.notebookConfig = {...notebook.notebookConfig, windowingMode: 'none'};
  return true;
})()"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(check: Any, seconds: float, what: str) -> Any:
    """The first true value of `check()`; an assertion that names what did not come."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError, ValueError, KeyError, StopIteration):
            if value := check():
                return value
        time.sleep(0.5)
    raise AssertionError(f"{what} did not come within {seconds:.0f} s")


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.loads(answer.read())


class Page:
    """One browser tab."""

    def __init__(self, address: str) -> None:
        websocket = pytest.importorskip("websocket")
        self.socket, self.number = websocket.create_connection(address, timeout=60), 0

    def call(self, method: str, **parameters: Any) -> Any:
        """A command of the browser's protocol."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.number:
                return answer["result"]

    def evaluate(self, script: str) -> Any:
        """The value of a script in the page."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"].get(
            "value"
        )

    def press(self, key: str, code: int) -> None:
        """A key of the keyboard, down and up, for what has the focus."""
        typed = {"text": "\r"} if key == "Enter" else {}
        for kind, more in (("keyDown", typed), ("keyUp", {})):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def type(self, text: str) -> None:
        """Text into the field that has the focus."""
        self.call("Input.insertText", text=text)


@pytest.fixture
def lab(tmp_path):
    """Address of a running JupyterLab on the project."""
    port = free_port()
    options = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={paths.root()}",
    ]
    command = [sys.executable, "-m", "jupyterlab", *options, "--LabApp.expose_app_in_browser=True"]
    given = os.environ | {"TALAS_OUTPUTS": str(tmp_path), "JUPYTER_PREFER_ENV_PATH": "1"}
    with (
        (tmp_path / "lab.log").open("w") as log,
        subprocess.Popen(command, env=given, stdout=log, stderr=log) as server,
    ):
        try:
            wait_for(lambda: fetch(f"http://127.0.0.1:{port}/api"), 60, "JupyterLab")
            yield f"http://127.0.0.1:{port}/lab"
        finally:
            server.terminate()


@pytest.fixture
def browse(tmp_path):
    """A function that opens an address in Chromium and gives the page."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    port = free_port()
    started: list[subprocess.Popen] = []
    pages: list[Page] = []

    def open_page(address: str) -> Page:
        command = [
            CHROMIUM,
            *FLAGS,
            f"--remote-debugging-port={port}",
            f"--user-data-dir={tmp_path / 'profile'}",
            address,
        ]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

        def target() -> str:
            tabs = fetch(f"http://127.0.0.1:{port}/json")
            return next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")

        pages.append(Page(wait_for(target, 60, "the browser")))
        return pages[-1]

    yield open_page
    for page in pages:
        page.socket.close()
    for process in started:
        process.terminate()
        process.wait(timeout=20)


def run_all(page: Page) -> Any:
    """Run a notebook that has been opened, all cells at once and all of them on the page; what came of it."""
    wait_for(lambda: (page.evaluate(STATE) or {}).get("idle"), 90, "the notebook in JupyterLab")
    page.evaluate(WHOLE)
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)")

    def finished() -> Any:
        state = page.evaluate(STATE)
        return state if state and (state["errors"] or (state["run"] == state["cells"] and state["idle"])) else None

    return wait_for(finished, 240, "the end of the notebook")


def test_a_notebook_runs_in_jupyterlab_without_an_error(lab, browse):
    state = run_all(page := browse(f"{lab}/tree/notebooks/a0_talas_by_hand.ipynb"))
    assert state["errors"] == []
    assert state["cells"] > 10
    assert page.evaluate("document.querySelectorAll('.jp-RenderedHTMLCommon h1').length") >= 1


FIGURES = "Array.from(document.querySelectorAll('.talas-figure'))"
# what stands in the box of controls above a figure, by its number
CONTROLS = FIGURES + "[%d].closest('.widget-vbox').querySelector('.widget-hbox')"


@pytest.fixture
def explored(tmp_path, tiny_texts, monkeypatch):
    """A scored run in the folder that JupyterLab's kernels see as outputs."""
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path))
    run = small_run(tmp_path, tiny_texts[:120])
    assess.evaluate_run(run, params.load_tasks("tiny"))
    return run


def test_the_explorer_answers_to_its_controls(explored, lab, browse):
    page = browse(f"{lab}/tree/notebooks/08_explore.ipynb")
    state = run_all(page)
    assert state["errors"] == []
    wait_for(lambda: page.evaluate(f"{FIGURES}.length") == 5, 60, "the five figures")
    assert page.evaluate("document.querySelectorAll('.talas-figure svg').length") == 4
    assert page.evaluate("document.querySelectorAll('.talas-figure table').length") == 1
    assert page.evaluate("document.querySelectorAll('.talas-figure svg title').length") > 500

    def figure(number: int) -> str:
        return page.evaluate(f"{FIGURES}[{number}].innerHTML")

    def changed(number: int, before: str) -> None:
        wait_for(lambda: figure(number) != before, 30, f"a change in figure {number}")
        assert "talas-message" not in figure(number)

    for number, steps in ((1, 3), (3, 2)):  # a batch of relations; the radius of the perturbation
        before = figure(number)
        assert page.evaluate(f"(() => {{ {CONTROLS % number}.querySelector('.noUi-handle').focus(); return true }})()")
        for _ in range(steps):
            page.press("ArrowRight", 39)
        changed(number, before)

    before = figure(0)
    page.evaluate(
        f"(() => {{ const f = {CONTROLS % 0}.querySelector('input'); f.focus(); f.select(); return true }})()"
    )
    page.type("a boat <b>on</b> the sea")
    page.press("Enter", 13)
    changed(0, before)

    after = page.evaluate(STATE)
    assert after["errors"] == []
    assert page.evaluate("document.querySelectorAll('[data-mime-type=\"application/vnd.jupyter.stderr\"]').length") == 0
    assert not page.evaluate("document.body.innerText.includes('Traceback')")
    assert not page.evaluate("document.body.innerText.includes('Error displaying widget')")
