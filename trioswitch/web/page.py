"""A page: the answer to GET requests for one path."""

import http
import re
from collections.abc import Iterable, Mapping
from importlib.resources.abc import Traversable
from typing import Any

import attrs
from attrs.validators import instance_of

__all__ = ["Page"]

_NAME = re.compile("[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_VALUE = re.compile("[\t -~\xa0-\xff]*")
_STATUSES = {status.value for status in http.HTTPStatus if status.value >= 200}
_OWN = {"content-length", "transfer-encoding", "connection", "date"}

CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
"""By the suffix of a file's name. The module `mimetypes` would depend on the tables of the system."""


def _headers(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple(headers)


def _check_value(_page: Any, field: Any, value: object) -> None:
    name = getattr(field, "name", field)
    if not isinstance(value, str):
        raise TypeError(f"{name} of a page must be a str, not {value!r}")
    if not _VALUE.fullmatch(value):
        raise ValueError(f"{name} of a page must be text that a header can carry (visible Latin-1), not {value!r}")


def _check_status(_page: Any, _field: Any, status: object) -> None:
    if type(status) is not int:
        raise TypeError(f"the status of a page must be an int, not {status!r}")
    if status not in _STATUSES:
        raise ValueError(f"the status of a page must be a final HTTP status, such as 200 or 404, not {status}")


def _check_headers(_page: Any, _field: Any, headers: object) -> None:
    assert isinstance(headers, tuple)
    for header in headers:
        if not (isinstance(header, tuple) and len(header) == 2):
            raise TypeError(f"headers of a page must be pairs of a name and a value, not {header!r}")
        name, value = header
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise ValueError(f"{name!r} is not the name of a header")
        _check_value(None, f"the header {name}", value)
        if name.lower() in _OWN:
            raise ValueError(f"the header {name} is set by the server")


@attrs.frozen
class Page:
    """A response to GET: the body, its media type, the status, and headers.

    Raises TypeError and ValueError for what HTTP cannot carry. A header in `headers` replaces the usual one of the same name,
    `Content-Security-Policy` for example. `files` are the scripts, styles and images that this page loads, by path: a `Site`
    serves them with the page.
    """

    body: bytes = attrs.field(validator=instance_of(bytes))
    content_type: str = attrs.field(default="text/html; charset=utf-8", validator=_check_value)
    status: int = attrs.field(default=200, validator=_check_status)
    headers: tuple[tuple[str, str], ...] = attrs.field(default=(), converter=_headers, validator=_check_headers)
    files: Mapping[str, "Page"] = attrs.field(factory=dict, hash=False)

    @classmethod
    def text(cls, status: int, text: str, *headers: tuple[str, str]) -> "Page":
        """A page of plain text; a line end is added."""
        return cls(f"{text}\n".encode(), "text/plain; charset=utf-8", status, headers)

    @classmethod
    def file(cls, path: Traversable, *headers: tuple[str, str]) -> "Page":
        """The present content of a file, with the media type that the suffix of its name stands for.

        `path` is a `pathlib.Path` or a resource of a package. Raises ValueError for an unknown suffix, and OSError where the
        file cannot be read.
        """
        suffix = "." + path.name.rpartition(".")[2]
        if suffix not in CONTENT_TYPES:
            known = ", ".join(CONTENT_TYPES)
            raise ValueError(
                f"the media type of {path.name!r} is not known (suffixes: {known}): use Page(body, content_type)"
            )
        return cls(path.read_bytes(), CONTENT_TYPES[suffix], headers=headers)
