"""A chat with rooms, direct messages and dice: a server and its page on one port. Run it, and open what it prints.

What is said is stored: stop the server, or kill it, and start it again: nobody in the chat misses anything.
"""

import argparse
import logging
import random
import re
import sys
from pathlib import Path
from typing import Any

import trio

import trioswitch
from trioswitch.brokers import open_broker
from trioswitch.web import Page

log = logging.getLogger("chat")

POLICIES = (trioswitch.RoomPolicy(pattern="*", history=trioswitch.HistoryStorage.STORED, history_size=1000),)
"""Every room keeps its last 1,000 messages. The inbox for direct messages needs no policy: it is always there."""

HERE = Path(__file__).parent
PAGES = {
    "/": Page.file(HERE / "page.html"),
    "/chat.css": Page.file(HERE / "chat.css"),
    "/chat.js": Page.file(HERE / "chat.js"),
}
"""The page and its files. It imports `trioswitch.js`, which the server has by itself."""


async def let_in(request: trioswitch.ConnectRequest) -> trioswitch.Identity:
    """Believe the `?name=` that a client gives. An application with accounts would look at a cookie or a token here."""
    name = request.query.get("name", "").strip()
    if not 1 <= len(name) <= 40:
        raise trioswitch.Refused("say who you are: connect to /ws?name=YOU, with 1 to 40 characters")
    log.info("%r comes from %s", name, request.remote)
    return trioswitch.Identity(user=name)


async def say_goodbye(connection: trioswitch.Connection, cause: trioswitch.CloseCause) -> None:
    log.info("%r is gone: %s", connection.user, cause.reason)


handlers = trioswitch.Handlers()


@handlers.on("roll", room="*")
async def roll(connection: trioswitch.Connection, message: dict[str, Any]) -> None:
    """A message of our own: `{"type": "roll", "room": "lobby", "dice": "2d6"}`, from a member of the room."""
    match = re.fullmatch("([1-9][0-9]?)d([1-9][0-9]{0,2})", str(message.get("dice")))
    if match is None:
        raise trioswitch.Refused("dice look like 2d6: how many, and with how many sides", code="invalid")
    count, sides = map(int, match.groups())
    rolled = [random.randint(1, sides) for _ in range(count)]
    key = str(message.get("idempotency_key", ""))[:64] or None  # a retry with the same key does not roll again
    data = {"user_id": connection.user, "dice": match[0], "rolled": rolled}
    await connection.switch.publish(message["room"], data, idempotency_key=key)


async def main(host: str, port: int, store_url: str, broker_url: str | None) -> None:
    """Serve the chat until Ctrl-C."""
    options = trioswitch.Options(policies=POLICIES)
    async with (
        trioswitch.open_store(store_url) as store,
        trioswitch.open_switch(
            options,
            store=store,
            broker=None if broker_url is None else open_broker(broker_url),
            handlers=handlers,
            on_connect=let_in,
            on_disconnect=say_goodbye,
        ) as switch,
    ):
        await trioswitch.serve_until_signal(
            switch,
            host=host,
            port=port,
            pages=PAGES,
            drain_timeout=5,
            on_listening=lambda server: print(f"The chat is at {server.page_urls[0]} (Ctrl-C ends it)", flush=True),
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A chat with rooms, direct messages and dice.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8765, help="port to listen on; 0 takes a free one")
    parser.add_argument(
        "--store", default="sqlite:chat.db", help="where all is kept: sqlite:PATH, redis://HOST, or memory"
    )
    parser.add_argument(
        "--broker", help="what connects several chats as one, with a store that they share: redis://HOST"
    )
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        trio.run(main, chosen.host, chosen.port, chosen.store, chosen.broker)
    except (ValueError, trioswitch.StoreError, trioswitch.ServeError) as error:
        sys.exit(f"chat: {error}")
