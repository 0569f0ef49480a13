"""uWebSockets (C++) through socketify: native pub/sub, one topic. Usage: uws.py PORT MODE(fan|echo)"""

import sys

from socketify import App, CompressOptions

PORT, MODE = int(sys.argv[1]), sys.argv[2]
app = App()


def on_message(ws, message, opcode):
    if MODE == "fan":
        ws.publish("room", message, opcode)  # socketify's goes to the sender, too
    else:
        ws.send(message, opcode)


app.ws(
    "/*",
    {
        "compression": CompressOptions.DISABLED,
        "max_payload_length": 16 * 1024 * 1024,
        "max_backpressure": 64 * 1024 * 1024,
        "idle_timeout": 120,
        "open": lambda ws: ws.subscribe("room"),
        "message": on_message,
    },
)
app.listen(PORT, lambda _config: None)
app.run()
