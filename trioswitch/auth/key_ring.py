"""The keys of a server: from its configuration, from files, and from a URL that is asked again and again."""

import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from typing import Final

import attrs
import trio

from .._util.backoff import Backoff
from .._util.http_client import check_http_url, import_httpx, read_at_most
from .._util.wakeup import Wakeup
from .keys import Key, jwks_keys, pem_keys

__all__ = ["JwksUrl", "KeyRing", "fetch_by_httpx"]

_log = logging.getLogger(__name__)

FETCH_TIMEOUT: Final = 5.0
"""Seconds that the server of a key set may take."""
MAX_AGE: Final = 300.0
"""Seconds after which a key set is fetched again."""
MIN_AGE: Final = 10.0
"""Seconds between two fetches because of tokens with unknown key ids: anybody can invent one."""
MIN_DELAY: Final = 1.0
"""Seconds between two attempts that fail, at least."""
MAX_KEY_SET: Final = 1024 * 1024

Fetch = Callable[[str], Awaitable[bytes]]
"""Gets the document at a URL. Raises OSError with a sentence."""


async def fetch_by_httpx(url: str) -> bytes:
    """The document at a URL. Raises OSError with a sentence."""
    httpx = import_httpx()
    try:
        async with httpx.AsyncClient(timeout=FETCH_TIMEOUT) as client, client.stream("GET", url) as response:
            response.raise_for_status()
            return await read_at_most(response, MAX_KEY_SET)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OSError(str(error) or type(error).__name__) from None


class JwksUrl:
    """A JSON Web Key Set at a URL: cached, fetched again by and by, and when a token names a key that is unknown.

    While it cannot be fetched, the keys that are known go on being used. `run` is its task.
    """

    def __init__(self, url: str, fetch: Fetch = fetch_by_httpx) -> None:
        """Raises TypeError and ValueError for what is no URL."""
        self.url = check_http_url("the URL of a key set", url)
        self.error: str | None = "it was not fetched yet"
        """Why the last attempt failed, in a sentence."""
        self._fetch = fetch
        self._keys: list[Key] = []
        self._attempts = 0
        self._tried_at = -MIN_AGE
        self._wanted, self._tried = Wakeup(), Wakeup()

    async def run(self) -> None:
        """Fetch it, again and again. Never returns."""
        backoff = Backoff(Random(), first=2 * MIN_DELAY, most=MAX_AGE)
        while True:
            self._tried_at = trio.current_time()
            await self._try()
            self._attempts += 1
            self._tried.notify()
            delay = MAX_AGE
            if self.error is None:
                backoff = Backoff(Random(), first=2 * MIN_DELAY, most=MAX_AGE)
            else:
                delay = max(MIN_DELAY, backoff.next())
            with trio.move_on_after(delay):
                await self._wanted.wait()

    async def _try(self) -> None:
        try:
            with trio.fail_after(FETCH_TIMEOUT):
                self._keys = jwks_keys(json.loads(await self._fetch(self.url)))
        except trio.TooSlowError:
            self.error = f"{self.url} does not answer within {FETCH_TIMEOUT:g} s"
        except (OSError, ValueError) as error:
            self.error = f"the key set {self.url} cannot be used: {error}"
        else:
            self.error = None
            return
        _log.warning("%s; the keys that are known are used", self.error)

    async def keys(self, kid: str | None) -> Sequence[Key]:
        """Those that are known; for an id that is unknown, after looking for new ones. Safe to cancel."""
        unknown = not self._keys or (kid is not None and all(key.id != kid for key in self._keys))
        if unknown and (not self._attempts or trio.current_time() >= self._tried_at + MIN_AGE):
            self._wanted.notify()
            with trio.move_on_after(FETCH_TIMEOUT):
                await self._tried.wait()
        return self._keys


@attrs.define(eq=False)
class KeyRing:
    """Keys from all places. It is a `KeySource`: `TokenVerifier(keys=KeyRing(...))`."""

    static: Sequence[Key] = ()
    files: Sequence[Path] = ()
    """PEM files with public keys, and JSON Web Key Sets (`.json`, `.jwks`)."""
    url: JwksUrl | None = None
    _from_files: list[Key] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        """Raises ValueError with a sentence that names a file which cannot be used."""
        self.reload()

    def reload(self) -> None:
        """Read the files again. Raises ValueError, and keeps the keys from before."""
        self._from_files = [key for path in self.files for key in _read(path)]

    def replace(self, other: "KeyRing") -> None:
        """Take the keys of another ring, but for those at the URL."""
        self.static, self.files, self._from_files = other.static, other.files, other._from_files

    async def __call__(self, kid: str | None) -> Sequence[Key]:
        known = [*self.static, *self._from_files]
        if self.url is None or (kid is not None and any(key.id == kid for key in known)):
            return known
        return [*known, *await self.url.keys(kid)]


def _read(path: Path) -> list[Key]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    try:
        return jwks_keys(json.loads(data)) if path.suffix in (".json", ".jwks") else pem_keys(data)
    except ValueError as error:
        raise ValueError(f"cannot use the keys in {str(path)!r}: {error}") from None
