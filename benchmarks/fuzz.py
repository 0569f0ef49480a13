"""A fuzzer with a cost oracle: hostile input may cost CPU time and memory in proportion to its size only.

    .venv/bin/python benchmarks/fuzz.py [--seconds 60] [--seed 0] [NAME ...]

Every decoder gets inputs of up to 1 MiB that are made of what is known to be expensive: nesting, keys with equal hashes, long
numbers, escapes, many fields, compressed zeros. Sequences of commands go through a switch. One message, of whatever size,
may take the CPU time in which msgspec decodes 20 MiB of ordinary JSON: 100 ms on the machine on which this was written. It
prints what is above the bound, with the seed that makes it again, and its exit status is 1 then.
"""

import argparse
import gc
import random
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import attrs
import msgspec
import trio
import trio.testing
from msgspec import Raw

import trioswitch
from trioswitch.errors import BadInput, UnencodableData
from trioswitch.stores.memory import MemoryStore
from trioswitch.transport.streams import TrioByteStream
from trioswitch.wire.body import UNENCODABLE, Packed, as_json, as_msgpack, decoded
from trioswitch.wire.commands import Custom
from trioswitch.wire.handshake import Handshake, Rejected, is_upgrade
from trioswitch.wire.protocols import JSON, MSGPACK
from trioswitch.wire.protocols.port import ClientProtocol
from trioswitch.wire.records import decode_record
from trioswitch.wire.websocket import Deflate, WebSocketCodec

KIB, MIB = 1024, 1024 * 1024
SIZES: Final = (100, 1_000, 10_000, 100_000, 1_000_000)
FIELDS: Final = (
    "x", "data", "content", "id", "type", "room", "since", "rooms", "limit", "idempotency_key", "user_id", "priority",
)  # fmt: skip
TYPES: Final = (
    "message", "chat_message", "direct_message", "join_room", "resume", "history", "heartbeat", "mine", "authenticate",
)  # fmt: skip


@attrs.frozen
class Cost:
    """What an input cost: seconds of CPU time, and bytes at the peak."""

    seconds: float
    memory: int


def calibrate() -> float:
    """Seconds of CPU time for a byte of ordinary JSON."""
    data = b"[" + b",".join(b"%d" % (number % 1000) for number in range(200_000)) + b"]"
    best = min(_timed(lambda: msgspec.json.decode(data)) for _ in range(5))
    return best / len(data)


def allowance() -> float:
    """Seconds of CPU time that one message may take, whatever its size."""
    return 20 * MIB * calibrate()


