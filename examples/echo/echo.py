"""An echo: text comes back as text, binary data as binary data. Connect to ws://127.0.0.1:9001/ with any WebSocket client."""

import logging
import sys

import trio

import trioswitch


async def echo(websocket: trioswitch.WebSocket) -> None:
    async for message in websocket:
        await websocket.send(message)


async def main(port: int) -> None:
    options = trioswitch.Options(max_message_bytes=16 * 1024 * 1024, max_fragments=1_000_000)
    async with trioswitch.open_switch(options, endpoints={"/": echo}) as switch:
        await trioswitch.serve_until_signal(switch, port=port)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 9001)
