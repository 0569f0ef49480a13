"""Starlette on uvicorn, a set of connections and gather(), as most tutorials write it. Usage: starlette_uvicorn.py PORT MODE"""

import asyncio
import contextlib
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

PORT, MODE = int(sys.argv[1]), sys.argv[2]
clients = set()


async def endpoint(ws):
    await ws.accept()
    clients.add(ws)
    with contextlib.suppress(Exception):
        while True:
            message = await ws.receive_text()
            targets = (ws,) if MODE == "echo" else tuple(clients)
            await asyncio.gather(*(t.send_text(message) for t in targets), return_exceptions=True)
    clients.discard(ws)


uvicorn.run(
    Starlette(routes=[WebSocketRoute("/", endpoint)]), port=PORT, log_level="error", ws_per_message_deflate=False
)