def _timed(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


# --- inputs


def json_value(rng: random.Random, size: int) -> bytes:
    """A value of about so many bytes."""
    unit = rng.choice(
        [
            b"{}", b"[]", b"1", b'""', b"null", b'"\\u0041\\ud83d"', b'"\\ud83d\\ude00"', b"1e308", b"-0.1e-300", b'{"a":1}',
            b"[[]]", b'{"":{}}', b'"\\\\\\""', b"9" * 300, b"0." + b"1" * 300, b'"' + b"\\n" * 50 + b'"', b" 1 ", b"1e999",
            b'"' + "é😀".encode() * 20 + b'"', b"[" * 50 + b"]" * 50,
        ]
    )  # fmt: skip
    kind = rng.randrange(7)
    count = max(1, size // (len(unit) + 1))
    if kind == 0:
        return b"[" + b",".join([unit] * count) + b"]"
    if kind == 1:
        return b"{" + b",".join([b'"%d":%b' % (number, unit) for number in range(size // (len(unit) + 9) + 1)]) + b"}"
    if kind == 2:
        depth = min(size // 2, rng.choice([10, 400, 900, 100_000]))
        return b"[" * depth + unit + b"]" * depth
    if kind == 3:
        return (
            b'"'
            + rng.choice([b"x", b"\\n", b"\\u00e9", b"\\ud83d", b",", b"[", "é".encode(), b"\\\\"]) * (size // 6)
            + b'"'
        )
    if kind == 4:
        return rng.choice([b"9", b"1", b"0.0", b"1e"]) * (size // 3)
    if kind == 5:
        return b'{"k":' * min(size // 6, 800) + unit + b"}" * min(size // 6, 800)
    return b"[" + rng.choice([b" ", b"\n", b"\t"]) * size + b"1]"


def json_message(rng: random.Random, size: int) -> bytes:
    fields = [b'"type":"%b"' % rng.choice(TYPES).encode()]
    if rng.random() < 0.7:
        fields.append(b'"room":"r"')
    if rng.random() < 0.2:
        fields += [b'"f%d":1' % number for number in range(size // 12)]
    fields.append(b'"%b":%b' % (rng.choice(FIELDS).encode(), json_value(rng, size)))
    if rng.random() < 0.5:
        fields.append(b'"id":1')
    if rng.random() < 0.3:
        rng.shuffle(fields)
    return b"{" + b",".join(fields) + b"}"


def _key(rng: random.Random) -> Callable[[int], bytes]:
    """Makes different keys, some of which have equal hashes."""
    return rng.choice(
        [
            lambda n: msgspec.msgpack.encode(f"k{n}"),
            lambda n: msgspec.msgpack.encode(n),
            lambda n: msgspec.msgpack.encode((n * (2**61 - 1)) % 2**63),
            lambda n: b"\x9f" + bytes(0xFF if n >> bit & 1 else 0xFE for bit in range(15)),
            lambda n: msgspec.msgpack.encode(float(n)),
            lambda n: msgspec.msgpack.encode(b"%d" % n),
            lambda n: b"\xa1k",
        ]
    )


def packed_value(rng: random.Random, size: int) -> bytes:
    unit = rng.choice(
        [
            b"\x80", b"\x90", b"\x01", b"\xa0", b"\xc0", b"\xcb" + bytes(8), b"\xa3abc", b"\xc4\x00", b"\xd4\xff\x00",
            b"\xd6\xff\x00\x00\x00\x00", b"\xa1\xff", b"\x81\xa0\x80", b"\x91\x90", b"\x91" * 50 + b"\x90",
            b"\xcf" + b"\xff" * 8, b"\x81\x01\x01",
        ]
    )  # fmt: skip
    kind, key = rng.randrange(5), _key(rng)
    if kind == 0:
        count = max(1, size // len(unit))
        return b"\xdd" + count.to_bytes(4) + unit * count
    if kind == 1:
        count = max(1, size // (len(unit) + 12))
        return b"\xdf" + count.to_bytes(4) + b"".join([key(number) + unit for number in range(count)])
    if kind == 2:
        depth = min(size, rng.choice([10, 400, 900, 100_000]))
        return rng.choice([b"\x91", b"\x81\xa1k", b"\x81\x90"]) * depth + unit
    if kind == 3:
        return (
            rng.choice([b"\xc6", b"\xdb"])
            + size.to_bytes(4)
            + rng.choice([b"x", b"\xff", "é".encode()]) * (size // 2)
            + b"y" * (size % 2)
        )
    return b"\xdd" + (2**32 - 1).to_bytes(4) + unit * (size // len(unit))


def packed_message(rng: random.Random, size: int) -> bytes:
    fields = [(b"\xa4type", msgspec.msgpack.encode(rng.choice(TYPES))), (b"\xa4room", b"\xa1r"), (b"\xa2id", b"\x01")]
    if rng.random() < 0.2:
        key = _key(rng)
        fields += [(key(number), b"\x01") for number in range(size // 16)]
    fields.append((msgspec.msgpack.encode(rng.choice(FIELDS)), packed_value(rng, size)))
    if rng.random() < 0.3:
        rng.shuffle(fields)
    return b"\xdf" + len(fields).to_bytes(4) + b"".join([key + value for key, value in fields])


# --- what is done with them


def decode(protocol: ClientProtocol, payload: bytes) -> None:
    """All that a server does with a message: decode it, and its body for the application and for the other encoding."""
    try:
        command: Any = protocol.decode(payload)
        if isinstance(command, Custom):
            command.fields()
            return
    except BadInput:
        return
    for name in ("content", "data"):
        body = getattr(command, name, None)
        if isinstance(body, Raw | Packed):
            decoded(body)
            for convert in (as_json, as_msgpack):
                with suppress(*UNENCODABLE):
                    convert(body)


def fuzz_json(rng: random.Random, size: int) -> tuple[int, Callable[[], None]]:
    payload = json_message(rng, size)
    return len(payload), lambda: decode(JSON, payload)


def fuzz_msgpack(rng: random.Random, size: int) -> tuple[int, Callable[[], None]]:
    payload = packed_message(rng, size)
    return len(payload), lambda: decode(MSGPACK, payload)


def fuzz_records(rng: random.Random, size: int) -> tuple[int, Callable[[], None]]:
    payload = rng.choice([json_message, packed_message])(rng, size)

    def run() -> None:
        with suppress(ValueError, RecursionError):
            decode_record(payload)

    return len(payload), run


def fuzz_heads(rng: random.Random, size: int) -> tuple[int, Callable[[], None]]:
    size = min(size, 16 * KIB)
    name = rng.choice([b"X-%d", b"Cookie", b"Sec-WebSocket-Extensions", b"Sec-WebSocket-Protocol", b"Host", b"Upgrade"])
    value = rng.choice([b"a", b"permessage-deflate", b"a;b=c,", b'"', b"\\", b",", b";", b" ", b"a, b; c"])
    line = (name % 1 if b"%d" in name else name) + b": " + value * rng.choice([1, 10, 500])
    lines = [line] * max(1, size // (len(line) + 2))
    head = b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    head += b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"

    def run() -> None:
        if is_upgrade(head):
            handshake = Handshake(compression=True, incoming_context_takeover=False, max_message_bytes=MIB)
            with suppress(Rejected):
                handshake.receive(head)

    return len(head), run


def fuzz_frames(rng: random.Random, size: int) -> tuple[int, Callable[[], None]]:
    """Frames of all kinds. One turn is what counts: `feed` inflates 256 KiB and a message at most."""
    data = b""
    while len(data) < min(size, 64 * KIB):
        kind = rng.randrange(5)
        payload = rng.choice([b"", b"x" * rng.choice([1, 125, 126, 5000]), bytes(rng.choice([1000, 100_000, MIB - 1]))])
        first = rng.choice([0x81, 0x82, 0x01, 0x80, 0x00, 0x89, 0x8A, 0xC1, 0x41])
        if first & 0x40 or kind == 0:
            deflater = zlib.compressobj(9, zlib.DEFLATED, -12)
            payload = (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]
            first |= 0x40
        payload = payload[:65535] if kind != 1 else payload[:125]
        size_bytes = bytes((0x80 | len(payload),)) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2)
        data += bytes((first,)) + size_bytes + bytes(4) + payload
        if kind == 4:
            data = data[: rng.randrange(len(data))] + bytes((rng.randrange(256),)) * rng.choice([0, 1, 3])
    chunk = data[: 64 * KIB]

    def run() -> None:
        codec = WebSocketCodec(MIB, 1024, Deflate(True, True, 12, 12))
        codec.feed(chunk)

    return max(len(chunk), 512 * KIB), run


def measured(run: Callable[[], None]) -> Cost:
    """The lowest of three times, and the peak of the memory."""
    seconds = min(_timed(run) for _ in range(3))
    gc.collect()
    tracemalloc.start()
    run()
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return Cost(seconds, peak)


DECODERS: Final[dict[str, Callable[[random.Random, int], tuple[int, Callable[[], None]]]]] = {
    "json": fuzz_json,
    "msgpack": fuzz_msgpack,
    "records": fuzz_records,
    "heads": fuzz_heads,
    "frames": fuzz_frames,
}


def fuzz_decoder(name: str, seconds: float, seed: int) -> tuple[int, list[str]]:
    """Returns how many inputs there were, and a line for each that is above the bound."""
    allowed, end, count, faults = allowance(), time.monotonic() + seconds, 0, list[str]()
    while time.monotonic() < end:
        rng = random.Random(f"{name} {seed}")
        size, run = DECODERS[name](rng, rng.choice(SIZES))
        seed += 1
        if size > MIB:  # more is not taken
            continue
        memory = 4 * MIB + 64 * size
        cost = measured(run)
        if cost.seconds > allowed:
            allowed = allowance()  # the machine may have become slower in between
            cost = measured(run)
        if cost.seconds > allowed or cost.memory > memory:
            faults.append(
                f"{name}, seed {seed - 1}: {size} bytes took {cost.seconds * 1000:.1f} ms (allowed {allowed * 1000:.1f}) and"
                f" {cost.memory / MIB:.1f} MiB (allowed {memory / MIB:.1f})"
            )
        count += 1
    return count, faults


# --- sequences of commands


LIMITS: Final = trioswitch.Options(
    policies=(
        trioswitch.RoomPolicy(pattern="kept*", history=trioswitch.HistoryStorage.MEMORY),
        trioswitch.RoomPolicy(pattern="stored*", history=trioswitch.HistoryStorage.STORED),
    ),
    outbox_bytes=256 * KIB,
    history_bytes=MIB,
    total_inbox_bytes=MIB,
    total_stored_bytes=MIB,
    total_session_bytes=MIB,
    room_bytes=512 * KIB,
    max_rooms=50,
    max_message_bytes=128 * KIB,
)
CLIENTS: Final = 4
ALLOWED: Final = 2 * (CLIENTS * (256 * KIB + 50 * 5 * KIB) + 5 * MIB) + 8 * MIB
"""Bytes: outboxes and rooms of all clients, histories, inboxes, stored rooms, sessions, keys, times two; what is on its way."""


def command(rng: random.Random, binary: bool) -> bytes:
    """A command as a hostile client may send it, most of them valid."""
    if rng.random() < 0.2:
        size = rng.choice((100, 1_000, 10_000))
        return packed_message(rng, size) if binary else json_message(rng, size)
    room = rng.choice(["r", "kept", "stored"]) + str(rng.choice([0, 1, rng.randrange(10_000)]))
    size = rng.choice([10, 1_000, 50_000])
    data: Any = rng.choice(["x" * size, [{}] * (size // 5), {"k": [0] * (size // 4)}, None, 1.5])
    user = rng.choice(["ann", "bob", f"u{rng.randrange(1000)}"])
    message: dict[str, Any] = rng.choice(
        [
            {"type": "join_room", "room": room, "history": 100},
            {"type": "join_room", "room": room, "user_id": user},
            {"type": "leave_room", "room": room},
            {"type": "message", "room": room, "data": data, "priority": rng.randrange(11), "key": user},
            {
                "type": "message",
                "room": room,
                "data": data,
                "idempotency_key": f"k{rng.randrange(1000)}",
                "expires": rng.random(),
            },
            {"type": "chat_message", "room": room, "content": "é" * (size // 2)},
            {"type": "direct_message", "to": user, "data": data},
            {"type": "presence", "room": room},
            {"type": "history", "room": room, "limit": 1000},
            {"type": "history", "room": room, "since": {"epoch": "", "offset": 0}},
            {"type": "inbox_ack", "upto": rng.randrange(100)},
            {"type": "resume", "session": "guessed", "rooms": {room: {"epoch": "e", "offset": 1}}},
            {"type": "mine", "data": data},
            {"type": "heartbeat"},
        ]
    )
    if rng.random() < 0.7:
        message["id"] = rng.randrange(1000)
    try:
        return msgspec.msgpack.encode(message) if binary else msgspec.json.encode(message)
    except UnencodableData:
        return b""


def frame(payload: bytes, binary: bool) -> bytes:
    size = len(payload)
    head = (
        bytes((0x80 | size,))
        if size < 126
        else b"\xfe" + size.to_bytes(2)
        if size < 65536
        else b"\xff" + size.to_bytes(8)
    )
    return bytes((0x82 if binary else 0x81,)) + head + bytes(4) + payload


async def _client(switch: trioswitch.Switch, nursery: trio.Nursery, binary: bool) -> trio.testing.MemoryReceiveStream:
    ours, theirs = trio.testing.memory_stream_pair()
    nursery.start_soon(lambda: switch.serve_byte_stream(TrioByteStream(theirs, "fuzz")))
    protocol = "Sec-WebSocket-Protocol: trioswitch.v1.msgpack\r\n" if binary else ""
    await ours.send_all(
        f"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{protocol}\r\n".encode()
    )
    return ours  # type: ignore[return-value]


async def fuzz_commands(seconds: float, seed: int) -> tuple[int, list[str]]:
    """Clients send commands; some read what comes. As `fuzz_decoder`: counts batches of a hundred commands."""
    per_byte, end, count, faults = calibrate(), time.monotonic() + seconds, 0, list[str]()
    while time.monotonic() < end:
        rng = random.Random(f"commands {seed}")
        gc.collect()
        tracemalloc.start()
        slowest, sent = 0.0, 0
        async with trioswitch.open_switch(LIMITS, store=MemoryStore()) as switch, trio.open_nursery() as nursery:
            clients = [(await _client(switch, nursery, number % 2 == 1), number % 2 == 1) for number in range(CLIENTS)]

            async def read(stream: Any) -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    while await stream.receive_some(65536):
                        pass

            for stream, _binary in clients[:2]:
                nursery.start_soon(read, stream)
            await trio.testing.wait_all_tasks_blocked(0.001)
            for _ in range(100):
                stream, binary = rng.choice(clients)
                data = frame(command(rng, binary), binary)
                start = time.process_time()
                try:
                    await stream.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    break
                await trio.testing.wait_all_tasks_blocked(0)
                spent = time.process_time() - start - 0.02 - 2 * CLIENTS * 10 * per_byte * len(data)
                slowest, sent = max(slowest, spent), sent + len(data)
            _now, peak = tracemalloc.get_traced_memory()
            nursery.cancel_scope.cancel()
        tracemalloc.stop()
        if slowest > 0.3 or peak > ALLOWED:
            faults.append(
                f"commands, seed {seed}: a command took {slowest * 1000:.0f} ms more than it may; {peak / MIB:.1f} MiB"
                f" at the peak (allowed {ALLOWED / MIB:.1f}), {sent / MIB:.1f} MiB sent"
            )
        seed += 1
        count += 1
    return count, faults


def fuzz(name: str, seconds: float, seed: int) -> tuple[int, list[str]]:
    """Fuzz one decoder, or `commands`, for some seconds. Returns how many inputs there were, and what is above the bound."""
    if name == "commands":
        return trio.run(fuzz_commands, seconds, seed)
    return fuzz_decoder(name, seconds, seed)


NAMES: Final = (*DECODERS, "commands")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; by default all")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all together")
    parser.add_argument("--seed", type=int, default=0, help="of the first input")
    chosen = parser.parse_args()
    names, failed = chosen.names or NAMES, False
    for name in names:
        count, faults = fuzz(name, chosen.seconds / len(names), chosen.seed)
        print(f"{name}: {count} inputs, {len(faults)} above the bound", *faults[:20], sep="\n    ", flush=True)
        failed = failed or bool(faults)
    sys.exit(failed)


if __name__ == "__main__":
    main()
