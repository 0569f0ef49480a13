"""The HTTP API for backends: Centrifugo's methods, so that its client libraries work, and some of our own."""

from .keys import ApiKey
from .server import Api

__all__ = ["Api", "ApiKey"]
