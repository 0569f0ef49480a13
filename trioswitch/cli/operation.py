"""What the configuration puts around a switch: tokens, the HTTP API, metrics, health, alarms; and what SIGHUP reads again."""

import logging
import os
import ssl
from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import attrs
import trio

from .._util.http_client import check_http_url, import_httpx
from ..api import Api, ApiKey
from ..auth.key_ring import JwksUrl, KeyRing
from ..auth.keys import secret_key
from ..auth.tokens import TokenVerifier
from ..backend import Backend
from ..console import Console
from ..errors import ServeError
from ..monitoring import Alarm, Monitor, Thresholds, health_pages, metrics_of_workers, metrics_page
from ..settings.model import ApiSettings, AuthSettings, BackendSettings, Settings
from ..switch import Switch
from ..web import Pages, landing_page
from .serve_options import load_settings
from .tls import load_certificate

__all__ = ["Operation", "check_exposure", "open_backend", "post_alarm", "verifier_of"]

_log = logging.getLogger(__name__)

RELOADED: Final = {"log.level", "api.key", "api.keys", "auth.secrets", "auth.public_keys"}
"""Keys whose new values hold from SIGHUP on; files are read again, too."""
WEBHOOK_TIMEOUT: Final = 5.0
CLOSE_TIMEOUT: Final = 2.0
"""Seconds that closing the connections to the backend may take."""


def verifier_of(auth: AuthSettings) -> tuple[TokenVerifier | None, KeyRing]:
    """Who checks tokens; None where clients need none. Raises ServeError for keys that cannot be used."""
    try:
        if auth.jwks_url:
            import_httpx()
        ring = KeyRing(
            [secret_key(secret) for secret in auth.secrets],
            [Path(file) for file in auth.public_keys],
            JwksUrl(auth.jwks_url) if auth.jwks_url else None,
        )
    except ImportError as error:
        raise ServeError(str(error)) from None
    except ValueError as error:
        raise ServeError(f"the keys in [auth] cannot be used: {error}") from None
    if not auth.uses_tokens:
        return None, ring
    join, publish = tuple(auth.join), None if auth.publish is None else tuple(auth.publish)
    return TokenVerifier(keys=ring, audience=auth.audience, issuer=auth.issuer, join=join, publish=publish), ring


@asynccontextmanager
async def open_backend(settings: BackendSettings) -> AsyncIterator[Backend | None]:
    """The backend that is asked; None without one."""
    if not (settings.connect or settings.refresh or settings.join or settings.publish):
        yield None
        return
    try:
        backend = Backend(
            connect=settings.connect,
            refresh=settings.refresh,
            join=settings.join,
            publish=settings.publish,
            timeout=settings.timeout,
            max_concurrent=settings.max_concurrent,
        )
    except (ImportError, ValueError) as error:
        raise ServeError(f"[backend]: {error}") from None
    try:
        yield backend
    finally:
        with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await backend.aclose()


def check_exposure(hosts: Sequence[str], settings: Settings, *, insecure: bool) -> None:
    """Raises ValueError for a server that would let anybody on other machines in, unless told so."""
    if settings.auth.uses_tokens or settings.backend.connect or insecure:
        return
    for host in hosts:
        if not _is_loopback(host):
            raise ValueError(
                f"argument --host: other machines reach {host}, and nothing says who may connect: "
                "configure tokens in [auth], or let anybody in with --insecure"
            )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False


def _api_keys(api: ApiSettings) -> list[ApiKey]:
    """Raises ServeError for a key that cannot be used."""
    try:
        keys = [ApiKey(api.key)] if api.key else []
        for key in api.keys:
            if (key.key is None) == (key.file is None):
                raise ValueError("each of [[api.keys]] has either `key` or `file`")
            text = Path(key.file).read_text(encoding="ascii").strip() if key.file is not None else key.key
            keys.append(ApiKey(text or "", tuple(key.methods), tuple(key.rooms)))
        return keys
    except OSError as error:
        raise ServeError(f"cannot read the API key in {error.filename!r}: {error.strerror}") from None
    except ValueError as error:
        raise ServeError(f"the keys in [api] cannot be used: {error}") from None


