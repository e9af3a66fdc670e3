"""JupyterLab on a copy of a notebook folder, and Debian's Chromium driven by Playwright; skips where Chromium is missing.

    def test_it(lab):                       # lab: an empty folder in a running JupyterLab
        lab.add(notebook)                   # an nbformat node or a file, into the folder that JupyterLab shows
        page = lab.open_notebook("it.ipynb"); page.run_all(); page.wait_done(60)
        assert page.faults() == [] and page.clip_plays()
"""
from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run", "--mute-audio"]
# Chromium and JupyterLab write these to the console whatever the notebook does; everything else is an error of ours.
HARMLESS = ("favicon", "ResizeObserver loop", "Permissions-Policy", "GPU stall")


def pytest_collection_modifyitems(items) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.browser)


class Server:
    """A JupyterLab server on `folder`, without token, on a free port of this machine."""

    def __init__(self, folder: Path, settings: Path) -> None:
        self.folder = folder
        tracker = settings / "settings" / "@jupyterlab" / "notebook-extension"
        tracker.mkdir(parents=True)
        # all cells in the page, not only those in sight
        (tracker / "tracker.jupyterlab-settings").write_text(json.dumps({"windowingMode": "none"}))
        quiet = settings / "settings" / "@jupyterlab" / "apputils-extension"
        quiet.mkdir(parents=True)
        (quiet / "notification.jupyterlab-settings").write_text(
            json.dumps({"fetchNews": "false", "checkForUpdates": False}))
        self.log = (settings / "server.log").open("w")
        environment = {**os.environ, "JUPYTERLAB_SETTINGS_DIR": str(settings / "settings"),
                       "JUPYTERLAB_WORKSPACES_DIR": str(settings / "workspaces"),
                       "JUPYTER_CONFIG_DIR": str(settings / "config"),
                       "JUPYTER_RUNTIME_DIR": str(settings / "runtime"), "JUPYTER_DATA_DIR": str(settings / "data")}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
             "--ServerApp.port_retries=0", "--IdentityProvider.token=", "--ServerApp.password=",
             "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={folder}",
             "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"],
            env=environment, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True)

    def wait_ready(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(self.url + "/api/status", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.3)
        raise RuntimeError("JupyterLab did not come up:\n" + Path(self.log.name).read_text()[-2000:])

    def end_kernels(self) -> None:
        with urllib.request.urlopen(self.url + "/api/sessions", timeout=20) as answer:
            sessions = json.load(answer)
        for session in sessions:
            request = urllib.request.Request(f"{self.url}/api/sessions/{session['id']}", method="DELETE")
            urllib.request.urlopen(request, timeout=30).close()

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)      # our own session: the server and its kernels
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(10)
        self.log.close()


class Lab:
    """A folder of the server's for one test, and the pages that it opens there."""

    def __init__(self, server: Server, name: str, browser) -> None:
        self.server, self.browser, self.pages = server, browser, []
        self.folder, self.url = server.folder / name, server.url
        self.folder.mkdir()

    def add(self, notebook, name: str | None = None) -> str:
        """Put a notebook (a file, or an nbformat node with `name`) into the folder; returns its name there."""
        if isinstance(notebook, (str, Path)):
            name = name or Path(notebook).name
            shutil.copy(notebook, self.folder / name)
        else:
            import nbformat
            nbformat.write(notebook, self.folder / name)
        return name

    def open_notebook(self, name: str, ready: float = 120) -> NotebookPage:
        """Open a notebook in a page of its own and wait until its kernel is idle."""
        page = NotebookPage(self, name, ready)
        self.pages.append(page)
        return page

    def open_as_stranger(self, name: str) -> NotebookPage:
        """A saved notebook as one that came from somebody else, unrun: its signature does not fit, its widgets are gone."""
        import nbformat
        notebook = nbformat.read(self.folder / name, as_version=4)
        notebook.metadata.pop("widgets", None)
        for cell in notebook.cells:
            cell.metadata.pop("trusted", None)
            for out in cell.get("outputs", []):
                if "text/html" in out.get("data", {}):
                    out.data["text/html"] += "\n"               # changed outside Lab
        page = self.open_notebook(self.add(notebook, f"{Path(name).stem}_stranger.ipynb"))
        trusted = f"() => [...{page.MODEL}.content.model.cells].filter(c => c.type === 'code' && c.trusted).length"
        assert page.page.evaluate(trusted) == 0
        return page

    def close(self) -> None:
        for page in self.pages:
            page.page.context.close()
        self.server.end_kernels()


