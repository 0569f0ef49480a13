"""The broker on NATS, with a real server."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trustme
from broker_contract import PATIENCE, BrokerContract, Client, Connect
from nats_server import NatsServer, nats_cluster, nats_server
from servers import silent_server

from trioswitch.brokers import open_broker
from trioswitch.errors import BrokerError

pytestmark = pytest.mark.slow


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path, "--jetstream") as server:
        yield server


class TestNatsBroker(BrokerContract):
    @pytest.fixture
    async def connect(self, nats: NatsServer) -> AsyncIterator[Connect]:
        async with trio.open_nursery() as nursery:

            async def connect(*topics: str) -> Client:
                client = Client(open_broker(nats.url), list(topics))
                nursery.start_soon(client.broker.run, client)
                await client.wait(lambda: client.connected)
                return client

            yield connect
            nursery.cancel_scope.cancel()

    async def test_a_server_that_dies_and_comes_back(self, connect: Connect, nats: NatsServer) -> None:
        client = await connect("t")
        await nats.kill()
        await client.wait(lambda: not client.connected)
        with pytest.raises(BrokerError):
            await client.broker.publish([("t", b"x")])
        await client.wait(lambda: "cannot be reached: Connection refused" in client.reasons[-1])
        await nats.start()
        await client.wait(lambda: client.connected)
        await client.broker.publish([("t", b"after")])
        assert await client.receive(1) == [("t", b"after")]

    @pytest.mark.parametrize("size", [1024 * 1024, 5_000_000])
    async def test_payloads_that_are_larger_than_a_message(self, connect: Connect, size: int) -> None:
        a, b = await connect("t"), await connect("t")
        payload = bytes(range(250)) * (size // 250)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.broker.publish, [("t", payload + b"a"), ("t", b"1")])
            nursery.start_soon(b.broker.publish, [("t", payload + b"b"), ("t", b"2")])
        received = await a.receive(4)
        assert sorted(received) == sorted([("t", payload + b"a"), ("t", b"1"), ("t", payload + b"b"), ("t", b"2")])
        assert await b.receive(4) == received


async def test_a_stream_that_is_gone_is_made_again(nats: NatsServer) -> None:
    async with trio.open_nursery() as nursery:
        client = Client(open_broker(nats.url), ["t"])
        nursery.start_soon(client.broker.run, client)
        await client.wait(lambda: client.connected)
        async with await trio.open_tcp_stream("127.0.0.1", nats.port) as stream:
            await stream.send_all(b"CONNECT {}\r\nSUB r 1\r\nPUB $JS.API.STREAM.DELETE.trioswitch r 0\r\n\r\n")
            said = b""
            while b'"success":true' not in said:
                said += await stream.receive_some()
        with pytest.raises(BrokerError, match="has not taken a message: nobody is there to take it"):
            await client.broker.publish([("t", b"x")])
        await client.wait(lambda: client.connections == 2 and client.connected)
        client.payloads.clear()
        await client.broker.publish([("t", b"after")])
        assert await client.receive(1) == [("t", b"after")]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("settings", "url", "reason"),
    [
        ((), "nats://127.0.0.1:{}", "has no JetStream: start it with --jetstream"),
        (("-js", "--user", "a", "--pass", "secret"), "nats://127.0.0.1:{}", "refuses it: Authorization Violation"),
        (("-js", "--auth", "secret"), "nats://wrong@127.0.0.1:{}", "refuses it: Authorization Violation"),
        (("-js",), "nats://127.0.0.1:{}?replicas=3", "cannot make the stream 'trioswitch': replicas > 1"),
    ],
)
async def test_servers_that_cannot_be_used(tmp_path: Path, settings: tuple[str, ...], url: str, reason: str) -> None:
    async with nats_server(tmp_path, *settings) as server:
        client = await _first_reason(url.format(server.port))
        assert reason in client.reasons[0]
        assert "secret" not in client.reasons[0]


async def test_a_server_that_takes_small_messages_only(tmp_path: Path) -> None:
    (tmp_path / "nats.conf").write_text("max_payload: 1000\n")
    async with nats_server(tmp_path, "-js", "--config", str(tmp_path / "nats.conf")) as server:
        reason = (await _first_reason(server.url)).reasons[0]
        assert "takes messages of 1000 bytes: set max_payload to 4096 or more" in reason


async def _first_reason(url: str) -> Client:
    async with trio.open_nursery() as nursery:
        client = Client(open_broker(url))
        nursery.start_soon(client.broker.run, client)
        await client.wait(lambda: bool(client.reasons))
        nursery.cancel_scope.cancel()
    return client


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"INFO {\r\n",
        b"INFO {}\r\nHELLO\r\n",
        b"INFO []\r\n",
        b"INFO {}\r\nMSG 5\r\n",
        b"INFO {}\r\nMSG a 1 99999999999\r\n",
        b"\0" * 9,
    ],
)
async def test_what_answers_is_no_nats(answer: bytes) -> None:
    async def respond(stream: trio.SocketStream) -> None:
        await stream.send_all(answer)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, respond, listeners)
        client = await _first_reason(f"nats://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
        assert "is no NATS" in client.reasons[0]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("settings", "login"),
    [(("--user", "a", "--pass", "p@ss:/word"), "a:p%40ss%3A%2Fword@"), (("--auth", "a/b"), "a%2Fb@")],
)
async def test_with_a_password(tmp_path: Path, settings: tuple[str, ...], login: str) -> None:
    async with nats_server(tmp_path, "-js", *settings) as server:
        await _round_trip(f"nats://{login}127.0.0.1:{server.port}?prefix=other")


async def _round_trip(url: str) -> None:
    async with trio.open_nursery() as nursery:
        client = Client(open_broker(url), ["t"])
        nursery.start_soon(client.broker.run, client)
        await client.wait(lambda: client.connected)
        await client.broker.publish([("t", b"x")])
        assert await client.receive(1) == [("t", b"x")]
        nursery.cancel_scope.cancel()


async def test_tls(tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate = ca.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    files = ("--tlscert", str(tmp_path / "cert.pem"), "--tlskey", str(tmp_path / "key.pem"))
    async with nats_server(tmp_path, "-js", "--tls", *files) as server:
        address = f"127.0.0.1:{server.port}"
        await _round_trip(f"tls://{address}?ca={tmp_path / 'ca.pem'}")
        assert f"wants TLS: tls://{address}" in (await _first_reason(f"nats://{address}")).reasons[0]
        assert "certificate verify failed" in (await _first_reason(f"tls://{address}")).reasons[0]


async def test_of_two_servers_one_does_not_answer(nats: NatsServer) -> None:
    async with silent_server() as silent:
        await _round_trip(f"nats://127.0.0.1:{silent},127.0.0.1:{nats.port}")


async def test_two_prefixes_are_two_clusters(nats: NatsServer) -> None:
    async with trio.open_nursery() as nursery:
        clients = [Client(open_broker(f"{nats.url}?prefix={prefix}"), ["t"]) for prefix in ("a", "b")]
        for client in clients:
            nursery.start_soon(client.broker.run, client)
            await client.wait(lambda client=client: client.connected)  # type: ignore[misc]
        for client, payload in zip(clients, (b"1", b"2"), strict=True):
            await client.broker.publish([("t", payload)])
        assert await clients[0].receive(1) == [("t", b"1")]
        assert await clients[1].receive(1) == [("t", b"2")]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nats://", "the URL of NATS names hosts"),
        ("nats://a/b", "the URL of NATS names hosts"),
        ("nats://a:b", "not a valid URL of NATS"),
        ("nats://a,,b", "the URL of NATS names hosts"),
        ("nats://u:secret@a:99999", "not a valid URL of NATS: Port out of range 0-65535"),
        ("nats://a?replicas=9", "replicas in the URL of NATS is a number from 1 to 5, not '9'"),
        ("nats://a?prefix=a.b", "the prefix in the URL of NATS has letters, digits, - and _, not 'a.b'"),
        ("nats://a?x=1", "unknown option 'x' in the URL of NATS; there are: ca, prefix, replicas"),
        ("tls://a?ca=/none", "the certificates in '/none' cannot be read: No such file or directory"),
    ],
)
def test_wrong_urls(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence.replace("?", r"\?").replace(".", r"\.")) as raised:
        open_broker(url)
    assert "secret" not in str(raised.value)


@pytest.mark.kill
async def test_a_cluster_of_nats_loses_a_server(tmp_path: Path) -> None:
    async with nats_cluster(tmp_path) as servers, trio.open_nursery() as nursery:
        places = [f"127.0.0.1:{server.port}" for server in servers]
        clients = []
        for first in range(3):  # each begins at another one
            url = f"nats://{','.join(places[first:] + places[:first])}?replicas=3"
            clients.append(Client(open_broker(url), ["t"]))
            nursery.start_soon(clients[-1].broker.run, clients[-1])
        for client in clients:
            await client.wait(lambda client=client: client.connected)  # type: ignore[misc]
        for number in range(30):  # subscribed to at one server, published at another
            subscriber, publisher = clients[number % 3], clients[(number + 1) % 3]
            await subscriber.broker.subscribe([f"{number}"])
            await publisher.broker.publish([(f"{number}", b"x"), ("t", b"%d" % number)])
        for client in clients:
            await client.wait(lambda client=client: len(client.payloads) == 40)  # type: ignore[misc]
            assert [payload for topic, payload in client.payloads if topic == "t"] == [b"%d" % n for n in range(30)]
        await servers[0].kill()
        with trio.fail_after(3 * PATIENCE):  # the servers have to agree first on which of them leads
            for number, publisher in enumerate(clients):
                arrived = ("t", b"after %d" % number)
                while not all(arrived in client.payloads for client in clients):
                    with trio.move_on_after(1):
                        try:
                            await publisher.broker.publish([arrived])
                        except BrokerError:
                            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
