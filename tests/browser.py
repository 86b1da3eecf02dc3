"""A headless Chromium, driven over its DevTools protocol: open a page, run its JavaScript, press, drag, photograph."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-default-browser-check",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--remote-debugging-port=0",
)  # fmt: skip


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One Chromium with one page; use as a context manager. `problems` holds console errors and uncaught exceptions."""

    def __init__(self, width=1280, height=800) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        size = f"--window-size={width},{height}"
        command = [find_chromium(), *FLAGS, size, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self._do(self._connect())
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.send(f"{domain}.enable")
            self.resize(width, height)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        if hasattr(self, "_session"):
            self._reader.cancel()
            self._do(self._session.close())
        self._process.kill()
        self._process.wait(timeout=30)
        self._loop.close()
        self._profile.cleanup()

    def _do(self, task):
        async def run():
            return await asyncio.wait_for(task, 60)

        return self._loop.run_until_complete(run())

    async def _connect(self) -> None:
        port_file = Path(self._profile.name) / "DevToolsActivePort"
        for _ in range(300):
            if port_file.is_file() and len(port_file.read_text().splitlines()) == 2:
                break
            if self._process.poll() is not None:
                raise RuntimeError("Chromium ended before it could be reached")
            await asyncio.sleep(0.1)
        port = port_file.read_text().splitlines()[0]
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [target for target in await answer.json() if target["type"] == "page"]
        self._socket = await self._session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
        self._waiting: dict[int, asyncio.Future] = {}
        self._number = 0
        self._reader = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        async for message in self._socket:
            content = message.json()
            if "id" in content:
                self._waiting.pop(content["id"]).set_result(content)
                continue
            method, said = content["method"], content["params"]
            if method == "Runtime.exceptionThrown":
                self.problems.append(str(said["exceptionDetails"]))
            elif method == "Runtime.consoleAPICalled" and said["type"] in {"error", "warning", "assert"}:
                self.problems.append(" ".join(str(value.get("value", value)) for value in said["args"]))
            elif method == "Log.entryAdded" and said["entry"]["level"] in {"error", "warning"}:
                if "GPU stall due to ReadPixels" in said["entry"]["text"]:
                    continue  # taking a photograph is slow: Chromium's software drawing says so
                self.problems.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
            elif method == "Network.requestWillBeSent":
                self.requests.append(said["request"]["url"])

    async def _send(self, method: str, arguments: dict):
        self._number += 1
        answer = self._waiting[self._number] = self._loop.create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": arguments})
        content = await answer
        if "error" in content:
            raise RuntimeError(f"{method}: {content['error']}")
        return content["result"]

    def send(self, method: str, **arguments):
        return self._do(self._send(method, arguments))

    def resize(self, width: int, height: int, ratio=1) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=ratio, mobile=False
        )

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)

    def run(self, script: str):
        """Value of a JavaScript expression (promises are awaited)."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, condition: str, seconds=20.0):
        """Until a JavaScript expression is true; returns its value."""
        end = time.monotonic() + seconds
        while True:
            value = self.run(f"(() => {{ try {{ return {condition}; }} catch {{ return null; }} }})()")
            if value:
                return value
            if time.monotonic() > end:
                raise TimeoutError(f"{condition} did not come true in {seconds} s; problems: {self.problems}")
            self._do(asyncio.sleep(0.03))

    def wheel(self, x: float, y: float, delta: float) -> None:
        self.send("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=delta)

    def move(self, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        steps = [tuple(s + (e - s) * t / 4 for s, e in zip(start, end, strict=True)) for t in range(5)]
        held = {"button": "left", "buttons": 1, "clickCount": 1}
        self.move(*start)
        self.send("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], **held)
        for x, y in steps[1:]:
            self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, **held)
        self.send("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], **held | {"buttons": 0})

    def click(self, selector: str) -> None:
        """Press the middle of an element, as a hand would."""
        rect = self.run(
            f"(() => {{ const r = document.querySelector({selector!r}).getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        self.drag(tuple(rect), tuple(rect))

    def key(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key)

    def photograph(self) -> bytes:
        """The page as PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
