"""What `serve` runs: one server, a worker of several, or the supervisor of workers."""

import argparse
import logging
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from .._util.systemd import notify
from ..assembly import open_switch
from ..auth.tokens import TokenVerifier
from ..backend import Backend
from ..brokers.open import open_broker
from ..brokers.port import Broker
from ..config import Options
from ..hub.client import open_hub
from ..serve import serve
from ..settings.model import Settings
from ..stores.open import open_store
from ..stores.port import Store
from ..switch import Switch
from ..version import __version__
from .operation import Operation, open_backend, verifier_of
from .supervisor import Workers, end_with_supervisor, is_ready

__all__ = ["Interrupted", "run_server", "say", "say_problems"]


class Interrupted(Exception):
    """A second signal came while the server drained."""


def say(sentence: str, end: str = "\n") -> None:
    """Write to stderr. Where nobody listens any more the server goes on, and its exit status stays what it is."""
    if sys.stderr is None:
        return
    try:
        print(sentence, end=end, file=sys.stderr, flush=True)
    except OSError:
        # What is left in the buffer would fail again at the interpreter's end, and make the exit status 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def say_problems(problems: ValueError) -> None:
    """Write a line for each problem."""
    say("\n".join(f"trioswitch: error: {problem}" for problem in str(problems).splitlines()))


async def run_server(options: Options, chosen: argparse.Namespace, context: ssl.SSLContext | None) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        if chosen.workers > 1:
            await _supervise(signals, options, chosen, context)
            return
        verifier, ring = verifier_of(chosen.settings.auth)
        async with (
            _open_engines(chosen) as (store, broker),
            open_backend(chosen.settings.backend) as backend,
            open_switch(options, store=store, broker=broker, **_hooks(verifier, backend, chosen.settings)) as switch,
            trio.open_nursery() as nursery,
        ):
            operation = Operation(chosen, switch, ring, context)
            nursery.start_soon(operation.run)
            nursery.start_soon(_reload_at_signal, operation)
            server = await nursery.start(_serve_on, switch, chosen, context, operation.pages)
            if chosen.admin_port is not None:
                await _serve_operators(nursery, switch, chosen, operation)
            if chosen.worker_hub is None:
                _say_listening(server.urls, server.page_urls)
            else:
                is_ready(chosen)
                nursery.start_soon(end_with_supervisor)
            await anext(signals)
            if chosen.worker_hub is None:
                notify("STOPPING=1")
            server.stop()
            nursery.start_soon(_interrupt, signals)
            if not await switch.drain(chosen.drain_timeout):
                left = len(switch.connections())
                logging.getLogger(__name__).warning("%d connections were cut at the drain timeout", left)
            nursery.cancel_scope.cancel()


def _hooks(verifier: TokenVerifier | None, backend: Backend | None, settings: Settings) -> dict[str, Any]:
    """The hooks of the switch: only those that are needed, as each message would pass through them."""
    hooks: dict[str, Any] = {}
    if verifier is not None:
        hooks = {"authenticate": verifier, "check_room_token": verifier.check_room_token}
    if backend is not None:
        asked = {"connect": "on_connect", "refresh": "on_expire", "join": "on_join", "publish": "on_publish"}
        hooks |= {hook: getattr(backend, hook) for name, hook in asked.items() if getattr(settings.backend, name)}
    return hooks


def _say_listening(urls: Sequence[str], page_urls: Sequence[str], more: str = "") -> None:
    page = f"; its page is {page_urls[0]}" if page_urls else ""
    notify("READY=1")
    say(f"trioswitch {__version__} listens on {' and '.join(urls)}{more}{page}")


@asynccontextmanager
async def _open_engines(chosen: argparse.Namespace) -> AsyncIterator[tuple[Store, Broker | None]]:
    """The store, and the broker if there are other nodes."""
    if chosen.broker is not None:
        async with open_store(chosen.store) as store:
            yield store, open_broker(chosen.broker)
    elif chosen.worker_hub is not None:
        async with open_hub(chosen.worker_hub) as (hub_store, broker):
            yield hub_store, broker
    else:
        async with open_store(chosen.store) as store:
            yield store, None


async def _supervise(
    signals: Any, options: Options, chosen: argparse.Namespace, context: ssl.SSLContext | None
) -> None:
    scheme = "ws" if context is None else "wss"

    def listening(addresses: Sequence[str]) -> None:
        urls = [f"{scheme}://{address}{options.path}" for address in addresses]
        pages = [f"http{scheme[2:]}://{address}/" for address in addresses]
        _say_listening(urls, pages, f" with {chosen.workers} workers")

    workers = Workers(chosen.workers, chosen.arguments, chosen.host or ["127.0.0.1"], chosen.port, options.node_name)
    # With a broker, the workers reach the store and each other by themselves.
    async with open_store("memory" if chosen.broker is not None else chosen.store) as store:
        await workers.run(store, signals, chosen.drain_timeout, listening, Interrupted)


async def _serve_operators(
    nursery: trio.Nursery, switch: Switch, chosen: argparse.Namespace, operation: Operation
) -> None:
    """Listen on the port of the API, metrics and health; workers share it."""
    is_worker = chosen.worker_hub is not None
    serving = partial(
        serve,
        switch,
        host=chosen.admin_host,
        port=chosen.admin_port,
        pages=operation.admin_pages,
        reuse_port=is_worker,
    )
    admin = await nursery.start(serving)
    if not is_worker:
        say(f"trioswitch has its API, metrics and health at {admin.page_urls[0]}")


async def _reload_at_signal(operation: Operation) -> None:
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            operation.reload()


async def _interrupt(signals: Any) -> None:
    await anext(signals)
    raise Interrupted


async def _serve_on(
    switch: Switch,
    chosen: argparse.Namespace,
    context: ssl.SSLContext | None,
    pages: Any,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    await serve(
        switch,
        host=chosen.host or "127.0.0.1",
        port=chosen.port,
        uds=chosen.uds,
        uds_mode=chosen.uds_mode,
        uds_group=chosen.uds_group,
        ssl_context=context,
        transport=chosen.transport,
        pages=pages,
        proxy_protocol=chosen.proxy_protocol,
        sockets=chosen.sockets,
        reuse_port=chosen.worker_hub is not None,
        task_status=task_status,
    )
