"""The broker on Redis, with a real server."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from broker_contract import PATIENCE, BrokerContract, Client, Connect
from redis_server import RedisServer, redis_server

from trioswitch.brokers import open_broker
from trioswitch.errors import BrokerError


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with redis_server(tmp_path) as server:
        yield server


class TestRedisBroker(BrokerContract):
    @pytest.fixture
    async def connect(self, redis: RedisServer) -> AsyncIterator[Connect]:
        async with trio.open_nursery() as nursery:

            async def connect(*topics: str) -> Client:
                client = Client(open_broker(redis.url), list(topics))
                nursery.start_soon(client.broker.run, client)
                await client.wait(lambda: client.connected)
                return client

            yield connect
            nursery.cancel_scope.cancel()

    @pytest.mark.parametrize("kind", ["pubsub", "normal"])
    async def test_connections_that_the_server_kills(self, connect: Connect, redis: RedisServer, kind: str) -> None:
        client, publisher = await connect("t"), await connect()
        await redis.command("CLIENT", "KILL", "TYPE", kind)
        await client.wait(lambda: client.connections == 2)
        await publisher.wait(lambda: publisher.connected)
        assert client.reasons
        with trio.fail_after(PATIENCE):
            while True:
                try:
                    await publisher.broker.publish([("t", b"after")])
                    break
                except BrokerError:
                    await trio.sleep(0.05)
        assert await client.receive(1) == [("t", b"after")]

    async def test_a_server_that_dies_and_comes_back(self, connect: Connect, redis: RedisServer) -> None:
        client = await connect("t")
        await redis.kill()
        await client.wait(lambda: not client.connected)
        with pytest.raises(BrokerError):
            await client.broker.publish([("t", b"x")])
        await trio.sleep(0.5)
        assert "cannot be reached: Connection refused" in client.reasons[-1]
        await redis.start()
        await client.wait(lambda: client.connected)
        await client.broker.publish([("t", b"after")])
        assert await client.receive(1) == [("t", b"after")]

    async def test_a_slow_subscriber_is_disconnected_by_the_server(self, connect: Connect, redis: RedisServer) -> None:
        await redis.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 512kb 1")
        client, publisher = await connect("t"), await connect()
        payload = b"x" * 100_000
        for _ in range(5):
            await publisher.broker.publish([("t", payload)] * 200)  # no reader is that fast
        await client.wait(lambda: len(client.payloads) == 1000 or client.connections > 1)  # it is never lost in silence


@pytest.mark.parametrize(
    ("settings", "url", "reason"),
    [
        (("--requirepass", "secret"), "redis://127.0.0.1:{}", "it wants a password"),
        (("--requirepass", "secret"), "redis://:wrong@127.0.0.1:{}", "refuses the password"),
        (("--replicaof", "127.0.0.1 1"), "redis://127.0.0.1:{}", "is a read-only replica"),
        ((), "redis://127.0.0.1:{}/99", "DB index is out of range"),
    ],
)
async def test_servers_that_cannot_be_used(tmp_path: Path, settings: tuple[str, ...], url: str, reason: str) -> None:
    async with redis_server(tmp_path, *settings) as server, trio.open_nursery() as nursery:
        client = Client(open_broker(url.format(server.port)))
        nursery.start_soon(client.broker.run, client)
        await client.wait(lambda: bool(client.reasons))
        assert reason in client.reasons[0]
        assert "secret" not in client.reasons[0]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*-7\r\n", b"\0" * 100, b"$99999999999999999999\r\n"]
)
async def test_what_answers_is_no_redis(answer: bytes) -> None:
    async def respond(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, respond, listeners)
        client = Client(open_broker(f"redis://127.0.0.1:{listeners[0].socket.getsockname()[1]}"))
        nursery.start_soon(client.broker.run, client)
        await client.wait(lambda: bool(client.reasons))
        assert "is no Redis" in client.reasons[0]
        nursery.cancel_scope.cancel()


async def test_with_a_password(tmp_path: Path) -> None:
    async with redis_server(tmp_path, "--requirepass", "p@ss:/word") as server, trio.open_nursery() as nursery:
        client = Client(open_broker(f"redis://:p%40ss%3A%2Fword@127.0.0.1:{server.port}/3?prefix=other"), ["t"])
        nursery.start_soon(client.broker.run, client)
        await client.wait(lambda: client.connected)
        await client.broker.publish([("t", b"x")])
        assert await client.receive(1) == [("t", b"x")]
        nursery.cancel_scope.cancel()


async def test_two_prefixes_are_two_clusters(redis: RedisServer) -> None:
    async with trio.open_nursery() as nursery:
        clients = [Client(open_broker(f"{redis.url}?prefix={prefix}"), ["t"]) for prefix in ("a", "b")]
        for client in clients:
            nursery.start_soon(client.broker.run, client)
            await client.wait(lambda client=client: client.connected)  # type: ignore[misc]
        assert await clients[0].broker.publish([("t", b"x")]) == [1]
        await clients[0].receive(1)
        assert clients[1].payloads == []
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("redis://", "names no host"),
        ("redis://h:port", "not a valid URL"),
        ("redis://h/x", "is a number, not 'x'"),
        ("redis://h?prefix=a:b", "has letters, digits"),
        ("redis://h?timeout=3", "unknown option 'timeout'"),
        ("rediss://h?ca=/nowhere", "cannot be read: No such file"),
        ("kafka://h", "unknown broker 'kafka://h'"),
        ("", "unknown broker ''"),
    ],
)
def test_wrong_urls(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        open_broker(url)
