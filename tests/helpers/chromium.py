"""Headless Chromium, driven over the Chrome DevTools Protocol.

async with open_chromium() as browser:
    page = await browser.open("http://127.0.0.1:8765/")
    await page.fill("#name", "ada")
    await page.click("#join")
    await page.wait_for("document.querySelector('#online').textContent === '1 online'")
    assert not browser.problems
"""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-background-timer-throttling",  # the pages under test are never in front
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-renderer-backgrounding",
    "--remote-debugging-port=0",
    "--window-size=1280,800",
)
PATIENCE = 15.0
"""Seconds within which whatever a test waits for must have happened, on a busy machine too."""
SCREENSHOT_BYTES = 64 * 1024 * 1024


class BrowserError(Exception):
    """The browser refused a command, or a page did not get where it should."""


class Page:
    """One tab. `problems` are the exceptions and the console errors so far."""

    def __init__(self, browser: "Browser", session: str) -> None:
        self.problems: list[str] = []
        self._browser = browser
        self._session = session
        self._loaded = trio.Event()

    async def command(self, method: str, **params: Any) -> dict[str, Any]:
        return await self._browser.command(method, self._session, **params)

    async def load(self, url: str) -> None:
        """Go to a URL, and wait until it is loaded."""
        for domain in ("Page", "Runtime", "Log"):
            await self.command(f"{domain}.enable")
        await self.command("Emulation.setFocusEmulationEnabled", enabled=True)
        self._loaded = trio.Event()
        answer = await self.command("Page.navigate", url=url)
        if "errorText" in answer:
            raise BrowserError(f"{url}: {answer['errorText']}")
        with trio.fail_after(PATIENCE):
            await self._loaded.wait()

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = await self.command(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {_exception(answer['exceptionDetails'])}")
        return answer["result"].get("value")

    async def wait_for(self, expression: str) -> Any:
        """Wait until an expression is true: it is looked at whenever the document changes. Returns its value."""
        promise = f"""new Promise((resolve, reject) => {{
            const observer = new MutationObserver(look);
            function look() {{
                try {{
                    const value = {expression};
                    if (!value) return;
                    observer.disconnect();
                    resolve(value);
                }} catch (error) {{
                    observer.disconnect();
                    reject(error);
                }}
            }}
            observer.observe(document, {{ attributes: true, characterData: true, childList: true, subtree: true }});
            look();
        }})"""
        with trio.move_on_after(PATIENCE):
            return await self.evaluate(promise)
        text = await self.evaluate("document.body.innerText")
        raise BrowserError(f"waited {PATIENCE} s for {expression}; problems: {self.problems}; the page says:\n{text}")

    async def wait_for_text(self, selector: str, text: str) -> None:
        """Wait until the element's text, as a person sees it, contains `text`."""
        await self.wait_for(f"document.querySelector({json.dumps(selector)})?.innerText.includes({json.dumps(text)})")

    async def text(self, selector: str) -> str:
        """The element's text as a person sees it: empty while it is hidden."""
        return str(await self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def click(self, selector: str) -> None:
        """Press the mouse button on the middle of an element, once it is there and nothing covers it, and let go."""
        x, y = await self.wait_for(f"""(() => {{
            const element = document.querySelector({json.dumps(selector)});
            element?.scrollIntoView({{ block: "nearest", behavior: "instant" }});
            const box = element?.getBoundingClientRect() ?? new DOMRect();
            const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
            return element?.contains(document.elementFromPoint(x, y)) && !element.disabled && [x, y];
        }})()""")
        for type in ("mousePressed", "mouseReleased"):
            await self.command("Input.dispatchMouseEvent", type=type, x=x, y=y, button="left", clickCount=1)

    async def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key that has a name, as `Enter` or `Tab`, and let go."""
        code, text = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, "")}[key]
        await self.command(
            "Input.dispatchKeyEvent",
            type="keyDown",
            key=key,
            code=key,
            windowsVirtualKeyCode=code,
            text=text,
            modifiers=8 if shift else 0,
        )
        await self.command("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    async def fill(self, selector: str, text: str) -> None:
        """Click into a field, and replace what is in it by what is typed."""
        await self.click(selector)
        await self.evaluate("document.activeElement.select()")
        await self.insert(text)

    async def insert(self, text: str) -> None:
        """Type at the cursor."""
        await self.command("Input.insertText", text=text)

    async def look(self, *, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        """Make the window this big, and prefer dark colours, or light ones."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.command("Emulation.setEmulatedMedia", features=[scheme])
        await self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    async def small_targets(self) -> list[str]:
        """The visible buttons and fields that are less than 44 px wide or high: too small for a finger."""
        small = await self.evaluate("""[...document.querySelectorAll("button, input, textarea")]
            .filter((element) => element.checkVisibility())
            .map((element) => [element, element.getBoundingClientRect()])
            .filter(([, { width, height }]) => Math.round(width) < 44 || Math.round(height) < 44)
            .map(([element, { width, height }]) => `${element.outerHTML}: ${width} x ${height}`)""")
        return list(small)

    async def screenshot(self) -> bytes:
        """The page as it looks now, as PNG."""
        answer = await self.command("Page.captureScreenshot", format="png")
        return base64.b64decode(answer["data"])

    def notice(self, method: str, params: dict[str, Any]) -> None:
        """An event from the browser that concerns this tab."""
        if method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Runtime.exceptionThrown":
            self.problems.append(_exception(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
            self.problems.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("warning", "error", "assert"):
            self.problems.append(" ".join(str(argument.get("value", argument)) for argument in params["args"]))


class Browser:
    """A running browser. Made by `open_chromium`."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self._socket = socket
        self._last = 0
        self._answers: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}  # by session

    async def open(self, url: str) -> Page:
        """A new tab, loaded. It shares cookies and storage with none of the others."""
        context = await self.command("Target.createBrowserContext")
        target = await self.command("Target.createTarget", url="about:blank", **context)
        attached = await self.command("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = self._pages[attached["sessionId"]] = Page(self, attached["sessionId"])
        await page.load(url)
        return page

    @property
    def problems(self) -> list[str]:
        """The problems of all pages."""
        return [problem for page in self._pages.values() for problem in page.problems]

    async def command(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        self._answers[self._last], answers = trio.open_memory_channel[dict[str, Any]](1)
        try:
            with trio.fail_after(2 * PATIENCE):
                await self._socket.send_message(json.dumps(message))
                answer = await answers.receive()
        finally:
            del self._answers[message["id"]]
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    async def listen(self) -> None:
        """The task that delivers what the browser says."""
        while True:
            try:
                message = json.loads(await self._socket.get_message())
            except ConnectionClosed:
                raise BrowserError("the browser is gone") from None
            if "id" in message:
                if message["id"] in self._answers:
                    self._answers[message["id"]].send_nowait(message)
            elif message.get("sessionId") in self._pages:
                self._pages[message["sessionId"]].notice(message["method"], message["params"])


@asynccontextmanager
async def open_chromium() -> AsyncIterator[Browser]:
    """Run a fresh browser, and stop it at the end of the block. Raises BrowserError when it is not installed."""
    program = shutil.which("chromium")
    if program is None:
        raise BrowserError("Chromium is missing; Debian's package is called `chromium`: apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        environment = {**os.environ, "TMPDIR": profile}  # whatever it leaves behind goes with the profile
        process = await trio.lowlevel.open_process(
            command, env=environment, stderr=subprocess.PIPE, start_new_session=True
        )
        try:
            async with trio.open_nursery() as nursery:
                url = await nursery.start(_watch, process.stderr)
                async with open_websocket_url(url, max_message_size=SCREENSHOT_BYTES) as socket:
                    browser = Browser(socket)
                    nursery.start_soon(browser.listen)
                    try:
                        yield browser
                    finally:
                        nursery.cancel_scope.cancel()
        finally:
            await _stop(process)


async def _watch(
    stderr: trio.abc.ReceiveStream | None, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Find the URL in what the browser says at its start; what it says later is thrown away, lest the pipe fill up."""
    assert stderr is not None
    said = b""
    with trio.fail_after(2 * PATIENCE):
        while (found := re.search(rb"DevTools listening on (\S+)\s", said)) is None:
            data = await stderr.receive_some()
            if not data:
                raise BrowserError(f"Chromium did not start: {said.decode(errors='replace')}")
            said += data
    task_status.started(found[1].decode())
    while await stderr.receive_some():
        pass


async def _stop(process: trio.Process) -> None:
    with trio.CancelScope(shield=True):
        process.terminate()
        with trio.move_on_after(PATIENCE) as waiting:
            await process.wait()
        if waiting.cancelled_caught:
            process.kill()
            await process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its helpers, where they outlive it
        if process.stderr is not None:
            await process.stderr.aclose()


def _exception(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description", details["text"]))
