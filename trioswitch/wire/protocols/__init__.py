"""Client protocols: one module for each, and the choice between them.

port        what a client protocol is, and how its commands are decoded
json        `trioswitch.v1`
json_batch  `trioswitch.v1.batch`
msgpack     `trioswitch.v1.msgpack`
"""

from collections.abc import Sequence

from .json import JSON, JSON_CODEC
from .json_batch import JSON_BATCH
from .msgpack import MSGPACK, MSGPACK_CODEC
from .port import ClientProtocol, Codec

__all__ = [
    "JSON",
    "JSON_BATCH",
    "JSON_CODEC",
    "MSGPACK",
    "MSGPACK_CODEC",
    "PROTOCOLS",
    "ClientProtocol",
    "Codec",
    "choose",
]

PROTOCOLS = {protocol.subprotocol: protocol for protocol in (JSON, JSON_BATCH, MSGPACK)}


def choose(proposed: Sequence[str]) -> ClientProtocol:
    """The first of the client's subprotocols that is known; JSON v1 for a client that names none of them."""
    return next((PROTOCOLS[name] for name in proposed if name in PROTOCOLS), JSON)
