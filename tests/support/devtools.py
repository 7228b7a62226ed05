"""A headless Chromium driven through its DevTools protocol: enough of it to click through a page."""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from websockets.sync.client import connect

_FLAGS = [
    "--headless=new",
    "--no-sandbox",  # containers run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-port=0",
]
_START_S, _CALL_S, _WAIT_S = 60, 30, 30
_KEYS = {"Enter": ("\r", 13), " ": (" ", 32), "ArrowLeft": ("", 37), "ArrowRight": ("", 39), "Escape": ("", 27)}


def find_chromium():
    """Where a Chromium is, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One tab. Everything that it logs as an error or asks of the network is written down."""

    def __init__(self, socket, folder):
        self._socket, self._made, self.folder = socket, 0, folder
        self.errors, self.requests = [], []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """A command and its result."""
        self._made += 1
        self._socket.send(json.dumps({"id": self._made, "method": method, "params": params}))
        deadline = time.monotonic() + _CALL_S
        while True:
            message = json.loads(self._socket.recv(timeout=max(0.01, deadline - time.monotonic())))
            if message.get("id") == self._made:
                assert "error" not in message, (method, message)
                return message["result"]
            self._note(message)

    def _note(self, message):
        match message:
            case {"method": "Network.requestWillBeSent", "params": params}:
                self.requests.append(params["request"])
            case {"method": "Runtime.exceptionThrown", "params": params}:
                self.errors.append(params["exceptionDetails"])
            case {"method": "Runtime.consoleAPICalled", "params": {"type": "error", "args": said}}:
                self.errors.append(said)
            case {"method": "Log.entryAdded", "params": {"entry": {"level": "error"} as entry}}:
                self.errors.append(entry)

    def open(self, address):
        """Go to an address and wait until it is loaded."""
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, expression):
        """The value of an expression in the page; promises are awaited."""
        told = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, (expression, told["exceptionDetails"])
        return told["result"].get("value")

    def wait(self, expression, within_s=_WAIT_S):
        """The value of an expression once it is true; an element is."""
        deadline = time.monotonic() + within_s
        while not (value := self.evaluate(f"((found) => found instanceof Node || found)({expression})")):
            assert time.monotonic() < deadline, f"{expression} did not come true; page: {self.text('body')[:3000]}"
            time.sleep(0.03)
        return value

    def text(self, selector):
        """The text of an element as it is seen."""
        return self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def click(self, selector, text=""):
        """Click the middle of the element, of those with ``text`` in them, once it is seen."""
        chosen = f"(e) => e.innerText.includes({json.dumps(text)})"
        place = self.wait(f"""(() => {{
            const found = [...document.querySelectorAll({json.dumps(selector)})].find({chosen});
            if (!found || found.disabled) return null;
            found.scrollIntoView({{block: "center", inline: "center"}});
            const box = found.getBoundingClientRect();
            return box.width ? [box.left + box.width / 2, box.top + box.height / 2] : null;
        }})()""")
        self.drag([place])

    def drag(self, places):
        """Press the mouse at the first place and let it go at the last, in pixels of the window."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(places) - 1), "mouseReleased"]
        for kind, (x, y) in zip(kinds, [*places, places[-1]], strict=True):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def fill(self, selector, text):
        """Type ``text`` in place of what an input holds."""
        self.wait(f"document.querySelector({json.dumps(selector)})")
        self.evaluate(f"(() => {{const e = document.querySelector({json.dumps(selector)}); e.focus(); e.select();}})()")
        self.call("Input.insertText", text=text) if text else self.key("Delete", 46)

    def key(self, name, code=None):
        """Press and release a key."""
        text, number = _KEYS.get(name, ("", code))
        pressed = {"key": name, "code": name, "windowsVirtualKeyCode": number}
        self.call("Input.dispatchKeyEvent", type="keyDown", **pressed, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def choose(self, selector, value):
        """Choose an option of a select element."""
        self.evaluate(f"""(() => {{
            const found = document.querySelector({json.dumps(selector)});
            found.value = {json.dumps(value)};
            found.dispatchEvent(new Event("change", {{bubbles: true}}));
        }})()""")

    def upload(self, selector, path):
        """Give a file to a file input."""
        element = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")["result"]
        self.call("DOM.setFileInputFiles", files=[str(path)], objectId=element["objectId"])

    def emulate(self, width, height, *, dark=False, mobile=False):
        """Another size of the window, and the colours that the user prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path, *, whole=True):
        """The page as a PNG file."""
        told = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(told["data"]))


@contextlib.contextmanager
def chromium():
    """A page of a browser, which is gone afterwards with all that it wrote."""
    program = find_chromium()
    assert program, "no chromium: make browser"
    with tempfile.TemporaryDirectory(prefix="kinfolk-", ignore_cleanup_errors=True) as name:
        folder = Path(name)  # a short one: the browser has sockets in it
        own = dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "TMPDIR"), name)
        command = [program, *_FLAGS, f"--user-data-dir={folder}", "about:blank"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **own}
            )
        try:
            with connect(_address(folder, process), max_size=None, open_timeout=_CALL_S) as socket:
                page = Page(socket, folder)
                try:
                    yield page
                finally:
                    page.call("Browser.close")
        finally:
            _end(process)


def _address(folder, process):
    """The web socket of the first tab."""
    deadline = time.monotonic() + _START_S
    told = folder / "DevToolsActivePort"
    while not (told.exists() and len(lines := told.read_text().split()) == 2):
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, "chromium did not start"
        time.sleep(0.05)
    with connect(f"ws://127.0.0.1:{lines[0]}{lines[1]}", open_timeout=_CALL_S) as socket:
        socket.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
        targets = json.loads(socket.recv(timeout=_CALL_S))["result"]["targetInfos"]
    page = next(each["targetId"] for each in targets if each["type"] == "page")
    return f"ws://127.0.0.1:{lines[0]}/devtools/page/{page}"


def _end(process):
    """Wait for the browser, which was told to go and ends what it started; what is left of its group is killed."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
