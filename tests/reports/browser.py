"""Chromium without a window, driven over a pipe by the Chrome DevTools protocol: no driver, no port."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = """
    --headless=new --no-sandbox --disable-dev-shm-usage --no-first-run --disable-extensions --hide-scrollbars
    --disable-background-networking --disable-component-update --remote-debugging-pipe --mute-audio
""".split()
WITHOUT_WEBGL = ("--disable-gpu", "--disable-webgl", "--disable-3d-apis")
WITH_WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
_CODES = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}


class Browser:
    """A browser with one page; leave it as a context."""

    def __init__(self, folder: Path, flags: tuple[str, ...] = WITHOUT_WEBGL) -> None:
        assert PROGRAM is not None
        self.folder, self.number, self.said, self.events = Path(folder), 0, [], []
        theirs_in, self.to = os.pipe()
        self.come, theirs_out = os.pipe()
        # The browser reads descriptor 3 and writes 4.
        command = [PROGRAM, *FLAGS, *flags, f"--user-data-dir={self.folder / 'profile'}", "about:blank"]
        line = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self.process = subprocess.Popen(
            ["bash", "-c", line, "bash", *command],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.buffer, self.session = b"", None
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.size(1280, 900)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self.to)
        os.close(self.come)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command; events on the way are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self.number:
                assert "error" not in found, f"{method}: {found['error']}"
                return found["result"]

    def wait(self, event: str) -> None:
        """Until an event that has not been waited for has come."""
        while event not in self.events:
            self._next()
        del self.events[: self.events.index(event) + 1]

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + 120
        while b"\0" not in self.buffer:
            ready, *_ = select.select([self.come], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self.come, 1 << 20)
            assert part, "the browser has ended"
            self.buffer += part
        text, _, self.buffer = self.buffer.partition(b"\0")
        found = json.loads(text)
        method, given = found.get("method"), found.get("params", {})
        self.events.append(method)
        if method == "Runtime.exceptionThrown":
            self.said.append(given["exceptionDetails"].get("exception", {}).get("description", str(given)))
        elif method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
            self.said.append(str(given["args"]))
        elif method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.said.append(given["entry"]["text"] + " " + given["entry"].get("url", ""))
        return found

    def open(self, page: Path) -> None:
        self.events.clear()
        self.call("Page.navigate", url=Path(page).resolve().as_uri())
        self.wait("Page.loadEventFired")

    def run(self, script: str) -> Any:
        """The value of an expression; promises are awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def key(self, key: str) -> None:
        given: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": _CODES.get(key, 0)}
        self.call(
            "Input.dispatchKeyEvent", type="keyDown", **given, **({"text": key} if len(key) == 1 else {})
        )
        self.call("Input.dispatchKeyEvent", type="keyUp", **given)

    def pointer(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def size(self, width: int, height: int, scale: float = 1, mobile: bool = False) -> None:
        given = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", **given)

    def dark(self, wanted: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if wanted else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
