"""A Redis server of a test's own."""

import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio
from engine_server import PATIENCE, EngineServer, free_port, running

__all__ = ["RedisServer", "redis_cluster", "redis_sentinel", "redis_server"]


async def _run_redis(*arguments: str) -> trio.Process:
    # In Debian, all programs of Redis are one, which looks at its name; the package `redis-tools` has it under another.
    program = shutil.which("redis-server") or shutil.which("redis-check-rdb")
    assert program is not None, "the Debian package redis-tools is missing"
    return await trio.lowlevel.open_process(["redis-server", *arguments], executable=program, stdout=subprocess.DEVNULL)


class RedisServer(EngineServer):
    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", ""]
        self.process = await _run_redis(*options, *self.settings)
        with trio.fail_after(PATIENCE):
            while True:
                try:
                    stream = await trio.open_tcp_stream("127.0.0.1", self.port)
                except OSError:
                    await trio.sleep(0.02)
                else:
                    await stream.aclose()
                    return

    async def command(self, *arguments: str) -> str:
        """Execute a command, as `redis-cli` does."""
        done = await trio.run_process(["redis-cli", "-p", str(self.port), *arguments], capture_stdout=True)
        return done.stdout.decode()


def redis_server(directory: Path, *settings: str) -> AbstractAsyncContextManager[RedisServer]:
    return running(RedisServer(directory, settings))


@asynccontextmanager
async def redis_sentinel(directory: Path) -> AsyncIterator[tuple[str, list[RedisServer]]]:
    """A primary, two replicas, and three sentinels, which replace a primary that is silent for a second.

    Yields the URL, and the servers.
    """
    async with AsyncExitStack() as stack:
        servers: list[RedisServer] = []
        for name in ("primary", "replica", "another replica"):
            (directory / name).mkdir()
            options = ("--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0")
            settings = ("--replicaof", f"127.0.0.1 {servers[0].port}") if servers else ()
            servers.append(await stack.enter_async_context(redis_server(directory / name, *options, *settings)))
        ports = []
        for number in range(3):
            ports.append(free_port())
            file = directory / f"sentinel-{number}.conf"
            file.write_text(
                f"port {ports[-1]}\nbind 127.0.0.1\ndir {directory}\n"
                f"sentinel monitor main 127.0.0.1 {servers[0].port} 2\n"
                "sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 3000\n"
            )
            process = await _run_redis(str(file), "--sentinel")
            stack.push_async_callback(_end, process)
        url = "redis+sentinel://" + ",".join(f"127.0.0.1:{port}" for port in ports) + "/main"
        for port in ports:  # until each knows the replica and the other sentinels
            await _wait_for(port, ("SENTINEL", "MASTER", "main"), "num-slaves\n2\n", "num-other-sentinels\n2\n")
        yield url, servers


@asynccontextmanager
async def redis_cluster(directory: Path) -> AsyncIterator[tuple[str, list[RedisServer]]]:
    """A Redis Cluster of three primaries with a replica each. Yields the URL, and the servers."""
    async with AsyncExitStack() as stack:
        servers: list[RedisServer] = []
        for number in range(6):
            folder = directory / str(number)
            folder.mkdir()
            settings = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--repl-diskless-sync-delay", "0")
            bus = ("--cluster-port", str(free_port()))  # else it is the port plus 10,000, which may be too large
            servers.append(await stack.enter_async_context(redis_server(folder, *settings, *bus)))
        places = [f"127.0.0.1:{server.port}" for server in servers]
        command = ["redis-cli", "--cluster", "create", *places, "--cluster-replicas", "1", "--cluster-yes"]
        await trio.run_process(command, capture_stdout=True)
        for server in servers:
            await _wait_for(server.port, ("CLUSTER", "INFO"), "cluster_state:ok", "cluster_known_nodes:6")
        yield "redis+cluster://" + ",".join(places[:2]), servers


async def _end(process: trio.Process) -> None:
    process.kill()
    with trio.CancelScope(shield=True):
        await process.wait()


async def _wait_for(port: int, command: tuple[str, ...], *words: str) -> None:
    with trio.fail_after(3 * PATIENCE):
        while True:
            cli = ["redis-cli", "-p", str(port), *command]
            done = await trio.run_process(cli, capture_stdout=True, capture_stderr=True, check=False)
            if all(word in done.stdout.decode().replace("\r", "") for word in words):
                return
            await trio.sleep(0.1)
