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

from talas_lib import paths

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

    def evaluate(self, script: str) -> Any:
        """The value of a script in the page."""
        self.number += 1
        request = {"expression": script, "returnByValue": True, "awaitPromise": True}
        self.socket.send(json.dumps({"id": self.number, "method": "Runtime.evaluate", "params": request}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.number:
                return answer["result"]["result"].get("value")


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


def test_a_notebook_runs_in_jupyterlab_without_an_error(lab, browse):
    page = browse(f"{lab}/tree/notebooks/a0_talas_by_hand.ipynb")
    wait_for(lambda: (page.evaluate(STATE) or {}).get("idle"), 90, "the notebook in JupyterLab")
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)")

    def finished() -> Any:
        state = page.evaluate(STATE)
        return state if state and (state["errors"] or (state["run"] == state["cells"] and state["idle"])) else None

    state = wait_for(finished, 240, "the end of the notebook")
    assert state["errors"] == []
    assert state["cells"] > 10
    assert page.evaluate("document.querySelectorAll('.jp-RenderedHTMLCommon h1').length") >= 1
