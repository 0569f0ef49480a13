"""The PyPI package `websockets`, asyncio, its own broadcast(). Usage: websockets_asyncio.py PORT MODE(fan|echo)"""

import asyncio
import sys

from websockets.asyncio.server import broadcast, serve

PORT, MODE = int(sys.argv[1]), sys.argv[2]
clients = set()


async def handler(ws):
    clients.add(ws)
    try:
        async for message in ws:
            if MODE == "echo":
                await ws.send(message)
            else:
                broadcast(clients, message)
    finally:
        clients.discard(ws)


async def main():
    async with serve(handler, "127.0.0.1", PORT, compression=None, ping_interval=None):
        await asyncio.Event().wait()


asyncio.run(main())
