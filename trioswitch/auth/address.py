"""Where a client is: its address, also behind proxies that are trusted to tell it."""

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

__all__ = ["UNIX_SOCKET", "Network", "client_address", "is_trusted", "networks"]

Network = IPv4Network | IPv6Network
UNIX_SOCKET: Final = "unix socket"
IPV6_PREFIX: Final = 64
"""Bits of an IPv6 address that count: a provider gives each customer at least so many addresses (RFC 6177)."""


def networks(names: Iterable[str]) -> tuple[Network, ...]:
    """Networks and single addresses, such as `10.0.0.0/8`; `unix socket` is none. Raises ValueError."""
    return tuple(ip_network(name, strict=False) for name in names if name != UNIX_SOCKET)


def is_trusted(remote: str, trusted: Sequence[str], known: Sequence[Network]) -> bool:
    """Whether the other end of a socket is one of `trusted`, of which `known` are the networks."""
    address = _parse(remote)
    if address is None:
        return remote == UNIX_SOCKET and UNIX_SOCKET in trusted
    return any(address in network for network in known)


def client_address(
    remote: str, headers: Mapping[str, str], trusted: Sequence[str], known: Sequence[Network]
) -> str | None:
    """The address of a client, of IPv6 its network. None: it is not known.

    `remote` is the other end of the socket. Where that is one of `trusted` (of which `known` are the networks), the last address
    in `X-Forwarded-For` that is not trusted is the client's: those before it are what the client itself says.
    """
    address = _parse(remote)
    if is_trusted(remote, trusted, known):
        for hop in reversed(headers.get("x-forwarded-for", "").split(",")):
            found = _parse(hop.strip())
            if found is None:
                break
            address = found
            if not any(address in network for network in known):
                break
    if isinstance(address, IPv6Address):
        return str(ip_network((address, IPV6_PREFIX), strict=False))
    return None if address is None else str(address)


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """An address, with or without a port."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
