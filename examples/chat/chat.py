"""A chat with rooms, direct messages and dice: a server and its page on one port. Run it, and open what it prints.

What is said is stored: stop the server, or kill it, and start it again: nobody in the chat misses anything.
"""

import argparse
import logging
import random
import re
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import trio

import trioswitch
from trioswitch.web import Page

log = logging.getLogger("chat")

POLICIES = (trioswitch.RoomPolicy(pattern="*", history=trioswitch.HistoryStorage.STORED, history_size=1000),)
"""Every room keeps its last 1,000 messages. The inbox for direct messages needs no policy: it is always there."""


async def let_in(request: trioswitch.ConnectRequest) -> trioswitch.Identity:
    """Believe the `?name=` that a client gives. An application with accounts would look at a cookie or a token here."""
    name = request.query.get("name", "").strip()
    if not 1 <= len(name) <= 40:
        raise trioswitch.Refused("say who you are: connect to /ws?name=YOU, with 1 to 40 characters")
    log.info("%r comes from %s", name, request.remote)
    return trioswitch.Identity(user=name)


async def say_goodbye(connection: trioswitch.Connection, cause: trioswitch.CloseCause) -> None:
    log.info("%r is gone: %s", connection.user, cause.reason)


def add_dice(switch: trioswitch.Switch) -> None:
    """Teach the switch a message of our own: `{"type": "roll", "room": "lobby", "dice": "2d6"}`."""

    @switch.handlers.on("roll")
    async def roll(connection: trioswitch.Connection, message: dict[str, Any]) -> None:
        room, dice = str(message.get("room")), str(message.get("dice"))
        if room not in connection.rooms:
            raise trioswitch.Refused("join the room before you roll in it", code="not_joined")
        match = re.fullmatch("([1-9][0-9]?)d([1-9][0-9]{0,2})", dice)
        if match is None:
            raise trioswitch.Refused("dice look like 2d6: how many, and with how many sides", code="invalid")
        count, sides = map(int, match.groups())
        rolled = [random.randint(1, sides) for _ in range(count)]
        key = str(message.get("idempotency_key", ""))[:64] or None  # who asks again with the same key has rolled once
        data = {"user_id": connection.user, "dice": dice, "rolled": rolled}
        await switch.publish(room, data, idempotency_key=key)


async def main(host: str, port: int, store_url: str) -> str | None:
    """Serve the chat until Ctrl-C. Returns what went wrong, if anything did."""
    page = Page(Path(__file__).with_name("page.html").read_bytes())
    options = trioswitch.Options(policies=POLICIES)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with (
            trioswitch.open_store(store_url) as store,
            trioswitch.open_switch(options, store=store, on_connect=let_in, on_disconnect=say_goodbye) as switch,
            trio.open_nursery() as nursery,
        ):
            add_dice(switch)
            try:
                server = await nursery.start(partial(trioswitch.serve, switch, host=host, port=port, pages={"/": page}))
            except trioswitch.ServeError as error:
                return str(error)
            print(f"The chat is at http://{host}:{server.port}/ (Ctrl-C ends it)", flush=True)
            await anext(signals)
            server.stop()
            await switch.drain(timeout=5)
            nursery.cancel_scope.cancel()
    return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A chat with rooms, direct messages and dice.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8765, help="port to listen on; 0 takes a free one")
    parser.add_argument("--store", default="sqlite:chat.db", help="where all is kept: sqlite:PATH, or memory")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        sys.exit(trio.run(main, chosen.host, chosen.port, chosen.store))
    except ValueError as error:
        sys.exit(f"chat: {error}")
    except trioswitch.StoreError as error:
        sys.exit(str(error))
