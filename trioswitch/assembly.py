"""Opens a switch. This is the one place where its parts are put together."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import trio

from ._util.checks import check_in_trio
from ._util.nurseries import open_nursery
from ._util.supervision import supervise
from .administration import Administration
from .admission import Admission
from .auth.authentication import Authentication, Authenticator, OnConnect
from .auth.revocations import Revocations
from .brokers.port import Broker
from .cluster.cluster import Cluster
from .commands import Commands
from .config import Options
from .connections.directory import ConnectionDirectory
from .connections.groups import Groups
from .connections.heartbeats import Heartbeats
from .connections.limits import ClientLimits
from .connections.shedding import Shedding
from .durability.idempotency import IdempotencyKeys
from .durability.inbox import Inbox
from .durability.recovery import Recovery
from .durability.sessions import Sessions
from .durability.store_health import StoreHealth
from .durability.store_writer import StoreWriter
from .endpoints import Endpoint, Endpoints, check_endpoints
from .handlers import Handlers
from .hooks import CheckRoomToken, Hooks, OnDisconnect, OnExpire, OnJoin, OnPublish
from .metrics import Traffic
from .parts import Parts
from .publishing import Publisher
from .rooms.announcements import Announcements
from .rooms.directory import RoomDirectory
from .rooms.history import HistoryBudget
from .rooms.presence import Presence
from .services import ConnectionServices
from .sign_in import SignIn
from .stores.memory import MemoryStore
from .stores.port import Store
from .switch import Switch
from .tracing import Tracing
from .transport.reactor import Reactor
from .wire.formats import Formats
from .wire.frames import Compressor

__all__ = ["open_switch"]


@asynccontextmanager
async def open_switch(
    options: Options | None = None,
    *,
    handlers: Handlers | None = None,
    endpoints: Mapping[str, Endpoint] | None = None,
    on_connect: OnConnect | None = None,
    on_disconnect: OnDisconnect | None = None,
    on_expire: OnExpire | None = None,
    authenticate: Authenticator | None = None,
    on_join: OnJoin | None = None,
    on_publish: OnPublish | None = None,
    check_room_token: CheckRoomToken | None = None,
    store: Store | None = None,
    broker: Broker | None = None,
) -> AsyncIterator[Switch]:
    """Run a switch: `async with open_switch() as switch`. Its rooms and tasks live until the block is left.

    Connections are served in the nursery of whoever calls `serve`, `Switch.serve_stream` or `Switch.serve_request`: open
    that nursery inside the block, so that connections end before their rooms do. What the block raises comes out as it is, not
    in an exception group.

    Args:
        options: limits and room policies; the defaults suit most programs.
        handlers: callbacks for message types of the application's own.
        endpoints: async functions for WebSocket paths of the application's own, by path (`Endpoint`).
        on_connect: async function that is called before a client is admitted, when its token has been checked. It returns who
            the client is, or None for no change, or raises Refused.
        on_disconnect: async function that is called when a client that was admitted has gone.
        on_expire: async function that is called when the identity of a connection has expired (`Identity.expires_at`). It returns
            when it expires from now on (seconds since 1970; None: never), or raises Refused, after which the connection is closed
            with 4500, or, if the code is `unavailable`, with 4003. Without it, the connection is closed with 4500.
        authenticate: async function from a token to an Identity. With it, a client needs a token: in the `Authorization`
            header, in `?token=`, or in its first message.
        on_join: async function that is called before a client joins a room. It may raise Refused.
        on_publish: async function that is called before a client's message is published to a room. It may change the message
            (`PublishRequest`), or raise Refused.
        check_room_token: async function that checks the `token` with which a client joins a room that its identity does not
            let it join: `TokenVerifier.check_room_token`, say. It raises Refused.
        store: keeps the messages of `stored` rooms and inboxes (`trioswitch.stores`). It stays open when the block is left.
            Without it inboxes are kept in memory.
        broker: makes the switch a node of a cluster (`trioswitch.brokers`): all switches whose brokers meet, and which have the
            same store, are one server to their clients.

    Raises:
        ValueError: a room policy has `history=stored`, or there is a broker, and there is no store.
        TypeError: an argument has another type, or a hook is not an async function.
        RuntimeError: the program does not run on Trio.
    """
    check_in_trio()
    if options is None:
        options = Options()
    for name, value, kind in (
        ("options", options, Options),
        ("handlers", handlers, Handlers),
        ("store", store, Store),
        ("broker", broker, Broker),
    ):
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} must be of the type {kind.__name__}, not {value!r}")
    hooks = Hooks(
        authenticate=authenticate,
        on_connect=on_connect,
        on_disconnect=on_disconnect,
        on_expire=on_expire,
        on_join=on_join,
        on_publish=on_publish,
        check_room_token=check_room_token,
    )
    check_endpoints(endpoints or {})
    if options.needs_store and store is None:
        raise ValueError("a room policy has history=stored: that needs a store, open_switch(store=...)")
    if broker is not None and store is None:
        raise ValueError(
            "a broker makes the switch one of several: they need a store that they share, open_switch(store=...)"
        )
    async with open_nursery() as nursery:
        parts = _assemble(
            options,
            nursery,
            store or MemoryStore(),
            broker,
            handlers or Handlers(),
            dict(endpoints or {}),
            hooks,
        )
        try:
            switch = Switch(parts, nursery)
            parts.services.attach(switch)
            await parts.join_cluster()
            yield switch
        finally:
            await parts.leave_cluster()
            parts.abandon()
            nursery.cancel_scope.cancel()
    parts.close()


def _assemble(
    options: Options,
    nursery: trio.Nursery,
    store: Store,
    broker: Broker | None,
    handlers: Handlers,
    own_endpoints: Mapping[str, Endpoint],
    hooks: Hooks,
) -> Parts:
    """Make the parts of a switch, from those that know nothing of the others to admission, and start their tasks."""
    traffic = Traffic()
    compressor = Compressor(options.compression_min_bytes, options.compression_level)
    connections = ConnectionDirectory(options.direct_overflow)
    groups = Groups()

    health = StoreHealth()
    budget = HistoryBudget(options.history_bytes)
    writer = StoreWriter(store, health, budget, options)
    rooms = RoomDirectory(options, traffic, budget, nursery, writer.submit)
    inbox = Inbox(connections, store, health, options)
    keys = IdempotencyKeys()
    cluster = None
    if broker is not None:
        shared = (options, store, health, connections, groups, rooms, writer, inbox, keys)
        cluster = Cluster(broker, *shared, lambda: parts.beat())
    publisher = Publisher(rooms, inbox, keys, connections, cluster)
    announcements = Announcements(rooms, publisher.publish_nowait)
    presence = Presence(rooms, connections, announcements)
    if cluster is not None:
        cluster.tell(announcements, presence)
    recovery = Recovery(rooms, presence, writer, options, None if cluster is None else cluster.relay)
    others = None if cluster is None else cluster.sessions
    sessions = Sessions(connections, rooms, presence, recovery, options, hooks.is_allowed, others)
    if cluster is not None:
        cluster.serve(sessions, presence)

    services = ConnectionServices(connections, presence, None if cluster is None else cluster.users.kick)
    heartbeats = Heartbeats(options.ping_interval, options.ping_timeout)
    endpoints = Endpoints(own_endpoints, options, heartbeats)
    limits = ClientLimits(options)
    revocations = Revocations()
    authentication = Authentication(hooks.authenticate, hooks.on_connect, revocations)
    sign_in = SignIn(
        authentication,
        hooks.check_room_token,
        hooks.on_expire,
        options.hook_timeout,
        connections,
        presence,
        inbox,
        limits,
        options.max_rooms,
    )
    commands = Commands(
        options, connections, groups, rooms, presence, publisher, recovery, sessions, inbox, handlers, hooks, sign_in
    )
    shedding = Shedding(lambda: [each.outbox for each in connections], traffic, options.total_outbox_bytes)
    tracing = Tracing(connections, rooms, presence, options)
    ask_others = None if cluster is None else cluster.surveys.ask
    administration = Administration(connections, rooms, presence, sign_in, revocations, tracing, ask_others)
    if cluster is not None:
        cluster.surveys.answer_by(administration.answer)
    reactor = Reactor(rooms.dispatcher.hold, rooms.dispatcher.release) if Reactor.available() else None
    admission = Admission(
        options=options,
        traffic=traffic,
        formats=Formats(compressor, options.batch_messages, options.batch_bytes),
        reactor=reactor,
        connections=connections,
        sessions=sessions,
        inbox=inbox,
        sign_in=sign_in,
        limits=limits,
        heartbeats=heartbeats,
        endpoints=endpoints,
        execute=commands.execute,
        id_prefix="" if cluster is None else f"{cluster.node}.",
        services=services,
        authentication=authentication,
        on_disconnect=hooks.on_disconnect,
    )

    tasks: list[Callable[[], Awaitable[None]]] = [
        rooms.dispatcher.run,
        rooms.close_idle_rooms,
        announcements.run,
        writer.run,
        writer.sweep,
        inbox.run,
        sessions.run,
        heartbeats.run,
        sign_in.run,
        tracing.run,
        shedding.run,
    ]
    if reactor is not None:
        tasks.append(reactor.run)
    if cluster is not None:
        tasks += cluster.tasks
    for task in tasks:
        nursery.start_soon(supervise, task)
    parts = Parts(
        options=options,
        traffic=traffic,
        compressor=compressor,
        connections=connections,
        groups=groups,
        rooms=rooms,
        presence=presence,
        publisher=publisher,
        recovery=recovery,
        inbox=inbox,
        handlers=handlers,
        services=services,
        administration=administration,
        endpoints=endpoints,
        admission=admission,
        store_health=health,
        sessions=sessions,
        budget=budget,
        writer=writer,
        reactor=reactor,
        cluster=cluster,
    )
    return parts
