"""What the browser is pointed at: programs as a person starts them, and switches that a test holds in its hand."""

import re
import runpy
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import trio
from chromium import PATIENCE

import trioswitch
from trioswitch.web import Pages, landing_page

HOST = "127.0.0.1"
CHAT = Path(__file__).parents[2] / "examples" / "chat"


@asynccontextmanager
async def run_program(*arguments: str | Path, end: signal.Signals = signal.SIGINT) -> AsyncIterator[str]:
    """Run a Python program that says its URL, and yield that.

    At the end of the block it gets the signal `end`, Ctrl-C or another: it must end well, unless it is killed.
    """
    process = await trio.lowlevel.open_process(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    said = b""
    try:
        with trio.fail_after(PATIENCE):
            while (found := re.search(rb"//127\.0\.0\.1:\d+/", said)) is None:
                data = await process.stdout.receive_some()
                assert data, f"the program ended: {said.decode()}"
                said += data
        yield f"http:{found[0].decode()}"
        process.send_signal(end)
        with trio.fail_after(PATIENCE):
            async for data in process.stdout:
                said += data
            assert await process.wait() == (-end if end is signal.SIGKILL else 0), said.decode()
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            await process.stdout.aclose()


@asynccontextmanager
async def run_landing() -> AsyncIterator[tuple[trioswitch.Switch, str]]:
    """A switch behind the landing page, and its URL."""
    async with trioswitch.open_switch() as switch, serve_pages(switch, {"/": landing_page()}) as url:
        yield switch, url


@asynccontextmanager
async def run_chat(options: trioswitch.Options | None = None) -> AsyncIterator[tuple[trioswitch.Switch, str]]:
    """The chat's switch, with options and a store in memory, and the URL of its page."""
    chat = runpy.run_path(str(CHAT / "chat.py"))
    options = options or trioswitch.Options()
    options = attrs.evolve(options, policies=(*options.policies, *chat["POLICIES"]))
    async with (
        trioswitch.open_store("memory") as store,
        trioswitch.open_switch(options, store=store, handlers=chat["handlers"], on_connect=chat["let_in"]) as switch,
        serve_pages(switch, chat["PAGES"]) as url,
    ):
        yield switch, url


@asynccontextmanager
async def serve_pages(switch: trioswitch.Switch, pages: Pages) -> AsyncIterator[str]:
    """Serve a switch and pages on a free port; yields the URL."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(trioswitch.serve, switch, host=HOST, port=0, pages=pages))
        yield f"http://{HOST}:{server.port}/"
        nursery.cancel_scope.cancel()


class Cable:
    """Carries what a browser and a server say to each other, as long as the test likes."""

    def __init__(self, url: str | None, port: int) -> None:
        self.url = f"http://{HOST}:{port}/"
        self.lead_to(url)
        self._carried: set[trio.CancelScope] = set()
        self._silent: set[trio.CancelScope] = set()
        self._deaf: set[trio.CancelScope] = set()

    def lead_to(self, url: str | None) -> None:
        """Carry the next connections to this server; None: close them."""
        self._port = None if url is None else urlsplit(url).port

    def cut(self) -> None:
        """Close the connections that there are."""
        for scope in self._carried:
            scope.cancel()

    def silence(self) -> None:
        """Carry nothing more on the connections that there are, and do not close them: as when a router dies."""
        self._silent |= self._carried
        self.deafen()

    def deafen(self) -> None:
        """Carry nothing more to the browser on the connections that there are: the server hears it still."""
        self._deaf |= self._carried

    async def carry(self, client: trio.SocketStream) -> None:
        if self._port is None:
            await trio.aclose_forcefully(client)
            return
        with trio.CancelScope() as scope:
            self._carried.add(scope)
            try:
                server = await trio.open_tcp_stream(HOST, self._port)
            except OSError:  # the server has gone
                self._carried.discard(scope)
                await trio.aclose_forcefully(client)
                return
            async with client, server, trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, client, server, scope, self._silent)
                nursery.start_soon(self._pump, server, client, scope, self._deaf)
        self._carried.discard(scope)

    @staticmethod
    async def _pump(
        source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope, stopped: set[trio.CancelScope]
    ) -> None:
        try:
            async for data in source:
                if scope in stopped:
                    await trio.sleep_forever()
                await sink.send_all(data)
        except trio.BrokenResourceError:
            pass  # one side went without a goodbye: so does the other
        scope.cancel()


@asynccontextmanager
async def lay_cable(url: str | None = None) -> AsyncIterator[Cable]:
    """Put a cable between the browser, which is given the cable's URL, and the server at `url`, or at that of `lead_to`."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host=HOST)
        cable = Cable(url, listeners[0].socket.getsockname()[1])
        nursery.start_soon(trio.serve_listeners, cable.carry, listeners)
        yield cable
        nursery.cancel_scope.cancel()
