"""What the methods of the HTTP API do. Each takes a request, and returns the result that JSON shows."""

import platform
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import attrs
import trio
from msgspec import UNSET

from .._util import clock
from ..errors import (
    BrokerError,
    DeliveryError,
    HistoryNotAvailable,
    Refused,
    StorageFull,
    StoreError,
    TrioswitchError,
    UnencodableData,
    UnknownConnection,
)
from ..switch import Switch
from ..version import __version__
from ..wire.messages import Position, Recorded
from . import requests
from .keys import ApiKey

__all__ = ["ApiError", "Methods"]

MAX_HISTORY: Final = 1000
BROADCAST_AT_ONCE: Final = 64
"""Rooms of one broadcast to which it is published at the same time."""

INTERNAL: Final = 100
DENIED: Final = 103
NOT_FOUND: Final = 104
LIMIT_EXCEEDED: Final = 106
BAD_REQUEST: Final = 107
NOT_AVAILABLE: Final = 108
UNRECOVERABLE: Final = 112


class ApiError(Exception):
    """An answer with an error: Centrifugo's code, and a sentence."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def answer(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {"error": {"code": self.code, "message": self.message}}

    @classmethod
    def of(cls, error: TrioswitchError) -> "ApiError":
        """What an exception of the library means to a caller of the API."""
        for kinds, code in _CODES:
            if isinstance(error, kinds):
                return cls(code, str(error))
        return cls(INTERNAL, str(error))


_CODES: Final[tuple[tuple[type[Exception] | tuple[type[Exception], ...], int], ...]] = (
    (HistoryNotAvailable, NOT_AVAILABLE),
    (UnknownConnection, NOT_FOUND),
    (Refused, DENIED),
    (UnencodableData, BAD_REQUEST),
    (StorageFull, LIMIT_EXCEEDED),
    ((DeliveryError, StoreError, BrokerError), INTERNAL),
)


class Methods:
    """The methods, by name: `await methods.call("publish", request, key)`."""

    def __init__(self, switch: Switch, statistics: Callable[[], Mapping[str, Any]] = dict) -> None:
        """`statistics` gives what is known of the process and the machine."""
        self._switch = switch
        self._admin = switch.administration
        self._facts = statistics
        self._methods: dict[str, Callable[[Any, ApiKey], Awaitable[dict[str, Any]]]] = {
            name: getattr(self, f"_{name}") for name in requests.REQUESTS if name != "batch"
        }

    async def call(self, method: str, request: requests.Request, key: ApiKey) -> dict[str, Any]:
        """Raises ApiError. When it is cancelled, it may have been done or not."""
        rooms = getattr(request, "channels", [])
        for room in [*rooms, getattr(request, "channel", None)]:
            if room is not None and not key.may_use(room):
                raise ApiError(DENIED, f"the API key is not for the channel {room!r}")
        try:
            return await self._methods[method](request, key)
        except TrioswitchError as error:
            raise ApiError.of(error) from None
        except (TypeError, ValueError) as error:
            raise ApiError(BAD_REQUEST, str(error)) from None

    # --- messages

    async def _publish(self, request: requests.Publish, _key: ApiKey) -> dict[str, Any]:
        return await self._publish_to(request.channel, request)

    async def _publish_to(self, room: str, request: Any) -> dict[str, Any]:
        receipt = await self._switch.publish(
            room,
            _data_of(request),
            priority=request.priority,
            expires=request.expires,
            key=request.key,
            idempotency_key=request.idempotency_key,
        )
        result: dict[str, Any] = {"delivered": receipt.delivered, "queued": receipt.queued, "dropped": receipt.dropped}
        if receipt.offset is not None:
            result |= {"offset": receipt.offset, "epoch": receipt.epoch}
        return result

    async def _broadcast(self, request: requests.Broadcast, _key: ApiKey) -> dict[str, Any]:
        responses: list[dict[str, Any]] = [{}] * len(request.channels)
        limit = trio.CapacityLimiter(BROADCAST_AT_ONCE)

        async def publish(index: int, room: str) -> None:
            async with limit:
                try:
                    responses[index] = {"result": await self._publish_to(room, request)}
                except (TrioswitchError, ApiError) as error:
                    failure = error if isinstance(error, ApiError) else ApiError.of(error)
                    responses[index] = failure.answer

        async with trio.open_nursery() as nursery:
            for index, room in enumerate(request.channels):
                nursery.start_soon(publish, index, room)
        return {"responses": responses}

    async def _send_to_user(self, request: requests.SendToUser, _key: ApiKey) -> dict[str, Any]:
        if request.data is UNSET:
            raise ApiError(BAD_REQUEST, "data is missing")
        receipt = await self._switch.send_to_user(
            request.user,
            request.data,
            keep=request.keep,
            expires=request.expires,
            idempotency_key=request.idempotency_key,
        )
        return {
            "delivered": receipt.delivered,
            "queued": receipt.queued,
            "dropped": receipt.dropped,
            "kept": receipt.kept,
        }

    async def _send_to_group(self, request: requests.SendToGroup, _key: ApiKey) -> dict[str, Any]:
        if request.data is UNSET:
            raise ApiError(BAD_REQUEST, "data is missing")
        receipt = await self._switch.send_to_group(request.group, request.data)
        return {"delivered": receipt.delivered, "queued": receipt.queued, "dropped": receipt.dropped}

    async def _groups(self, request: requests.Groups, _key: ApiKey) -> dict[str, Any]:
        for user in request.add:
            self._switch.add_to_group(request.group, user)
        for user in request.remove:
            self._switch.remove_from_group(request.group, user)
        return {"users": sorted(self._switch.group(request.group))}

    # --- users and connections

    async def _subscribe(self, request: requests.Subscribe, _key: ApiKey) -> dict[str, Any]:
        await self._admin.join(request.channel, **_who(request))
        return {}

    async def _unsubscribe(self, request: requests.Unsubscribe, _key: ApiKey) -> dict[str, Any]:
        await self._admin.leave(request.channel, **_who(request))
        return {}

    async def _disconnect(self, request: requests.Disconnect, _key: ApiKey) -> dict[str, Any]:
        reason = "" if request.disconnect is None else request.disconnect.reason
        await self._admin.disconnect(**_who(request), reason=reason, keep=request.whitelist)
        return {}

    async def _refresh(self, request: requests.Refresh, _key: ApiKey) -> dict[str, Any]:
        expires_at = clock.wall_time() if request.expired else request.expire_at or None
        await self._admin.refresh(**_who(request), expires_at=expires_at)
        return {}

    async def _revoke_token(self, request: requests.RevokeToken, _key: ApiKey) -> dict[str, Any]:
        closed = await self._admin.revoke(
            user=request.user, token_id=request.token_id, issued_before=request.issued_before
        )
        return {"closed": closed}

    async def _connections(self, request: requests.Connections, key: ApiKey) -> dict[str, Any]:
        if request.channel is None and not key.is_for_all_rooms:
            raise ApiError(DENIED, "the API key is not for all channels: name one")
        found = await self._admin.connections(user=request.user, room=request.channel, connection=request.client)
        return {"connections": {each.id: attrs.asdict(each) for each in found}}

    async def _trace(self, request: requests.Trace, key: ApiKey) -> dict[str, Any]:
        if request.channel is None and not key.is_for_all_rooms:
            raise ApiError(DENIED, "the API key is not for all channels: name one")
        return await self._admin.trace(request.trace, user=request.user, room=request.channel)

    # --- rooms

    async def _presence(self, request: requests.Presence, _key: ApiKey) -> dict[str, Any]:
        found = await self._admin.connections(room=request.channel)
        return {"presence": {each.id: _client(each.id, each.user, each.info) for each in found}}

    async def _presence_stats(self, request: requests.PresenceStats, _key: ApiKey) -> dict[str, Any]:
        users = await self._admin.members(request.channel)
        return {"num_clients": sum(users.values()), "num_users": len(users)}

    async def _history(self, request: requests.History, _key: ApiKey) -> dict[str, Any]:
        limit = MAX_HISTORY if request.limit == -1 else request.limit
        since = None if request.since is None else Position(request.since.epoch, request.since.offset)
        if request.reverse and since is not None:
            before = max(0, since.offset - 1 - limit)
            page = await self._switch.history(request.channel, since=Position(since.epoch, before), limit=max(limit, 1))
            messages = [message for message in page.messages if _offset(message) < since.offset]
        else:
            page = await self._switch.history(request.channel, since=since, limit=max(limit, 1))
            messages = page.messages
        if since is not None and not page.recovered and not request.reverse:
            raise ApiError(UNRECOVERABLE, "messages after this position are gone")
        if request.reverse:
            messages = messages[::-1]
        return {
            "publications": [_publication(message) for message in messages[:limit]],
            "offset": page.position.offset,
            "epoch": page.position.epoch,
        }

    async def _channels(self, request: requests.Channels, key: ApiKey) -> dict[str, Any]:
        rooms = await self._admin.rooms(request.pattern or "*")
        return {"channels": {room: {"num_clients": count} for room, count in rooms.items() if key.may_use(room)}}

    # --- the server

    async def _info(self, _request: requests.Info, _key: ApiKey) -> dict[str, Any]:
        nodes = self._switch.nodes()
        if not nodes:
            counted = self._switch.statistics()
            here = {"connections": counted.active_connections, "users": counted.users, "rooms": len(counted.rooms)}
            return {"nodes": [_node("here", platform.node(), __version__, here)]}
        return {"nodes": [_node(node.id, node.name, node.version, node.statistics) for node in nodes]}

    async def _statistics(self, _request: requests.Statistics, _key: ApiKey) -> dict[str, Any]:
        counted = attrs.asdict(self._switch.statistics())
        counted["rooms"] = len(counted["rooms"])
        by_policy = counted["drops_by_policy"].items()
        counted["drops_by_policy"] = [
            {"policy": policy, "cause": cause, "count": n} for (policy, cause), n in by_policy
        ]
        return {"switch": counted, **self._facts()}


def _data_of(request: Any) -> Any:
    if request.b64data is None:
        if request.data is UNSET:
            raise ApiError(BAD_REQUEST, "data is missing")
        return request.data
    if request.data is not UNSET:
        raise ApiError(BAD_REQUEST, "there is data, and b64data")
    try:
        return b64decode(request.b64data, validate=True)
    except ValueError as error:
        raise ApiError(BAD_REQUEST, f"b64data is not base64: {error}") from None


def _who(request: Any) -> dict[str, str | None]:
    if not request.user and not request.client:
        raise ApiError(BAD_REQUEST, "say who: user or client")
    return {"user": request.user or None, "connection": request.client}


def _client(id: str, user: str, info: Any) -> dict[str, Any]:
    return {"client": id, "user": user, **({} if info is None else {"conn_info": info})}


def _publication(message: Recorded) -> dict[str, Any]:
    publication: dict[str, Any] = {"data": message.body, "offset": _offset(message)}
    user = getattr(message, "user_id", None)
    if isinstance(user, str):
        publication["info"] = _client("", user, None)
    return publication


def _offset(message: Recorded) -> int:
    """History has messages with a position only."""
    return message.offset if isinstance(message.offset, int) else 0


def _node(id: str, name: str, version: str, counted: Mapping[str, int]) -> dict[str, Any]:
    return {
        "uid": id,
        "name": name,
        "version": version,
        "num_clients": counted.get("connections", 0),
        "num_users": counted.get("users", 0),
        "num_channels": counted.get("rooms", 0),
    }
