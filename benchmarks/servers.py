"""The servers that are compared: how each is started, what its clients send, and which version it is."""

import json
import os
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import attrs
import msgspec

HERE = Path(__file__).resolve().parent
NCHAN = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")


@attrs.frozen
class Texts:
    """What a load client sends; `wsload.c` says what is filled in. No `message`: the server cannot do this."""

    join: str = ""
    message: str = '{"content":"ts=%TS% %PAD%"}'


NOTHING = Texts(message="")


@attrs.frozen
class Server:
    """`command` is filled in with `port`, `mode` (fan or echo), `dir` (a folder of the run's own), `peers` and `python`."""

    name: str
    command: str
    origin: tuple[str, str]
    """What it is made with, whose version is told: how to ask (pip, npm, or an argument of the program itself), and whom."""
    path: str = "/"
    publisher_path: str = ""
    fan: Texts = Texts()
    echo: Texts = Texts()

    def texts(self, mode: str) -> Texts:
        return self.echo if mode == "echo" else self.fan

    def command_line(self, peers: Path, **values: object) -> list[str]:
        return shlex.split(self.command.format(peers=peers, python=sys.executable, here=HERE / "peers", **values))

    def version(self, peers: Path) -> str | None:
        """None: it is not installed."""
        kind, name = self.origin
        try:
            if kind == "pip":
                return metadata.version(name)
            if kind == "npm":
                return json.loads((peers / "node_modules" / name / "package.json").read_text())["version"]
            program = peers / "bin" / name if (peers / "bin" / name).exists() else name
            said = subprocess.run([program, kind], capture_output=True, text=True, check=True)
        except (OSError, metadata.PackageNotFoundError, subprocess.CalledProcessError):
            return None
        if self.name == "nchan" and not NCHAN.exists():
            return None
        found = re.search(r"\d+\.[\d.]+", said.stdout + said.stderr)
        return found[0] if found is not None else None


def _chat(room: str) -> Texts:
    return Texts(
        join=f'{{"type":"join_room","room":"{room}","user_id":"u%I%"}}',
        message=f'{{"type":"chat_message","room":"{room}","content":"ts=%TS% %PAD%","user_id":"u%I%"}}',
    )


def _centrifugo(channel: str) -> Texts:
    return Texts(
        join=f'{{"id":1,"connect":{{}}}}\n{{"id":2,"subscribe":{{"channel":"{channel}"}}}}',
        message=f'{{"id":3,"publish":{{"channel":"{channel}","data":{{"content":"ts=%TS% %PAD%"}}}}}}',
    )


def chat_in_msgpack(size: int) -> Texts:
    """The chat message in MessagePack, byte by byte, for `wsload -b`; `size` is that of %PAD%, which it holds the length of."""

    def escaped(message: dict[str, str]) -> str:
        return "".join(f"\\x{byte:02x}" for byte in msgspec.msgpack.encode(message))

    stamp, padding = "0" * 20, "x" * size
    text = escaped({"type": "chat_message", "room": "bench", "content": f"ts={stamp} {padding}"})
    for shown, filled in ((stamp, "%TS%"), (padding, "%PAD%")):
        text = text.replace("".join(f"\\x{byte:02x}" for byte in shown.encode()), filled)
    return Texts(join=escaped({"type": "join_room", "room": "bench"}), message=text)


TRIOSWITCH = Server(
    "trioswitch",
    os.environ.get("TRIOSWITCH", "{python} -m trioswitch serve --port {port} --log-level warning"),
    ("pip", "trioswitch"),
    path="/ws",
    fan=_chat("bench"),
    echo=_chat("echo-%I%"),
)
ROOMS = _chat("room-%R%")

_SOCKET_IO = Texts(join="40", message='42["chat",{"content":"ts=%TS% %PAD%"}]')

SERVERS = {
    server.name: server
    for server in (
        TRIOSWITCH,
        Server("ceiling", "{peers}/venv/bin/python {here}/ceiling.py {port}", ("pip", "trio"), echo=NOTHING),
        Server("uws", "{peers}/venv/bin/python {here}/uws.py {port} {mode}", ("pip", "socketify")),
        Server("picows", "{peers}/venv/bin/python {here}/picows_uvloop.py {port} {mode}", ("pip", "picows")),
        Server("ws", "node {here}/ws.js {port} {mode}", ("npm", "ws")),
        Server(
            "socket.io",
            "node {here}/socketio.js {port} {mode}",
            ("npm", "socket.io"),
            path="/socket.io/?EIO=4&transport=websocket",
            fan=_SOCKET_IO,
            echo=_SOCKET_IO,
        ),
        Server(
            "websockets", "{peers}/venv/bin/python {here}/websockets_asyncio.py {port} {mode}", ("pip", "websockets")
        ),
        Server("starlette", "{peers}/venv/bin/python {here}/starlette_uvicorn.py {port} {mode}", ("pip", "starlette")),
        Server(
            "trio-websocket",
            "{peers}/venv/bin/python {here}/trio_websocket_.py {port} {mode}",
            ("pip", "trio-websocket"),
        ),
        Server(
            "nchan",
            "nginx -c {dir}/nchan.conf",
            ("-v", "nginx"),
            path="/sub",
            publisher_path="/pub",
            echo=NOTHING,
        ),
        Server(
            "centrifugo",
            "{peers}/bin/centrifugo -c {dir}/centrifugo.json",
            ("version", "centrifugo"),
            path="/connection/websocket",
            fan=_centrifugo("bench"),
            echo=_centrifugo("echo-%I%"),
        ),
    )
}
