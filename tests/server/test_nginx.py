"""The recipes for nginx in `docs/proxies.md`, with a real nginx."""

import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from support import listening

from trioswitch import ConnectRequest, Identity, Options
from trioswitch.client import open_client
from trioswitch.web import landing_page

ROOT = Path(__file__).parents[2]
NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
RECIPES = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs/proxies.md").read_text(), re.DOTALL)
TCP, UNIX, MAP = RECIPES


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def nginx(directory: Path, recipe: str, upstream: str) -> AsyncIterator[int]:
    """Run nginx with a recipe. Yields its port."""
    port = free_port()
    server, replaced = re.subn(r"listen 443 ssl;", f"listen 127.0.0.1:{port};", recipe)
    server, passed = re.subn(r"proxy_pass [^;]*;", f"proxy_pass {upstream};", server)
    assert (replaced, passed) == (1, 1)
    temporary = "".join(
        f"{name}_temp_path {directory}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"pid {directory}/pid; error_log stderr; events {{}} daemon off; user root;"
        f"http {{ access_log off; {temporary}\n{MAP}\n{server}\n}}"
    )
    process = await trio.lowlevel.open_process(
        [NGINX, "-c", str(directory / "nginx.conf"), "-p", str(directory)], stderr=subprocess.DEVNULL
    )
    try:
        with trio.fail_after(20):
            while True:
                try:
                    await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
                    break
                except OSError:
                    assert process.poll() is None, "nginx has ended"
                    await trio.sleep(0.05)
        yield port
    finally:
        process.terminate()
        with trio.CancelScope(shield=True):
            await process.wait()


async def page(port: int, path: str = "/") -> bytes:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while chunk := await stream.receive_some():
            data += chunk
    return data


def remember(seen: list[ConnectRequest]) -> Any:
    async def on_connect(request: ConnectRequest) -> Identity:
        seen.append(request)
        return Identity(user="ann")

    return on_connect


async def exchange(port: int, seen: list[ConnectRequest]) -> None:
    """A page, and a client that publishes and receives, through the proxy."""
    assert b"200 OK" in await page(port)
    assert b"text/javascript" in await page(port, "/trioswitch.js")
    async with open_client(f"ws://127.0.0.1:{port}/ws") as client, client.room("r") as room:
        await room.publish({"x": "y" * 10_000})
        async for item in room:
            assert item.data == {"x": "y" * 10_000}
            break
    assert seen[0].headers["x-forwarded-for"] == "127.0.0.1"
    assert seen[0].headers["host"] == f"127.0.0.1:{port}"


async def upgraded(port: int, origin: str) -> bytes:
    """The first line of the answer to a page of this origin, whose server is example.com."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(
            b"GET /ws HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nOrigin: %b\r\n\r\n" % origin.encode()
        )
        return bytes(await stream.receive_some()).partition(b"\r\n")[0]


async def test_a_tcp_port(tmp_path: Path) -> None:
    seen: list[ConnectRequest] = []
    options = Options(allow_origins="https://example.com")
    async with listening(options, hooks={"on_connect": remember(seen)}, pages={"/": landing_page()}) as (
        _switch,
        server,
    ):
        async with nginx(tmp_path, TCP, f"http://127.0.0.1:{server.port}") as port:
            await exchange(port, seen)
            assert b" 101 " in await upgraded(port, "https://example.com")
            assert b" 403 " in await upgraded(port, "https://evil.example")


async def test_a_unix_socket(tmp_path: Path) -> None:
    seen: list[ConnectRequest] = []
    path = tmp_path / "socket"
    how: dict[str, Any] = {"uds": path, "uds_mode": 0o660, "pages": {"/": landing_page()}}
    async with listening(hooks={"on_connect": remember(seen)}, **how):
        assert path.stat().st_mode & 0o777 == 0o660
        async with nginx(tmp_path, UNIX, f"http://unix:{path}") as port:
            await exchange(port, seen)
            assert b" 101 " in await upgraded(port, "https://example.com"), "no page reaches the socket itself"
            assert b" 403 " in await upgraded(port, "https://evil.example")


async def test_under_a_prefix(tmp_path: Path) -> None:
    async with listening(Options(path="/live/ws")) as (_switch, server):
        assert server.urls[0].endswith("/live/ws")
        async with nginx(tmp_path, TCP, f"http://127.0.0.1:{server.port}") as port:
            async with open_client(f"ws://127.0.0.1:{port}/live/ws", user_id="ann") as client, client.room("r") as room:
                await room.chat("hello")
