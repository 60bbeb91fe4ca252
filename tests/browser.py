"""A headless Chromium that tests can look into: pages, requests, console, keys, by the DevTools protocol."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.request import urlopen

import websocket

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = [
    *["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
    *["--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"],
    *["--remote-debugging-port=0", "--remote-allow-origins=*", "about:blank"],
]
PATIENCE = 60  # seconds
KEYS = {"Tab": 9, "Enter": 13, "ArrowRight": 39, "ArrowLeft": 37}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        with suppress(ConnectionError):  # the browser went elsewhere
            super().copyfile(source, outputfile)


class Browser:
    """One tab. `requests` has what the page in it asked for, `complaints` what its console said."""

    def __init__(self, address):
        self.socket = websocket.create_connection(address, timeout=PATIENCE, suppress_origin=True)
        self.number = 0
        self.requests, self.sizes, self.complaints, self.events = {}, {}, [], set()
        self.shown = None
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.send("Network.setCacheDisabled", cacheDisabled=True)

    def send(self, method, **params):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]
            self.note(message)

    def note(self, message):
        method, params = message.get("method"), message.get("params", {})
        self.events.add(method)
        if method == "Network.requestWillBeSent":
            self.requests[params["requestId"]] = params["request"]["url"]
        elif method == "Network.dataReceived":
            key = params["requestId"]
            self.sizes[key] = self.sizes.get(key, 0) + params["dataLength"]
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(str(params["entry"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(params["args"]))

    def look(self, url, width=1280, theme="light"):
        """Open a page unless it is what is shown, untouched."""
        if self.shown != (url, width, theme):
            self.open(url, width, theme=theme)
            self.shown = url, width, theme

    def open(self, url, width=1280, height=900, theme="light"):
        self.shown = None
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.go("about:blank")
        for seen in (self.requests, self.sizes, self.complaints):
            seen.clear()
        self.go(url)
        self.ask("document.fonts.ready.then(() => new Promise(done => setTimeout(done, 150)))")

    def go(self, url):
        self.events.clear()
        self.send("Page.navigate", url=url)
        end = time.monotonic() + PATIENCE
        while "Page.loadEventFired" not in self.events and time.monotonic() < end:
            self.note(json.loads(self.socket.recv()))
        assert self.ask("document.readyState") == "complete"

    def ask(self, expression):
        """Return the value of a JavaScript expression, a promise awaited."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def offers(self, selector):
        """Return whether the Tab key, pressed just before an element, leads to it."""
        self.ask(
            f"""{{ const next = document.querySelector({selector!r}), before = document.createElement("a");
            before.tabIndex = 0; next.parentElement.insertBefore(before, next); before.focus(); }}"""
        )
        self.press("Tab")
        return self.ask(f"document.activeElement === document.querySelector({selector!r})")

    def press(self, key):
        self.shown = None
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])
            if key == "Enter" and kind == "rawKeyDown":
                self.send("Input.dispatchKeyEvent", type="char", text="\r", key=key)

    def bytes(self):
        """Return the size of everything that was fetched, by address."""
        return {url: self.sizes.get(key, 0) for key, url in self.requests.items()}


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


@contextmanager
def started(profile: Path) -> Iterator[Browser]:
    """Start Chromium with an empty profile."""
    process = subprocess.Popen(
        [PROGRAM, f"--user-data-dir={profile}", *OPTIONS],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port, end = profile / "DevToolsActivePort", time.monotonic() + PATIENCE
        while not (port.exists() and port.read_text().strip()) and time.monotonic() < end:
            time.sleep(0.1)
        with urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json") as answer:
            pages = [page for page in json.load(answer) if page["type"] == "page"]
        browser = Browser(pages[0]["webSocketDebuggerUrl"])
        yield browser
        browser.socket.close()
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)
