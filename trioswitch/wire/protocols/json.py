"""The subprotocol `trioswitch.v1`: one JSON object for each text frame."""

from collections.abc import Sequence

import msgspec

from ..messages import Event
from .port import ClientProtocol, Codec, converter

__all__ = ["JSON", "JSON_CODEC"]


def _json_batch(payloads: Sequence[bytes], timestamp: str) -> bytes:
    head = b'{"type":"batch","timestamp":"%b","count":%d,"messages":[' % (timestamp.encode(), len(payloads))
    return b"".join((head, b",".join(payloads), b"]}"))


JSON_CODEC = Codec("JSON", True, msgspec.json.Decoder(dict).decode, converter.get_dumps_hook(Event), _json_batch)
JSON = ClientProtocol("trioswitch.v1", JSON_CODEC, batches=False)
