"""What is served for one path."""

from collections.abc import Callable, Mapping
from importlib.resources.abc import Traversable

import attrs

__all__ = ["Page", "Pages"]

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


@attrs.frozen
class Page:
    """A response to GET: the body, its media type, the status, and headers.

    A header in `headers` replaces the usual one of the same name, `Content-Security-Policy` for example. `files` are the
    scripts, styles and images that this page loads, by path: a `Site` serves them with the page.
    """

    body: bytes
    content_type: str = "text/html; charset=utf-8"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
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


Pages = Mapping[str, Page | Callable[[], Page]]
"""What a site serves, by path: a page, or a function that makes one for each request."""
