"""Counts instructions for a fixed amount of work, where the machine is too noisy for seconds.

    .venv/bin/python benchmarks/instructions.py CHECKOUT [CHECKOUT ...]

For each checkout (with its own `.venv`), and each kind of work, a server and its clients run in one process under valgrind's
callgrind, and the instructions are counted that a message takes from the sender's socket to the receivers', clients included. The
result is the same within about one percent, whatever else the machine does. Needs valgrind.

    echo    one client publishes to a room of its own, and waits for its message
    fan     one client publishes to a room of 50
    keyed   as echo, with an id and an idempotency key, and waits for the ack
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

WORK = {"echo": (1, 400), "fan": (50, 60), "keyed": (1, 300)}
"""Clients in the room, and messages."""
WARM_UP = 50


def frame(message: dict[str, object]) -> bytes:
    """A masked text frame, with a mask of zeros."""
    payload = json.dumps(message).encode()
    assert len(payload) < 65536
    size = bytes([128 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    return b"\x81" + size + bytes(4) + payload


def _callgrind(instrumentation: str) -> None:
    subprocess.run(["callgrind_control", "-i", instrumentation, str(os.getpid())], check=True, capture_output=True)


async def work(kind: str) -> None:
    """Do the work, with callgrind counting from the warm-up on. Runs with the interpreter of the checkout."""
    import trio

    import trioswitch

    members, count = WORK[kind]
    async with trioswitch.open_switch() as switch, trio.open_nursery() as nursery:
        server = await nursery.start(lambda **status: trioswitch.serve(switch, port=0, **status))
        clients = [trio.socket.socket() for _ in range(members)]
        for client in clients:
            await client.connect(("127.0.0.1", server.port))
            await client.send(
                b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            while b'"connected"' not in await client.recv(65536):
                pass
            await client.send(frame({"type": "join_room", "room": "r"}))
        await trio.sleep(1)
        for client in clients:  # everybody has seen everybody join
            while True:
                try:
                    os.read(client.fileno(), 1 << 20)
                except BlockingIOError:
                    break

        async def publish(number: int) -> None:
            message: dict[str, object] = {"type": "chat_message", "room": "r", "content": f"message {number:06}"}
            if kind == "keyed":
                message |= {"id": number, "idempotency_key": f"key {number}"}
            await clients[0].send(frame(message))
            for client in clients:
                got = b""
                while b"message %06d" % number not in got or (kind == "keyed" and b'"ack"' not in got):
                    got += await client.recv(65536)

        for number in range(WARM_UP):
            await publish(number)
        _callgrind("on")
        for number in range(WARM_UP, WARM_UP + count):
            await publish(number)
        _callgrind("off")
        for client in clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
            client.close()
        nursery.cancel_scope.cancel()


def measure(checkout: Path, kind: str) -> float:
    """Instructions for each message."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"]
        python = (checkout / ".venv" / "bin" / "python").absolute()
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        command += [str(python), str(Path(__file__).resolve()), "--work", kind]
        subprocess.run(command, check=True, capture_output=True, env=environment, cwd=checkout)
        totals = [
            int(found[1])
            for path in Path(folder).iterdir()
            if (found := re.search(r"^totals: (\d+)", path.read_text(), re.MULTILINE))
        ]
    return max(totals) / WORK[kind][1]


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the instructions that a message takes.")
    parser.add_argument("checkouts", nargs="*", type=Path, help="checkouts, each with its own .venv")
    parser.add_argument("--kinds", default=",".join(WORK), help=f"of {', '.join(WORK)} (default: all)")
    parser.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.work:
        import trio

        trio.run(work, chosen.work)
        return 0
    for kind in chosen.kinds.split(","):
        counts = [measure(checkout, kind) for checkout in chosen.checkouts]
        for checkout, count in zip(chosen.checkouts, counts, strict=True):
            print(f"{kind} {checkout}: {count:,.0f} instructions a message, ratio {counts[0] / count:.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
