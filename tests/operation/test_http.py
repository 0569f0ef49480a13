"""HTTP/1.1 on the server's port: routes, bodies, keep-alive, pipelining, and requests that are wrong or slow."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from trioswitch import Options, open_switch
from trioswitch.web import Page, Pages, Request, Route, Site, Stream


async def echo(request: Request) -> Page:
    told = {
        "method": request.method,
        "path": request.path,
        "query": request.query,
        "body": request.body.decode("latin-1"),
    }
    return Page(json.dumps(told).encode(), "application/json")


async def fails(_request: Request) -> Page:
    raise ValueError("the handler's fault")


async def counts(request: Request) -> Stream:
    async def numbers() -> AsyncGenerator[bytes, None]:
        for number in range(3):
            await trio.sleep(1)
            yield b"%d\n" % number

    return Stream(numbers(), "text/plain")


async def _wrong(_request: Request) -> str:
    return "no page"


PAGES: Pages = {
    "/echo": Route(echo, ("GET", "POST", "PUT"), max_body=1000, cross_origin=True),
    "/below/*": Route(echo),
    "/below/this/*": Route(fails),
    "/counts": Route(counts),
    "/page": Page(b"a page", "text/plain"),
    "/wrong": Route(_wrong),  # type: ignore[arg-type]
}


@attrs.define
class Peer:
    """Sends bytes, and reads responses as far as they go."""

    stream: trio.abc.Stream
    buffer: bytes = b""

    async def send(self, text: str | bytes) -> None:
        await self.stream.send_all(text.replace("\n", "\r\n").encode() if isinstance(text, str) else text)

    async def response(self, *, body: bool = True) -> tuple[int, dict[str, str], bytes]:
        while b"\r\n\r\n" not in self.buffer:
            await self._more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}
        if body and headers.get("transfer-encoding") == "chunked":
            return int(first.split()[1]), headers, await self._chunks()
        length = int(headers.get("content-length", 0)) if body else 0
        while len(self.buffer) < length:
            await self._more()
        data, self.buffer = self.buffer[:length], self.buffer[length:]
        return int(first.split()[1]), headers, data

    async def _chunks(self) -> bytes:
        data = b""
        while True:
            while b"\r\n" not in self.buffer:
                await self._more()
            size, _, self.buffer = self.buffer.partition(b"\r\n")
            while len(self.buffer) < int(size, 16) + 2:
                await self._more()
            data += self.buffer[: int(size, 16)]
            self.buffer = self.buffer[int(size, 16) + 2 :]
            if not int(size, 16):
                return data

    async def _more(self) -> None:
        data = await self.stream.receive_some()
        if not data:
            raise EOFError
        self.buffer += data

    async def is_closed(self) -> bool:
        try:
            return await self.stream.receive_some() == b""
        except trio.BrokenResourceError:
            return True


@asynccontextmanager
async def site(pages: Pages = PAGES) -> AsyncIterator[tuple[Peer, Site]]:
    made = Site(pages, allow_origins=["https://page.example"])
    async with open_switch(Options()) as switch, trio.open_nursery() as nursery:
        ours, theirs = memory_stream_pair()

        async def serve() -> None:
            await switch.serve_stream(theirs, http_handler=made)

        nursery.start_soon(serve)
        with trio.fail_after(300):
            yield Peer(ours), made
        await ours.aclose()
        nursery.cancel_scope.cancel()


def get(path: str, headers: str = "", method: str = "GET") -> str:
    return f"{method} {path} HTTP/1.1\nHost: test\n{headers}\n"


async def test_several_requests_on_one_connection(autojump_clock: MockClock) -> None:
    async with site() as (peer, _):
        await peer.send(get("/echo?a=1&b=%20&a=2"))
        status, headers, body = await peer.response()
        assert (status, headers["content-type"]) == (200, "application/json")
        assert "connection" not in headers
        assert json.loads(body) == {"method": "GET", "path": "/echo", "query": {"a": "2", "b": " "}, "body": ""}
        await peer.send(get("/echo", "Content-Length: 5\n", "POST") + "hello")
        assert json.loads((await peer.response())[2])["body"] == "hello"
        await peer.send(get("/page", method="HEAD"))
        status, headers, _ = await peer.response(body=False)
        assert (status, headers["content-length"], peer.buffer) == (200, "6", b"")
        await peer.send(get("/page", "Connection: close\n"))
        _, headers, body = await peer.response()
        assert (headers["connection"], body) == ("close", b"a page")
        assert await peer.is_closed()


async def test_requests_that_come_together_are_answered_in_order(autojump_clock: MockClock) -> None:
    async with site() as (peer, _):
        posts = [get("/echo", "Content-Length: 2\n", "POST") + f"{number}" for number in range(10, 30)]
        await peer.send("".join([*posts, get("/page"), get("/nothing"), get("/page")]))
        assert [json.loads((await peer.response())[2])["body"] for _ in posts] == [
            f"{number}" for number in range(10, 30)
        ]
        assert [(await peer.response())[0] for _ in range(3)] == [200, 404, 200]


async def test_many_requests_at_once_hold_up_nobody(autojump_clock: MockClock) -> None:
    async with site() as (peer, _), trio.open_nursery() as nursery:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        await peer.send(get("/page") * 1000)
        nursery.start_soon(count)
        for _ in range(1000):
            assert (await peer.response())[0] == 200
        assert turns > 900
        nursery.cancel_scope.cancel()


async def test_a_websocket_may_follow_on_the_same_connection(autojump_clock: MockClock) -> None:
    async with site() as (peer, _):
        await peer.send(get("/page"))
        await peer.response()
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\nSec-WebSocket-Version: 13\n"
        await peer.send(get("/ws", f"Upgrade: websocket\nConnection: Upgrade\n{key}"))
        assert (await peer.response())[0] == 101


async def test_bodies_in_chunks_and_after_100_continue(autojump_clock: MockClock) -> None:
    async with site() as (peer, _):
        chunks = "Transfer-Encoding: chunked\n"
        await peer.send(get("/echo", chunks, "PUT") + "3\nabc\n2;extension=1\nde\n0\nTrailer: x\n\n")
        assert json.loads((await peer.response())[2])["body"] == "abcde"
        await peer.send(get("/echo", "Content-Length: 2\nExpect: 100-continue\n", "POST"))
        assert (await peer.response())[0] == 100
        await peer.send("ok")
        assert json.loads((await peer.response())[2])["body"] == "ok"
        await peer.send(get("/echo", "Content-Length: 5000\nExpect: 100-continue\n", "POST"))
        status, headers, _ = await peer.response()  # without 100: the body is not wanted
        assert (status, headers["connection"]) == (413, "close")
        assert await peer.is_closed()


async def test_bodies_that_are_too_long(autojump_clock: MockClock) -> None:
    for text in (
        get("/echo", "Content-Length: 1001\n", "POST"),
        get("/echo", "Transfer-Encoding: chunked\n", "POST") + "3e9\n" + "x" * 1001,
        get("/page", "Content-Length: 1\n") + "x",
    ):
        async with site() as (peer, _):
            await peer.send(text)
            status, headers, _ = await peer.response()
            assert (status, headers["connection"]) == (413, "close")


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 5\nContent-Length: 6\n",
        "Content-Length: 5\nTransfer-Encoding: chunked\n",
        "Content-Length: -5\n",
        "Content-Length: 0x5\n",
        "Content-Length: 5, 6\n",
        "Content-Length: 99999999999999999999999999\n",
        "Transfer-Encoding: chunked, identity\n",
        "Transfer-Encoding: xchunked\n",
        "Transfer-Encoding : chunked\n",
        " Content-Length: 5\n",
        "Host: other\n",
        "A: b\0c\n",
    ],
)
async def test_what_could_smuggle_a_request_is_refused(head: str, autojump_clock: MockClock) -> None:
    async with site() as (peer, _):
        await peer.send(get("/echo", head, "POST") + "0\n\n" + get("/page"))
        status, headers, _ = await peer.response()
        assert status in (400, 413, 501)
        assert headers["connection"] == "close"
        assert await peer.is_closed()


async def test_slow_heads_and_bodies_end(autojump_clock: MockClock) -> None:
    async with site() as (peer, _):
        await peer.send(get("/echo", "Content-Length: 5\n", "POST") + "h")
        started = trio.current_time()
        status, headers, body = await peer.response()
        assert (status, headers["connection"], body) == (408, "close", b"the body took too long\n")
        assert trio.current_time() - started == pytest.approx(10)
    async with site() as (peer, _):
        await peer.send("GET /page HTTP/1.1\nHo")
        assert (await peer.response())[0] == 408


async def test_an_idle_connection_is_closed_and_at_the_end_at_once(autojump_clock: MockClock) -> None:
    async with site() as (peer, _):
        await peer.send(get("/page"))
        await peer.response()
        started = trio.current_time()
        assert await peer.is_closed()
        assert trio.current_time() - started == pytest.approx(60)
    async with site() as (peer, made):
        await peer.send(get("/page"))
        await peer.response()
        started = trio.current_time()
        await trio.testing.wait_all_tasks_blocked()
        made.stop()
        assert await peer.is_closed()
        assert trio.current_time() == started


async def test_an_answer_in_pieces(autojump_clock: MockClock) -> None:
    async with site() as (peer, _):
        await peer.send(get("/counts"))
        status, headers, body = await peer.response()
        assert (status, headers["transfer-encoding"], body) == (200, "chunked", b"0\n1\n2\n")
        await peer.send(get("/counts", method="HEAD"))
        assert (await peer.response(body=False))[0] == 200
    async with site() as (peer, _):
        await peer.send("GET /counts HTTP/1.0\nHost: test\n\n")
        status, headers, _ = await peer.response()
        assert (status, headers["connection"]) == (200, "close")
        data = peer.buffer
        while more := await peer.stream.receive_some():
            data += more
        assert data == b"0\n1\n2\n"


async def test_paths_and_methods(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with site() as (peer, _):
        for path, method, status in (
            ("/below/x/y", "GET", 200),
            ("/below/", "GET", 200),
            ("/below", "GET", 404),
            ("/below/x", "POST", 405),
            ("/echo", "DELETE", 405),
            ("/%65cho", "GET", 200),
            ("/page/../echo", "GET", 404),
            ("/below/%2e%2e/page", "GET", 200),
            ("//echo", "GET", 404),
        ):
            await peer.send(get(path, method=method))
            assert (await peer.response())[0] == status, path
        await peer.send(get("/echo", method="OPTIONS"))
        status, headers, _ = await peer.response()
        assert (status, headers["allow"]) == (204, "GET, POST, PUT, HEAD, OPTIONS")
        for path in ("/below/this/x", "/wrong"):
            await peer.send(get(path))
            assert (await peer.response())[2] == b"internal error\n"
    assert [record.message for record in caplog.records if record.exc_info] == [
        "the handler of /below/this/x failed",
        "the handler of /wrong failed",
    ]


async def test_pages_of_other_origins(autojump_clock: MockClock) -> None:
    async with site() as (peer, _):
        await peer.send(get("/echo", "Origin: https://page.example\nAccess-Control-Request-Method: POST\n", "OPTIONS"))
        _, headers, _ = await peer.response()
        assert headers["access-control-allow-origin"] == "https://page.example"
        assert headers["access-control-allow-methods"] == "GET, POST, PUT, HEAD"
        await peer.send(get("/echo", "Origin: https://page.example\n"))
        _, headers, _ = await peer.response()
        assert (headers["access-control-allow-origin"], headers["vary"]) == ("https://page.example", "Origin")
        for path, origin in (("/echo", "https://evil.example"), ("/below/x", "https://page.example")):
            await peer.send(get(path, f"Origin: {origin}\n"))
            assert "access-control-allow-origin" not in (await peer.response())[1]


def test_routes_that_are_not_valid() -> None:
    for arguments, error in (
        (("no function",), TypeError),
        ((echo, "FETCH"), ValueError),
        ((echo, ()), ValueError),
        ((echo, 5), TypeError),
    ):
        with pytest.raises(error):
            Route(*arguments)
    with pytest.raises(ValueError, match="must be >= 0"):
        Route(echo, max_body=-1)
    with pytest.raises(TypeError, match="must be a Page, a Route"):
        Site({"/": "text"})  # type: ignore[dict-item]
