"""The URL of Redis: one server, one that Sentinel names, or a Redis Cluster.

    redis://[[user:]password@]host[:port][/database]
    redis+sentinel://[[user:]password@]host[:port][,host[:port]...]/NAME[/database]     hosts of sentinels
    redis+cluster://[[user:]password@]host[:port][,host[:port]...]                      some nodes of a cluster

`rediss` instead of `redis` means TLS. Options: `?prefix=NAME`, `?ca=FILE`, `?replicas=NUMBER`, `?sentinel-password=PASSWORD`.
"""

import enum
import ssl
from typing import Final
from urllib.parse import unquote, urlsplit

import attrs

from .._util.remote import PREFIX, options_of, prefix_of, trusted

__all__ = ["RedisUrl", "Topology", "is_redis", "parse_redis_url"]

PORT: Final = 6379
SENTINEL_PORT: Final = 26379
MAX_REPLICAS: Final = 5
_OPTIONS: Final = {"prefix", "ca", "replicas", "sentinel-password"}


class Topology(enum.Enum):
    """How the server is found that is used."""

    SERVER = ""
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@attrs.frozen
class RedisUrl:
    servers: tuple[tuple[str, int], ...]
    """Hosts and ports: of the server, of sentinels, or of nodes of a cluster."""
    topology: Topology = Topology.SERVER
    name: str = ""
    """What the sentinels call the primary."""
    user: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    sentinel_password: str | None = attrs.field(default=None, repr=False)
    database: int = 0
    replicas: int = 0
    """How many replicas must have a message before it counts as stored."""
    prefix: str = PREFIX
    """Begins all keys and channels: clusters with different prefixes may share a server. In a Redis Cluster it is a hash tag."""
    tls: ssl.SSLContext | None = attrs.field(default=None, eq=False, repr=False)


def is_redis(url: str) -> bool:
    """Whether a URL is one of Redis, valid or not."""
    return url.partition("://")[0].partition("+")[0] in ("redis", "rediss")


def parse_redis_url(url: str) -> RedisUrl:
    """Raises ValueError with a sentence, in which the password is left out."""
    scheme, _, rest = url.partition("://")
    secured, _, kind = scheme.partition("+")
    if secured not in ("redis", "rediss") or kind not in {topology.value for topology in Topology}:
        raise ValueError(f"a URL of Redis begins with redis://, redis+sentinel:// or redis+cluster://, not {scheme}:")
    topology = Topology(kind)
    location, _, query = rest.partition("?")
    authority, _, path = location.partition("/")
    login, _, hosts = authority.rpartition("@")
    user, colon, password = login.partition(":")
    options = options_of(query, _OPTIONS, "Redis")
    servers = tuple(_server(host, topology) for host in hosts.split(","))
    if topology is Topology.SERVER and len(servers) > 1:
        raise ValueError("several hosts in the URL of Redis: that is redis+sentinel:// or redis+cluster://")
    name, database = "", path
    if topology is Topology.SENTINEL:
        name, _, database = path.partition("/")
        if not name:
            raise ValueError("the URL of Redis does not say what the sentinels call it: redis+sentinel://HOST/NAME")
    database = database.strip("/") or "0"
    if not database.isascii() or not database.isdigit():
        raise ValueError(f"the database in the URL of Redis is a number, not {database!r}")
    if topology is Topology.CLUSTER and int(database):
        raise ValueError("a Redis Cluster has database 0 only")
    prefix = prefix_of(options, "Redis")
    replicas = options.get("replicas", "0" if topology is Topology.SERVER else "1")
    if replicas not in map(str, range(MAX_REPLICAS + 1)):
        raise ValueError(f"replicas in the URL of Redis is a number from 0 to {MAX_REPLICAS}, not {replicas!r}")
    return RedisUrl(
        servers=servers,
        topology=topology,
        name=unquote(name),
        user=unquote(user) if user else None,
        password=unquote(password) if colon else None,
        sentinel_password=options.get("sentinel-password"),
        database=int(database),
        replicas=int(replicas),
        prefix=f"{{{prefix}}}" if topology is Topology.CLUSTER else prefix,
        tls=trusted(options.get("ca")) if secured == "rediss" else None,
    )


def _server(text: str, topology: Topology) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"not a valid URL of Redis: {error}") from None
    if not host or parts.path:
        raise ValueError("the URL of Redis names no host: redis://HOST[:PORT][/DATABASE]")
    return host, port or (SENTINEL_PORT if topology is Topology.SENTINEL else PORT)
