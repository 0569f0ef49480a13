"""Opens a broker from its URL, such as `redis://localhost`."""

from ..redis.url import parse_redis_url
from .port import Broker
from .redis import RedisBroker

__all__ = ["open_broker"]


def open_broker(url: str) -> Broker:
    """A broker for one switch, which connects when the switch runs: `redis://[[user:]password@]host[:port][/database]`.

    Raises ValueError, with a sentence, for another URL.
    """
    scheme = url.partition("://")[0]
    if scheme in ("redis", "rediss"):
        return RedisBroker(parse_redis_url(url))
    raise ValueError(f"unknown broker {url!r}: it is redis://HOST or rediss://HOST")
