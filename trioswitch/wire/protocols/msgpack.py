"""The subprotocol `trioswitch.v1.msgpack`: MessagePack in binary frames, with `batch` objects."""

from collections.abc import Sequence

import msgspec

from .port import ClientProtocol, Codec

__all__ = ["MSGPACK", "MSGPACK_CODEC"]


def _msgpack_batch(payloads: Sequence[bytes], timestamp: str) -> bytes:
    empty = msgspec.msgpack.encode({"type": "batch", "timestamp": timestamp, "count": len(payloads), "messages": []})
    count = len(payloads)
    array = bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
    return b"".join((empty[:-1], array, *payloads))


def _refuse_extension(code: int, _data: memoryview) -> None:
    raise msgspec.DecodeError(f"extension type {code} is not supported")


MSGPACK_CODEC = Codec(
    "MessagePack",
    False,
    msgspec.msgpack.Decoder(dict, ext_hook=_refuse_extension).decode,
    msgspec.msgpack.Encoder().encode,
    _msgpack_batch,
)
MSGPACK = ClientProtocol("trioswitch.v1.msgpack", MSGPACK_CODEC, batches=True)
