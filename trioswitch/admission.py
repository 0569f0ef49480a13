"""Admission: from a stream of bytes to a running connection. The request's head, the hooks, the handshake, the connection."""

import ipaddress
import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Literal
from urllib.parse import parse_qsl

import attrs
import trio
import trio_websocket
from msgspec import UNSET

from ._util.clock import timestamp
from ._util.process import connections_by_files
from .auth.address import Network, client_address, is_trusted, networks
from .auth.authentication import Authentication
from .auth.identity import Identity
from .auth.origin import check_origin
from .auth.request import ConnectRequest
from .config import Options
from .connections.connection import Services
from .connections.directory import ConnectionDirectory
from .connections.driver import ConnectionDriver, Execute, MakeTransport
from .connections.heartbeats import Heartbeats
from .connections.limits import ClientLimits
from .durability.inbox import Inbox
from .durability.sessions import Sessions
from .endpoints import Endpoints
from .errors import CloseCause, PeerGone, Refused
from .hooks import OnDisconnect
from .metrics import Traffic
from .refusals import response_to, status_of, told_by_closing
from .sign_in import SignIn, expires_in
from .transport.native import NativeTransport, read_head
from .transport.proxy_header import read_header
from .transport.reactor import Reactor
from .transport.streams import ByteStream, PrefixedStream, SocketByteStream, address
from .transport.trio_websocket import TrioWebsocketTransport
from .version import __version__
from .wire.formats import Formats
from .wire.handshake import Handshake, Rejected, is_upgrade, joined, response
from .wire.messages import Connected
from .wire.prepared import Prepared
from .wire.protocols import choose
from .wire.protocols.port import ClientProtocol
from .wire.protocols.raw import RAW

__all__ = ["Admission", "HttpHandler", "TransportName"]

_log = logging.getLogger(__name__)

HttpHandler = Callable[[ByteStream, bytes], Awaitable[bytes | None]]
"""Answers requests that are no WebSocket upgrade: gets the channel, and the bytes read from it, which begin with the head of one.

It returns what it has read of a request that is an upgrade, with its head, or None when the channel is to be closed."""
TransportName = Literal["native", "trio-websocket"]

WELCOME_PRIORITY: Final = 10
_CAUSES: Final = {"unauthorised", "forbidden", "rate_limited", "unavailable", "internal", "origin"}


