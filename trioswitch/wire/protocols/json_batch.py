"""The subprotocol `trioswitch.v1.batch`: JSON, and several messages may arrive in one `batch` object."""

from .json import JSON_CODEC
from .port import ClientProtocol

__all__ = ["JSON_BATCH"]

JSON_BATCH = ClientProtocol("trioswitch.v1.batch", JSON_CODEC, batches=True)