class NotebookPage:
    """One notebook open in JupyterLab. What is asked of it is read from the notebook's model, not from the page."""

    MODEL = "jupyterapp.shell.currentWidget"

    def __init__(self, lab: Lab, name: str, ready: float) -> None:
        self.page = lab.browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()
        self.page.set_default_timeout(ready * 1000)
        self.console: list[str] = []
        self.outside: list[str] = []        # addresses asked for beyond this machine: there must be none
        self.page.on("request", lambda request: self.outside.append(request.url)
                     if request.url.startswith("http") and not request.url.startswith(lab.url) else None)
        self.page.on("console", lambda message: self.console.append(f"{message.text} {message.location.get('url', '')}")
                     if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.goto(f"{lab.url}/lab/tree/{lab.folder.name}/{name}?reset")
        self.page.wait_for_function("() => window.jupyterapp")
        self.page.evaluate("async () => { await jupyterapp.started; }")
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")
        self.page.wait_for_function(f"""() => {{
            const kernel = {self.MODEL}?.context?.sessionContext?.session?.kernel;
            return kernel && kernel.connectionStatus === 'connected' && kernel.status === 'idle'; }}""")

    def cells(self) -> list[dict]:
        """The notebook's cells as they are now, outputs included."""
        return self.page.evaluate(f"() => {self.MODEL}.content.model.toJSON()")["cells"]

    def run_all(self) -> None:
        """Run > Run All Cells; returns at once."""
        self.page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells'); }")

    def wait_done(self, seconds: float = 300) -> None:
        """Until every code cell has run and the kernel is idle, or a cell has failed (which ends the run)."""
        self.page.wait_for_function(f"""() => {{
            const panel = {self.MODEL};
            const code = panel.content.model.toJSON().cells.filter(
                c => c.cell_type === 'code' && [].concat(c.source).join('').trim());
            const failed = code.some(c => c.outputs.some(o => o.output_type === 'error'));
            const idle = panel.context.sessionContext.session.kernel.status === 'idle';
            return failed || (idle && code.every(c => c.execution_count !== null)); }}""", timeout=seconds * 1000)

    def errors(self) -> list[str]:
        """What went wrong: failing cells, and errors in the browser's console."""
        failed = [f"{o['ename']}: {o['evalue']}" for c in self.cells() if c["cell_type"] == "code"
                  for o in c["outputs"] if o["output_type"] == "error"]
        return failed + [text for text in self.console if not any(h in text for h in HARMLESS)]

    def clip_plays(self, index: int = 0, seconds: float = 10) -> bool:
        """Whether the index-th <video> of the notebook decodes and its time advances when it is played."""
        return self.page.evaluate("""async ([index, ms]) => {
            const v = document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) video')[index];
            if (!v) return false;
            v.scrollIntoView();
            try { v.muted = true; await v.play(); } catch (e) { return false; }
            const end = Date.now() + ms;
            while (Date.now() < end) {
                if (v.readyState >= 2 && v.videoWidth > 0 && v.currentTime > 0 && !v.error) return true;
                await new Promise(r => setTimeout(r, 50));
            }
            return false; }""", [index, seconds * 1000])

    def clips(self) -> int:
        """How many <video> elements the notebook shows."""
        return self.page.evaluate("() => document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) video').length")

    def broken_pictures(self) -> int:
        """How many pictures in outputs did not load."""
        return self.page.evaluate("""() => [...document.querySelectorAll('.jp-OutputArea img')]
            .filter(i => !(i.complete && i.naturalWidth > 0)).length""")

    def undrawn_widgets(self) -> int:
        """How many widgets still say 'Loading widget...'."""
        return self.page.get_by_text("Loading widget...").count()

    def names(self) -> list[str]:
        """What each picture and clip in the outputs is said to be; empty where nothing is (JupyterLab itself says "Image")."""
        return self.page.evaluate("""() => [...document.querySelectorAll('.jp-OutputArea img, .jp-OutputArea video')]
            .map(e => (e.alt || e.title || '').trim().replace(/^Image$/, ''))""")

    def saved(self) -> int:
        """How many pictures and clips stand in the notebook's saved outputs, shown or not."""
        outputs = json.dumps([cell.get("outputs", []) for cell in self.cells()])
        return len(re.findall(r"<img |<video |\"image/", outputs))

    def faults(self) -> list[str]:
        """Whatever is wrong with what the notebook shows, once it has run or been opened."""
        data = [out.get("data", {}) for cell in self.cells() for out in cell.get("outputs", [])]
        bare = [d for d in data if list(d) == ["text/plain"] and "".join(d["text/plain"]).startswith("<")]
        dead = [i for i in range(self.clips()) if not self.clip_plays(i)]
        cut = self.page.evaluate("""() => [...document.querySelectorAll('.jp-OutputArea img, .jp-OutputArea video')].filter(e =>
            e.offsetWidth > e.closest('.jp-OutputArea-output').clientWidth).length""")
        counts = {"widgets not drawn": self.undrawn_widgets(), "pictures not loaded": self.broken_pictures(),
                  "objects shown by their type only": len(bare), "pictures or clips without a name": self.names().count(""),
                  "pictures or clips wider than the page": cut,
                  "clips that play unasked": self.page.locator("video[autoplay]").count(), "clips that do not play": len(dead)}
        asked = [f"asks for {address}" for address in self.outside]
        return self.errors() + asked + [f"{n} {what}" for what, n in counts.items() if n]

    def press_slider(self, key: str = "ArrowRight", index: int = 0, times: int = 1) -> None:
        """Move the index-th slider by the keyboard."""
        handle = self.page.locator(".widget-slider .noUi-handle").nth(index)
        handle.focus()
        for _ in range(times):
            handle.press(key)

    def turn_knob(self, key: str, value: str, index: int = 0) -> list[str]:
        """Press a key on the index-th knob and wait until it says `value` and shows other pictures: their addresses."""
        return self._turned(lambda knob: knob.locator(".noUi-handle").press(key), value, index)

    def play_knob(self, value: str, index: int = 0) -> list[str]:
        """Press Play on the index-th knob and wait until it says `value` and shows other pictures: their addresses."""
        return self._turned(lambda knob: knob.locator(".widget-play button").first.click(), value, index)

    def _turned(self, move, value: str, index: int) -> list[str]:
        knob = self.page.locator(".widget-vbox:has(> .widget-hbox .widget-slider):has(> .widget-html)").nth(index)
        addresses = "knob => [...knob.querySelectorAll('img, video')].map(e => e.src)"
        before = knob.evaluate(addresses)
        move(knob)
        knob.locator(".widget-readout").get_by_text(value, exact=True).wait_for()
        self.page.wait_for_function(f"""([knob, before]) => {{ const now = ({addresses})(knob);
            return now.length === before.length && now.every(a => !before.includes(a)); }}""",
                                    arg=[knob.element_handle(), before])
        return knob.evaluate(addresses)

    def save(self) -> None:
        """File > Save, and wait until it is on disk."""
        self.page.evaluate(f"async () => {{ await {self.MODEL}.context.save(); }}")

    def screenshot(self, path: str | Path, whole: bool = True) -> Path:
        """A picture of the notebook; `whole` makes the window as tall as the notebook first (Chromium ends at 16,384)."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if whole:
            height = self.page.evaluate("""() => [...document.querySelectorAll(
                '.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell')].reduce((sum, c) => sum + c.offsetHeight, 0)""")
            self.page.set_viewport_size({"width": 1280, "height": int(min(max(height + 250, 600), 16000))})
            self.page.wait_for_timeout(500)
        self.page.evaluate("""() => document.querySelectorAll('.jp-WindowedPanel-outer, .jp-Notebook').forEach(
            e => e.scrollTo(0, 0))""")
        self.page.wait_for_timeout(200)
        self.page.screenshot(path=str(path))
        return path


@pytest.fixture(scope="session")
def chromium():
    """A Playwright browser; skips, with the reason, where there is none."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the path (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install 'animkit[dev]'")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def screenshots(repo) -> Path:
    """Where tests leave their pictures: out/screenshots of the clone."""
    folder = repo / "out" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Server]:
    pytest.importorskip("jupyterlab", reason="jupyterlab is missing: pip install 'animkit[course]'")
    place = tmp_path_factory.mktemp("lab")
    (place / "notebooks").mkdir()
    server = Server(place / "notebooks", place / "jupyter")
    try:
        server.wait_ready(120)
        yield server
    finally:
        server.close()


@pytest.fixture
def lab(chromium, server, request) -> Iterator[Lab]:
    """An empty folder in a running JupyterLab, by the test's name; its kernels end with the test."""
    lab = Lab(server, re.sub(r"\W+", "-", request.node.name), chromium)
    yield lab
    lab.close()
