"""picows (Cython) on uvloop, the fastest WebSocket library for Python. Usage: picows_uvloop.py PORT MODE(fan|echo)"""

import asyncio
import sys

import uvloop
from picows import WSListener, WSMsgType, ws_create_server

PORT, MODE = int(sys.argv[1]), sys.argv[2]
clients = set()


class Listener(WSListener):
    def on_ws_connected(self, transport):
        clients.add(transport)

    def on_ws_disconnected(self, transport):
        clients.discard(transport)

    def on_ws_frame(self, transport, frame):
        if frame.msg_type != WSMsgType.TEXT:
            return
        message = frame.get_payload_as_bytes()
        for client in (transport,) if MODE == "echo" else clients:
            client.send(WSMsgType.TEXT, message)


async def main():
    await ws_create_server(lambda _request: Listener(), "127.0.0.1", PORT)
    await asyncio.Event().wait()


uvloop.install()
asyncio.run(main())
