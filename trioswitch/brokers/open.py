"""Opens a broker from its URL, such as `redis://localhost`."""

from ..nats.url import parse_nats_url
from ..postgres.url import parse_postgres_url
from ..redis.url import is_redis, parse_redis_url
from .nats import NatsBroker
from .port import Broker
from .postgres import PostgresBroker
from .redis import RedisBroker

__all__ = ["open_broker"]


def open_broker(url: str) -> Broker:
    """A broker for one switch, which connects when the switch runs.

    The URL is `redis://HOST`, `nats://HOST` or `postgres://HOST/DATABASE` (docs/cluster.md). Raises ValueError, with a sentence,
    for another one.
    """
    scheme = url.partition("://")[0]
    if is_redis(url):
        return RedisBroker(parse_redis_url(url))
    if scheme in ("nats", "tls"):
        return NatsBroker(parse_nats_url(url))
    if scheme in ("postgres", "postgresql"):
        return PostgresBroker(parse_postgres_url(url))
    raise ValueError(f"unknown broker {url!r}: it is redis://HOST, nats://HOST or postgres://HOST/DATABASE")
