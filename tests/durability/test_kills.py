"""Killed when nobody expects it: what was acknowledged is there, in order, once, and everybody ends with everything."""

import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio_websocket
from chaos import Network, server_process
from support import Client, ClientStream

pytestmark = pytest.mark.kill

ROUNDS = 20
PUBLISHERS, SUBSCRIBERS = 4, 3
ROOM = "stored"
OPTIONS = ("--room", "stored:history=stored,history-size=1000000,announce=no", "--inbox-messages", "100000")
GONE = (trio_websocket.ConnectionClosed, trio_websocket.HandshakeError, trio.BrokenResourceError, OSError)


async def visit(port: int, talk: Callable[[Client], Awaitable[None]]) -> None:
    """Be a client, for as long as the connection lasts; it is left without goodbye, as if the network had failed."""
    stream = ClientStream(await trio.open_tcp_stream("127.0.0.1", port))
    try:
        async with trio.open_nursery() as nursery:
            with trio.fail_after(5):
                websocket = await trio_websocket.wrap_client_stream(nursery, stream, "localhost", "/ws")  # type: ignore[arg-type]
            await talk(Client(websocket, stream))
            nursery.cancel_scope.cancel()
    finally:
        await trio.aclose_forcefully(stream)


@attrs.define(eq=False)
class World:
    """Clients that follow the protocol, and what they know."""

    port: Callable[[], int]
    random: random.Random
    publishing: bool = True
    restless: bool = True
    acknowledged: dict[tuple[int, int], int] = attrs.field(factory=dict)
    """Offset by publisher and number."""
    seen: list[list[dict[str, Any]]] = attrs.field(factory=lambda: [[] for _ in range(SUBSCRIBERS)])
    sent: dict[str, int] = attrs.field(factory=dict)
    """Inbox messages that were acknowledged to their sender: seq by text."""
    inbox_messages: dict[int, str] = attrs.field(factory=dict)
    """Inbox messages that arrived: text by seq."""
    visits: int = 0
    at_work: int = PUBLISHERS + 1
    """Those who publish or send, and may still hear of what they sent last."""

    async def again_and_again(self, visit_once: Callable[[Client], Awaitable[None]], done: Callable[[], bool]) -> None:
        """Come back for as long as it is not done."""
        while not done():
            try:
                self.visits += 1
                await visit(self.port(), visit_once)
            except* (*GONE, trio.TooSlowError):
                await trio.sleep(self.random.uniform(0, 0.05))

    async def publish(self, publisher: int) -> None:
        number = 0

        async def once(client: Client) -> None:
            nonlocal number
            assert (await client.ask("join_room", room=ROOM, user_id=f"publisher {publisher}"))["type"] == "ack"
            while self.publishing:
                fields = {"room": ROOM, "data": [publisher, number], "idempotency_key": f"{publisher}-{number}"}
                answer = await client.ask("message", **fields, exclude_self=True)
                assert answer["type"] == "ack", answer
                self.acknowledged[publisher, number] = answer["offset"]
                number += 1

        await self.again_and_again(once, lambda: not self.publishing)
        self.at_work -= 1

    async def subscribe(self, index: int) -> None:
        seen, epoch = self.seen[index], ""

        async def once(client: Client) -> None:
            nonlocal epoch
            since = {"epoch": epoch, "offset": len(seen)}
            await client.send("join_room", room=ROOM, since=since, id="join")
            patience = self.random.randrange(1, 400)
            while not self.done(index):
                with trio.move_on_after(0.1) as silence:
                    message = await client.receive()
                if silence.cancelled_caught:
                    continue
                assert message["type"] != "gap", message
                if message.get("id") == "join":
                    assert message.get("recovered"), message
                elif message["type"] == "message":
                    assert message["offset"] == len(seen) + 1, (message, len(seen))
                    assert epoch in ("", message["epoch"])
                    epoch = message["epoch"]
                    seen.append(message)
                patience -= 1
                if self.restless and not patience:
                    return

        await self.again_and_again(once, lambda: self.done(index))

    def done(self, index: int) -> bool:
        return not self.at_work and len(self.seen[index]) >= max(self.acknowledged.values(), default=0)

    async def send_inbox_messages(self) -> None:
        number = 0

        async def once(client: Client) -> None:
            nonlocal number
            while self.publishing:
                text = f"letter {number}"
                answer = await client.ask("direct_message", to="bob", data=text, idempotency_key=text)
                assert answer["type"] == "ack", answer
                self.sent[text] = answer["seq"]
                number += 1

        await self.again_and_again(once, lambda: not self.publishing)
        self.at_work -= 1

    async def receive_inbox_messages(self) -> None:
        async def once(client: Client) -> None:
            await client.send("join_room", room="of bob", user_id="bob")
            await client.send("inbox_ack", upto=0)
            patience = self.random.randrange(1, 200)
            while not self.all_inbox_messages():
                with trio.move_on_after(0.1) as silence:
                    message = await client.receive()
                if silence.cancelled_caught:
                    continue
                if message["type"] == "direct_message":
                    known = self.inbox_messages.setdefault(message["seq"], message["data"])
                    assert known == message["data"], "one seq, two letters"
                    if self.random.random() < 0.3:
                        await client.send("inbox_ack", upto=message["seq"])
                patience -= 1
                if self.restless and not patience:
                    await trio.sleep(self.random.uniform(0, 0.05))
                    return

        await self.again_and_again(once, self.all_inbox_messages)

    def all_inbox_messages(self) -> bool:
        return not self.at_work and set(self.sent.values()) <= self.inbox_messages.keys()

    async def live(self, disturb: Callable[[], Any]) -> None:
        with trio.fail_after(200):
            async with trio.open_nursery() as nursery:
                for number in range(PUBLISHERS):
                    nursery.start_soon(self.publish, number)
                for index in range(SUBSCRIBERS):
                    nursery.start_soon(self.subscribe, index)
                nursery.start_soon(self.send_inbox_messages)
                nursery.start_soon(self.receive_inbox_messages)
                await disturb()
                self.restless = self.publishing = False

    async def check(self) -> None:
        """Against the history, as a client that was not there reads it."""
        history: list[dict[str, Any]] = []

        async def read(client: Client) -> None:
            page = await client.ask("history", room=ROOM, limit=1)
            since = {"epoch": page["epoch"], "offset": 0}
            while len(history) < page["offset"]:
                page = await client.ask("history", room=ROOM, since=since, limit=1000)
                assert page["recovered"]
                history.extend(page["messages"])
                since["offset"] = history[-1]["offset"]

        await visit(self.port(), read)
        assert [message["offset"] for message in history] == list(range(1, len(history) + 1))
        at = {tuple(message["data"]): message["offset"] for message in history}
        assert len(at) == len(history), "a message is there twice"
        for sent, offset in self.acknowledged.items():
            assert at.get(sent) == offset, f"acknowledged, and not there: {sent}"
        for publisher in range(PUBLISHERS):
            numbers = [message["data"][1] for message in history if message["data"][0] == publisher]
            assert numbers == list(range(len(numbers))), "a publisher's messages are out of order"
        for seen in self.seen:
            assert seen == history[: len(seen)]
            assert len(seen) >= max(self.acknowledged.values())
        for text, seq in self.sent.items():
            assert self.inbox_messages[seq] == text, "a letter was acknowledged, and never came"
        assert len(set(self.inbox_messages.values())) == len(self.inbox_messages), "a letter came under two numbers"


