"""nginx, as `examples/deploy/nginx` configures it, in front of two servers that are replaced one after the other under load."""

import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from engine_server import free_port
from engines import Engines, open_engines, serve_node
from servers import PATIENCE, Program

from trioswitch.client import Gap, Message, Room, open_client

CONFIGURATION = Path(__file__).parents[2] / "examples" / "deploy" / "nginx" / "trioswitch.conf"
MAIN = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {directory};
    proxy_temp_path {directory};
    fastcgi_temp_path {directory};
    uwsgi_temp_path {directory};
    scgi_temp_path {directory};
    include {directory}/trioswitch.conf;
}}
"""

pytestmark = pytest.mark.kill


@asynccontextmanager
async def _nginx(directory: Path, port: int, servers: list[int]) -> AsyncIterator[None]:
    """As an operator runs it, but for the ports."""
    text = CONFIGURATION.read_text()
    for documented, own in {"listen 80;": port, "127.0.0.1:8765": servers[0], "127.0.0.1:8766": servers[1]}.items():
        assert text.count(documented) == 1
        name = f"listen 127.0.0.1:{own};" if "listen" in documented else f"127.0.0.1:{own}"
        text = text.replace(documented, name)
    (directory / "trioswitch.conf").write_text(text)
    main = directory / "nginx.conf"
    main.write_text(MAIN.format(directory=directory))
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    command = [program, "-e", "stderr", "-p", str(directory), "-c", str(main)]
    await trio.run_process([*command, "-t"], capture_stderr=True)
    process = await trio.lowlevel.open_process(command)
    try:
        with trio.fail_after(PATIENCE):
            while not await _listens(port):
                await trio.sleep(0.05)
        yield
    finally:
        process.terminate()
        with trio.CancelScope(shield=True):
            await process.wait()


async def _listens(port: int) -> bool:
    try:
        await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
    except OSError:
        return False
    return True


class _Server:
    """One of the two: it is ended in good order, and started anew at its address."""

    def __init__(self, engines: Engines, number: int) -> None:
        self.port = free_port()
        self.programs: list[Program] = []
        self.exits: list[int] = []
        self._engines = engines
        self._name = f"server {number}"

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        while True:
            async with serve_node(self._engines, self._name, self.port) as program:
                self.programs.append(program)
                if len(self.programs) == 1:
                    task_status.started()
                self.exits.append(await program.process.wait())

    async def replace(self) -> None:
        count = len(self.programs)
        self.programs[-1].process.send_signal(signal.SIGTERM)
        with trio.fail_after(PATIENCE):
            while len(self.programs) == count:
                await trio.sleep(0.05)


async def _read(room: Room, received: list[str | Gap]) -> None:
    async for message in room:
        if isinstance(message, Gap):
            received.append(message)
        elif isinstance(message, Message) and message.content is not None:
            received.append(message.content)


async def test_two_servers_are_replaced_and_no_client_loses_a_message(tmp_path: Path) -> None:
    readers, publishers = 12, 4
    async with AsyncExitStack() as stack:
        engines = await stack.enter_async_context(open_engines("redis", tmp_path))
        nursery = await stack.enter_async_context(trio.open_nursery())
        servers = [_Server(engines, number) for number in range(2)]
        for server in servers:
            await nursery.start(server.run)
        port = free_port()
        await stack.enter_async_context(_nginx(tmp_path, port, [server.port for server in servers]))
        url = f"ws://127.0.0.1:{port}/ws"
        received: list[list[str | Gap]] = [[] for _ in range(readers)]
        said: list[str] = []
        over = trio.Event()

        async def listen(number: int, task_status: trio.TaskStatus[None]) -> None:
            async with open_client(url, user_id=f"reader {number}") as client, client.room("stored") as room:
                task_status.started()
                await _read(room, received[number])

        async def publish(number: int) -> None:
            async with open_client(url, user_id=f"publisher {number}") as client, client.room("stored") as room:
                count = 0
                while not over.is_set():
                    text = f"{number}:{count}"
                    await room.chat(text, idempotency_key=text)  # waits while there is no connection
                    said.append(text)
                    count += 1
                    await trio.sleep(0.01)

        for number in range(readers):
            await nursery.start(listen, number)
        async with trio.open_nursery() as load:
            for number in range(publishers):
                load.start_soon(publish, number)
            for server in servers * 2:
                await trio.sleep(1)
                before = len(said)
                await server.replace()
                with trio.fail_after(PATIENCE):
                    while len(said) < before + 50:  # they go on
                        await trio.sleep(0.05)
            over.set()
        with trio.fail_after(PATIENCE):
            while any(len(texts) < len(said) for texts in received):
                await trio.sleep(0.05)
        assert all(texts == received[0] for texts in received)  # no gap, nothing twice, one order
        assert sorted(map(str, received[0])) == sorted(said)
        assert [server.exits for server in servers] == [[0, 0], [0, 0]]
        nursery.cancel_scope.cancel()