@attrs.define(eq=False, kw_only=True)
class Admission:
    """Admits clients, and runs their connections. One for each switch."""

    options: Options
    traffic: Traffic
    formats: Formats
    reactor: Reactor | None
    connections: ConnectionDirectory
    sessions: Sessions
    inbox: Inbox
    sign_in: SignIn
    heartbeats: Heartbeats
    endpoints: Endpoints
    execute: Execute
    services: Services
    authentication: Authentication
    on_disconnect: OnDisconnect | None
    limits: ClientLimits
    refusals: Counter[str] = attrs.field(factory=Counter, init=False)
    """Clients that were turned away, by cause."""
    _proxies: tuple[Network, ...] = attrs.field(init=False)
    max_connections: int = attrs.field(init=False)
    id_prefix: str = ""
    """Begins the ids of connections: in a cluster it says which node they are on."""

    def __attrs_post_init__(self) -> None:
        limit = self.options.max_connections
        self._proxies = networks(self.options.trusted_proxies)
        self.max_connections = connections_by_files() if limit is None else limit

    # --- ways in

    async def serve_byte_stream(
        self,
        channel: ByteStream,
        http_handler: HttpHandler | None,
        transport: TransportName = "native",
        proxy_protocol: bool = False,
    ) -> None:
        """Serve whoever is at the other end until it is gone; closes the channel. Raises nothing but Cancelled."""
        try:
            conversation = None
            if proxy_protocol and not await self._knows_client(channel):
                return
            try:
                conversation = await self._let_in(channel, http_handler, transport)
            except (Refused, Rejected) as refused:
                await channel.part(response_to(refused))
            except trio.TooSlowError:
                await channel.part(response(408, "the handshake took too long\n"))
            if conversation is not None:
                await conversation()
        except* PeerGone:
            _log.debug("%s went before its handshake was over", channel.remote)
        except* Exception:  # whatever a peer does, it must not end the nursery that it shares with all others
            _log.exception("serving %s failed", channel.remote, extra={"client": channel.remote})
        finally:
            await channel.aclose()

    async def _knows_client(self, channel: ByteStream) -> bool:
        """Read the PROXY header of a trusted proxy. Returns whether the client can be served."""
        remote, trusted = channel.remote, self.options.trusted_proxies
        if not (isinstance(channel, SocketByteStream) and is_trusted(remote, trusted, self._proxies)):
            return True
        try:
            with trio.fail_after(self.options.handshake_timeout):
                await channel.read_proxy_header(read_header)
        except (ValueError, trio.TooSlowError) as error:
            self._count_refusal("other")
            _log.warning("%s is a trusted proxy, and did not say who its client is: %s", remote, error)
            return False
        return True

    async def _let_in(
        self, channel: ByteStream, http_handler: HttpHandler | None, transport: TransportName
    ) -> Callable[[], Awaitable[None]] | None:
        """From the first byte to the end of the handshake. Returns what serves the client from then on.

        It returns, rather than going on by itself, so that nothing of the handshake is kept for as long as the client is.
        """
        data = b""
        while True:
            deadline = trio.current_time() + self.options.handshake_timeout
            with trio.fail_at(deadline):
                head, rest = await read_head(channel, self.options.max_head_bytes, data)
                if is_upgrade(head):
                    return await self._shake_hands(channel, head, rest, transport, deadline)
            if http_handler is None:
                raise Rejected(426, "this is a WebSocket server", [("Upgrade", "websocket")])
            left = await http_handler(channel, head + rest)
            if left is None:
                await channel.part()
                return None
            data = left

    async def _shake_hands(
        self, channel: ByteStream, head: bytes, rest: bytes, transport: TransportName, deadline: float
    ) -> Callable[[], Awaitable[None]] | None:
        options = self.options
        handshake = Handshake(
            compression=options.compression,
            incoming_context_takeover=options.incoming_context_takeover,
            max_message_bytes=options.max_message_bytes,
        )
        handshake.receive(head)
        is_endpoint = handshake.path in self.endpoints
        if handshake.path not in ("/", options.path) and not is_endpoint:
            raise Rejected(404, f"there is no WebSocket at {handshake.path!r}: it is at {options.path}")
        request = self._request(handshake.path, handshake.query, handshake.headers, channel.remote)
        self._check_origin(request, lambda: channel.is_loopback)
        try:
            identity = await self._admit(request)
        except Refused as refused:
            cause = told_by_closing(request, refused)
            if cause is None:
                raise
            answer, codec = handshake.accept(options.max_fragments)
            await channel.part(answer + codec.close(cause.code, refused.message))
            return None
        if is_endpoint:
            if identity is None:
                raise Refused("this endpoint needs a token", code="unauthorised")
            answer, codec = handshake.accept(options.max_fragments, raw=True)
            await channel.write(answer)
            format = self.formats.get(RAW, framed=True, deflate_bits=codec.deflate_bits)
            native = NativeTransport(channel, codec, format, rest, self.reactor)
            return partial(self.endpoints.serve, self._connection(request, identity, lambda _: native))
        if transport != "native":
            stream = PrefixedStream(head + rest, channel)
            return partial(self._serve_by_trio_websocket, stream, request, identity, deadline)
        answer, codec = handshake.accept(options.max_fragments)
        await channel.write(answer)
        format = self.formats.get(handshake.protocol, framed=True, deflate_bits=codec.deflate_bits)
        native = NativeTransport(channel, codec, format, rest, self.reactor)
        return partial(self._converse, self._connection(request, identity, lambda _: native))

    async def _serve_by_trio_websocket(
        self, stream: trio.abc.Stream, connect: ConnectRequest, identity: Identity | None, deadline: float
    ) -> None:
        async with trio.open_nursery() as nursery:
            accepted = None
            with trio.move_on_at(deadline):  # trio-websocket answers what it does not like by itself, and then waits on
                request = await trio_websocket.wrap_server_stream(
                    nursery, stream, max_message_size=self.options.max_message_bytes
                )
                accepted = await self._accept(request)
            if accepted is not None:
                await self._converse_by_trio_websocket(accepted, connect, identity)
            nursery.cancel_scope.cancel()

    async def serve_request(self, request: trio_websocket.WebSocketRequest) -> None:
        """Serve a client whose request trio-websocket has read, until it is gone. Raises nothing but Cancelled."""
        remote = request.remote
        where = remote if isinstance(remote, str) else address((str(remote.address), remote.port))
        try:
            await self._serve_request(request, where)
        except* (PeerGone, trio.TooSlowError, trio.BrokenResourceError, trio_websocket.ConnectionClosed):
            _log.debug("%s went before its handshake was over", where)
        except* Exception:
            _log.exception("serving %s failed", where, extra={"client": where})

    async def _serve_request(self, request: trio_websocket.WebSocketRequest, where: str) -> None:
        path, _, query = request.path.partition("?")
        headers = joined((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers)
        connect = self._request(path, dict(parse_qsl(query)), headers, where)
        with trio.fail_after(self.options.handshake_timeout):
            try:
                self._check_origin(connect, lambda: _is_loopback(request.local))
                identity = await self._admit(connect)
            except Rejected as rejected:
                await request.reject(rejected.status, body=f"{rejected.message}\n".encode())
                return
            except Refused as refused:
                if (cause := told_by_closing(connect, refused)) is not None:
                    await (await request.accept()).aclose(cause.code, refused.message)
                    return
                status, headers_of_status = status_of(refused)
                fields = [(name.encode(), value.encode()) for name, value in headers_of_status]
                await request.reject(status, extra_headers=fields, body=f"{refused.message}\n".encode())
                return
            accepted = await self._accept(request)
        await self._converse_by_trio_websocket(accepted, connect, identity)

    @staticmethod
    async def _accept(
        request: trio_websocket.WebSocketRequest,
    ) -> tuple[trio_websocket.WebSocketConnection, ClientProtocol]:
        """Raises PeerGone."""
        protocol = choose(request.proposed_subprotocols)
        named = protocol.subprotocol in request.proposed_subprotocols
        try:
            return await request.accept(subprotocol=protocol.subprotocol if named else None), protocol
        except (trio.BrokenResourceError, trio_websocket.ConnectionClosed):
            raise PeerGone(CloseCause.VANISHED) from None

    # --- admission

    def _request(self, path: str, query: dict[str, str], headers: dict[str, str], remote: str) -> ConnectRequest:
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        token = credentials.strip() if scheme.lower() == "bearer" else query.get("token")
        where = client_address(remote, headers, self.options.trusted_proxies, self._proxies)
        return ConnectRequest(
            path=path, query=query, headers=headers, remote=remote, address=where, token=token or None
        )

    def _check_origin(self, request: ConnectRequest, is_loopback: Callable[[], bool]) -> None:
        """Raises Rejected for a page of another site: it does not get a WebSocket that would tell it why."""
        try:
            check_origin(request.headers, self.options.allow_origins, is_loopback)
        except Refused as refused:
            self._count_refusal("origin")
            _log.warning("refused %s: %s", request.remote, refused.message, extra={"client": request.remote})
            raise Rejected(403, refused.message) from None

    async def _admit(self, request: ConnectRequest) -> Identity | None:
        """Who the client is; None: it has yet to authenticate itself. Raises Refused."""
        try:
            self._check_room()
            self.limits.check_address(request.address)
            identity = await self.authentication.identify(request)
            self._check_room()  # again: hooks take their time
            if identity is not None and identity.user is not None:
                self.limits.check_user(len(self.connections.of_user(identity.user)))
        except Refused as refused:
            self._count_refusal(refused.code)
            _log.info("refused %s: %s", request.remote, refused.message, extra={"client": request.remote})
            raise
        except Exception:
            self._count_refusal("internal")
            _log.exception("a hook failed for %s", request.remote, extra={"client": request.remote})
            raise Refused("internal error", code="internal") from None
        return identity

    def _count_refusal(self, code: str) -> None:
        """The application's own codes count together, so that metrics stay bounded."""
        self.refusals[code if code in _CAUSES else "other"] += 1

    def _check_room(self) -> None:
        if self.connections.draining:
            raise Refused("the server is going away", code="unavailable")
        if self.connections.total + self.endpoints.connections.total >= self.max_connections:
            raise Refused("the server is full", code="unavailable")

    # --- the conversation

    async def _converse_by_trio_websocket(
        self,
        accepted: tuple[trio_websocket.WebSocketConnection, ClientProtocol],
        connect: ConnectRequest,
        identity: Identity | None,
    ) -> None:
        websocket, protocol = accepted
        format = self.formats.get(protocol, framed=False, deflate_bits=0)
        connection = self._connection(
            connect,
            identity,
            lambda client: TrioWebsocketTransport(
                websocket,
                format,
                start_soon=client.start_soon,
                ping_timeout=self.options.ping_timeout,
                heard=client.was_heard,
                lost=client.was_lost,
            ),
        )
        await self._converse(connection)

    def _connection(
        self, request: ConnectRequest, identity: Identity | None, make_transport: MakeTransport
    ) -> ConnectionDriver:
        id = self.id_prefix + secrets.token_urlsafe(9)
        limiter = self.limits.limiter(request.address)
        return ConnectionDriver(
            id, request, identity, self.options, self.traffic, self.services, make_transport, limiter
        )

    async def _converse(self, connection: ConnectionDriver) -> None:
        try:
            await connection.run(self.execute, self._opened)
        finally:
            self.heartbeats.remove(connection)
            self.sessions.end(connection)
            self.inbox.forget(connection)
            self.sign_in.ended(connection)
            self.connections.remove(connection)
            self.limits.closed(connection.request.address)
            if self.on_disconnect is not None:
                await self._tell(self.on_disconnect, connection)

    def _opened(self, connection: ConnectionDriver) -> None:
        options = self.options
        self.connections.add(connection)
        self.limits.opened(connection.request.address)
        session = self.sessions.begin(connection)
        self.heartbeats.add(connection)
        welcome = Connected(
            connection_id=connection.id,
            session=session,
            user_id=connection.user,
            timestamp=timestamp(),
            heartbeat=options.ping_interval,
            max_message_bytes=options.max_message_bytes,
            server=f"trioswitch/{__version__}",
            expires=UNSET if connection.identity is None else expires_in(connection.identity),
        )
        connection.outbox.reply(Prepared(welcome, priority=WELCOME_PRIORITY))
        if connection.identity is None:
            connection.start_soon(self._await_identity, connection)
        else:
            self.sign_in.done(connection)
        if self.connections.draining:
            connection.close(CloseCause.DRAIN)
        elif self.connections.total > self.max_connections:  # several came out of their hooks together
            connection.close(CloseCause.OVERLOADED)

    async def _await_identity(self, connection: ConnectionDriver) -> None:
        await trio.sleep(self.options.handshake_timeout)
        if connection.identity is None:
            connection.close(CloseCause.UNAUTHORISED)

    async def _tell(self, on_disconnect: OnDisconnect, connection: ConnectionDriver) -> None:
        assert connection.cause is not None
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self.options.hook_timeout) as scope:
            try:
                await on_disconnect(connection.public, connection.cause)
            except Exception:
                _log.exception("on_disconnect failed for %s", connection.id, extra={"connection": connection.id})
        if scope.cancelled_caught:
            _log.error("on_disconnect took too long for %s", connection.id, extra={"connection": connection.id})


def _is_loopback(local: object) -> bool:
    """Whether an endpoint of trio-websocket's is an address of this machine alone."""
    return isinstance(local, trio_websocket.Endpoint) and ipaddress.ip_address(str(local.address)).is_loopback