@attrs.define(eq=False)
class Operation:
    """Around one switch. `run` is its task."""

    chosen: Namespace
    switch: Switch
    ring: KeyRing
    context: ssl.SSLContext | None
    monitor: Monitor = attrs.field(init=False)
    api: Api | None = attrs.field(init=False)
    console: Console | None = attrs.field(init=False)
    _settings: Settings = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Raises ServeError."""
        self._settings = self.chosen.settings
        monitoring = self._settings.monitoring
        thresholds = Thresholds(
            memory=monitoring.alarm_memory,
            cpu=monitoring.alarm_cpu,
            lag=monitoring.alarm_lag,
            error_rate=monitoring.alarm_error_rate,
            connections=monitoring.alarm_connections,
        )
        tell = None
        if monitoring.alarm_webhook:
            try:
                import_httpx()
                tell = partial(post_alarm, check_http_url("alarm_webhook", monitoring.alarm_webhook))
            except (ImportError, ValueError) as error:
                raise ServeError(f"[monitoring] {error}") from None
        self.monitor = Monitor(self.switch, thresholds, tell)
        keys = _api_keys(self._settings.api)
        self.api = Api(self.switch, keys, self.monitor.facts) if keys else None
        try:
            password = self._settings.console.password
            self.console = Console(self.switch, self.monitor, password) if password is not None else None
        except ValueError as error:
            raise ServeError(f"[console] password: {error}") from None

    @property
    def admin_pages(self) -> Pages:
        """For operators and backends."""
        metrics = metrics_page if self.chosen.worker_hub is None else metrics_of_workers
        pages: Pages = {"/metrics": metrics(self.monitor, self.api), **health_pages(self.monitor)}
        for part in (self.api, self.console):
            if part is not None:
                pages = {**pages, **part.pages}
        return pages

    @property
    def pages(self) -> Pages:
        """For the port of clients. Metrics are there only where no other machine reaches it."""
        pages = {"/": landing_page(), **health_pages(self.monitor)}
        if self.chosen.admin_port is None:
            pages |= self.admin_pages
            if self.chosen.uds is not None or not all(map(_is_loopback, self.chosen.host or [])):
                del pages["/metrics"]
        return pages

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.monitor.run)
            if self.ring.url is not None:
                nursery.start_soon(self.ring.url.run)

    def reload(self) -> None:
        """Read the configuration, keys and certificates again. What is not valid is logged, and nothing of it holds."""
        try:
            settings = load_settings(self.chosen.config, os.environ).settings
            _verifier, ring = verifier_of(settings.auth)
            keys = _api_keys(settings.api)
            if self.context is not None:
                load_certificate(self.context, self.chosen.tls_cert, self.chosen.tls_key)
        except (ServeError, ValueError) as error:
            _log.error("the configuration stays as it was: %s", error)
            return
        changed = _differences(self._settings, settings)
        later = changed - RELOADED
        checks_tokens = self.chosen.settings.auth.uses_tokens  # since the start, and as long as the server runs
        if settings.auth.uses_tokens != checks_tokens:
            later |= {name for name in changed if name.startswith("auth.")}
        if self.api is None:
            later |= {name for name in changed if name.startswith("api.")}
        for name in sorted(later):
            _log.warning("%s has changed in the configuration: that needs a restart", name)
        if checks_tokens and settings.auth.uses_tokens:
            self.ring.replace(ring)
        if self.api is not None:
            self.api.keys = keys
        if self.chosen.log_level == self._settings.log.level != settings.log.level:  # a flag goes before the file
            logging.getLogger().setLevel(settings.log.level.upper())
            self.chosen.log_level = settings.log.level
        self._settings = settings
        _log.info("the configuration was read again")


def _differences(before: Settings, after: Settings) -> set[str]:
    """Keys that have other values, as `section.key`."""
    found = set()
    for section in attrs.fields(Settings):
        old, new = getattr(before, section.name), getattr(after, section.name)
        if section.name == "rooms":
            found |= {"rooms"} if old != new else set()
            continue
        for field in attrs.fields(type(old)):
            if getattr(old, field.name) != getattr(new, field.name):
                found.add(f"{section.name}.{field.name}")
    return found


async def post_alarm(url: str, alarm: Alarm) -> None:
    """Tell a webhook of an alarm. Raises trio.TooSlowError, and what httpx raises."""
    httpx = import_httpx()
    with trio.fail_after(WEBHOOK_TIMEOUT):
        async with httpx.AsyncClient() as client:
            response = await client.post(url, json={**attrs.asdict(alarm), "sentence": alarm.sentence})
            response.raise_for_status()
