"""TLS on a plain socket: against `ssl` on the other end of a pair with small buffers."""

import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trustme
from support import PATIENCE

from trioswitch.errors import PeerGone
from trioswitch.transport.tls import PIECE, TlsByteStream

VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda v: v.name)


@attrs.frozen(eq=False)
class Peer:
    """The client: nothing is read from its socket but by `pump`."""

    socket: socket.socket
    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO

    async def shake_hands(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                await trio.lowlevel.wait_readable(self.socket)
                self.incoming.write(self.socket.recv(PIECE))
            else:
                return self.flush()

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        self.flush()

    def flush(self) -> None:
        data = self.outgoing.read()
        assert self.socket.send(data) == len(data)

    def pump(self, size: int) -> bytes:
        """Take some bytes from the socket, and return what they decrypt to."""
        data = b""
        try:
            self.incoming.write(self.socket.recv(size))
            while True:
                data += self.tls.read(PIECE)
        except (BlockingIOError, ssl.SSLWantReadError):
            return data

    async def receive(self, size: int) -> bytes:
        data = b""
        with trio.fail_after(PATIENCE):
            while len(data) < size:
                await trio.lowlevel.wait_readable(self.socket)
                data += self.pump(PIECE)
        return data


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


@asynccontextmanager
async def pair(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> AsyncIterator[tuple[TlsByteStream, Peer]]:
    """A channel and its peer, after the handshake and one message each way."""
    server, client = contexts
    client.minimum_version = client.maximum_version = version
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    peer = Peer(theirs, client.wrap_bio(incoming, outgoing, server_hostname="localhost"), incoming, outgoing)
    channel = TlsByteStream(ours, server)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.shake_hands)
            nursery.start_soon(channel.read)
            await trio.testing.wait_all_tasks_blocked()
            peer.send(b"hello")
    await channel.write(b"welcome")
    assert await peer.receive(7) == b"welcome"
    yield channel, peer
    await channel.aclose()
    theirs.close()


@VERSIONS
async def test_all_that_has_arrived_is_read_at_once(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], version: ssl.TLSVersion
) -> None:
    async with pair(contexts, version) as (channel, peer):
        for number in range(20):
            peer.send(b"%d " % number)
        assert (await channel.read()).split() == [b"%d" % number for number in range(20)]
        with pytest.raises(BlockingIOError):
            channel.read_ready()
        peer.send(b"more")
        assert channel.read_ready() == b"more"


@VERSIONS
@pytest.mark.parametrize("seed", range(5))
async def test_what_a_full_socket_leaves_is_written_later(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], version: ssl.TLSVersion, seed: int
) -> None:
    rng = random.Random(seed)
    sent = rng.randbytes(300_000)
    async with pair(contexts, version) as (channel, peer):
        rest, got = memoryview(sent), b""
        assert channel.write_nowait is not None
        while rest or len(got) < len(sent):
            if rest and rng.random() < 0.5:
                piece = rest[: rng.choice([1, 100, PIECE, len(rest)])]
                try:
                    written = channel.write_nowait(piece)  # type: ignore[arg-type]
                except BlockingIOError:
                    assert len(got) < len(sent)
                else:
                    assert 0 < written <= len(piece)
                    rest = rest[written:]
                # Whoever is told of less goes on with the same data: here, with as much of it or with more.
            else:
                got += peer.pump(rng.choice([1, 1000, 20_000]))
        assert got == sent


async def test_a_write_waits_for_the_peer(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    sent = random.Random(1).randbytes(500_000)
    async with pair(contexts) as (channel, peer), trio.open_nursery() as nursery:
        nursery.start_soon(channel.write, sent)
        assert await peer.receive(len(sent)) == sent


async def test_a_peer_that_goes(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async with pair(contexts) as (channel, peer):
        peer.send(b"last words")
        peer.socket.shutdown(socket.SHUT_WR)
        assert await channel.read() == b"last words"
        assert await channel.read() == b"", "as browsers do: without a goodbye of TLS"
    async with pair(contexts) as (channel, peer):
        with pytest.raises(ssl.SSLWantReadError):
            peer.tls.unwrap()
        peer.flush()
        assert await channel.read() == b"", "and with one"
        peer.socket.close()
        with pytest.raises(PeerGone):
            await channel.write(b"x")


async def test_what_is_no_tls_ends_the_connection(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async with pair(contexts) as (channel, peer):
        peer.socket.send(b"\x17\x03\x03\x00\x20" + b"x" * 32)
        with pytest.raises(PeerGone):
            await channel.read()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    channel = TlsByteStream(ours, contexts[0])
    theirs.send(b"GET / HTTP/1.1\r\n\r\n")
    with trio.fail_after(PATIENCE), pytest.raises(PeerGone):
        await channel.read()
    await channel.aclose()
    theirs.close()


async def test_a_handshake_that_is_not_finished(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    channel = TlsByteStream(ours, contexts[0])
    theirs.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    with trio.move_on_after(0.01) as scope:
        await channel.read()
    assert scope.cancelled_caught
    theirs.close()
    with pytest.raises(PeerGone):
        await channel.read()
    await channel.aclose()


async def test_answers_of_tls_itself_do_not_pile_up(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    buffers: list[ssl.MemoryBIO] = []

    def recorded(make: Callable[[], ssl.MemoryBIO] = ssl.MemoryBIO) -> ssl.MemoryBIO:
        buffers.append(make())
        return buffers[-1]

    monkeypatch.setattr(ssl, "MemoryBIO", recorded)
    async with pair(contexts) as (channel, peer):
        outgoing = buffers[-1]
        outgoing.write(b"x" * (PIECE + 1))
        peer.send(b"x")
        with pytest.raises(PeerGone):
            await channel.read()