@pytest.mark.parametrize("seed", [1])
async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, seed: int) -> None:
    async with server_process(tmp_path, "--store", f"sqlite:{tmp_path / 'db'}", *OPTIONS) as server:
        world = World(lambda: server.port, random.Random(seed))

        async def disturb() -> None:
            for _ in range(ROUNDS):
                before = len(world.acknowledged), len(world.sent)
                while len(world.acknowledged) < before[0] + 10 or len(world.sent) == before[1]:
                    await trio.sleep(0.01)  # it is at work
                await trio.sleep(world.random.uniform(0, 0.3))
                await server.stop(signal.SIGKILL)
                await server.start()
            await trio.sleep(0.3)

        await world.live(disturb)
        await world.check()
        assert len(world.acknowledged) >= 10 * ROUNDS
        assert len(world.sent) >= ROUNDS


@pytest.mark.parametrize("seed", [2])
async def test_connections_that_are_cut_at_any_byte(tmp_path: Path, seed: int) -> None:
    async with (
        server_process(tmp_path, "--store", f"sqlite:{tmp_path / 'db'}", *OPTIONS) as server,
        trio.open_nursery() as nursery,
    ):
        network = Network(server.port, seed, most=8000)
        await nursery.start(network.run)
        world = World(lambda: network.port, random.Random(seed))

        async def disturb() -> None:
            while network.cuts < 300:
                await trio.sleep(0.05)
            network.cutting = False

        await world.live(disturb)
        await world.check()
        assert len(world.acknowledged) > 100
        assert "Traceback" not in server.log()
        nursery.cancel_scope.cancel()
