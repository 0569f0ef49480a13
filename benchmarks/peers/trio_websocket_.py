"""trio-websocket, one memory channel and one sender task a connection. Usage: trio_websocket_.py PORT MODE(fan|echo)"""

import sys

import trio
from trio_websocket import ConnectionClosed, serve_websocket

PORT, MODE = int(sys.argv[1]), sys.argv[2]
outboxes = {}


async def sender(ws, outbox):
    try:
        async for message in outbox:
            await ws.send_message(message)
    except ConnectionClosed:
        pass


async def handler(request):
    ws = await request.accept()
    send, receive = trio.open_memory_channel(4096)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender, ws, receive)
        outboxes[ws] = send
        try:
            while True:
                message = await ws.get_message()
                for outbox in (send,) if MODE == "echo" else list(outboxes.values()):
                    try:
                        outbox.send_nowait(message)
                    except trio.WouldBlock:
                        await outbox.send(message)
        except ConnectionClosed:
            pass
        finally:
            del outboxes[ws]
            nursery.cancel_scope.cancel()


trio.run(serve_websocket, handler, "127.0.0.1", PORT, None)
