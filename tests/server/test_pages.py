"""What a site serves: pages, their files, and the browser client. Without a network: a request in, the response's bytes out."""

import re
from email.parser import BytesParser
from pathlib import Path
from typing import cast

import pytest

import trioswitch
from trioswitch.transport.streams import ByteStream
from trioswitch.web import Page, Pages, Site, browser_client, landing_page

CHAT = Path(__file__).parents[2] / "examples" / "chat"
WEB = Path(trioswitch.__file__).parent / "web" / "files"


class Written:
    """Takes what a site writes."""

    write_nowait = None

    def __init__(self) -> None:
        self.data = b""

    async def write(self, data: bytes) -> None:
        self.data += data

    async def read(self) -> bytes:
        return b""  # the client has nothing more to ask


async def fetch(pages: Pages, path: str, method: str = "GET") -> tuple[int, dict[str, list[str]], bytes]:
    """The status, the headers by lower-case name, and the body."""
    written = Written()
    await Site(pages)(cast(ByteStream, written), f"{method} {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    head, _, body = written.data.partition(b"\r\n\r\n")
    line, _, fields = head.partition(b"\r\n")
    headers = BytesParser().parsebytes(fields)
    return int(line.split()[1]), {name.lower(): headers.get_all(name, []) for name in headers}, body


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/landing.css", "text/css; charset=utf-8"),
        ("/landing.js", "text/javascript; charset=utf-8"),
        ("/trioswitch.js", "text/javascript; charset=utf-8"),
    ],
)
async def test_the_landing_page_brings_all_that_it_loads(path: str, content_type: str) -> None:
    status, headers, body = await fetch({"/": landing_page()}, path)
    assert (status, headers["content-type"], headers["content-length"]) == (200, [content_type], [str(len(body))])
    assert headers["x-content-type-options"] == ["nosniff"]
    policy = headers["content-security-policy"][0]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert b"{{" not in body
    assert await fetch({"/": landing_page()}, path, "HEAD") == (200, headers, b"")
    assert (await fetch({"/": landing_page()}, path, "POST"))[0] == 405


async def test_every_site_has_the_browser_client_for_pages_of_any_origin() -> None:
    status, headers, body = await fetch({}, "/trioswitch.js")
    assert (status, body) == (200, browser_client().body)
    assert headers["access-control-allow-origin"] == ["*"]
    assert (await fetch({}, "/"))[0] == 404


async def test_what_the_application_has_for_a_path_goes_first() -> None:
    own = Page(b"own", "text/javascript")
    page = Page(b"page", files={"/trioswitch.js": Page(b"of the page"), "/own.js": Page(b"of the page")})
    assert (await fetch({"/": page}, "/trioswitch.js"))[2] == b"of the page"
    assert (await fetch({"/": page, "/own.js": own, "/trioswitch.js": own}, "/own.js"))[2] == b"own"
    assert (await fetch({"/": page, "/own.js": own, "/trioswitch.js": own}, "/trioswitch.js"))[2] == b"own"


async def test_a_header_of_a_page_replaces_the_usual_one() -> None:
    policy = "default-src 'self' https://example.org"
    page = Page(b"", headers=(("content-security-policy", policy), ("X-Other", "1"), ("x-other", "2")))
    _, headers, _ = await fetch({"/": page}, "/")
    assert headers["content-security-policy"] == [policy]
    assert headers["x-other"] == ["1", "2"]
    assert headers["cache-control"] == ["no-cache"]


def test_a_page_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "style.css").write_bytes(b"a { }")
    assert Page.file(tmp_path / "style.css", ("X-A", "b")) == Page(
        b"a { }", "text/css; charset=utf-8", headers=(("X-A", "b"),)
    )
    for name in ("archive.tar.gz", "README"):
        with pytest.raises(ValueError, match=f"the media type of '{name}' is not known"):
            Page.file(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Page.file(tmp_path / "none.html")
    assert hash(landing_page()) == hash(landing_page())


@pytest.mark.parametrize("page", [WEB / "landing.html", CHAT / "page.html"], ids=["landing", "chat"])
def test_the_pages_have_no_inline_scripts_and_styles(page: Path) -> None:
    """The security policy would refuse them."""
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"<style|<script(?![^>]*\ssrc=)|\sstyle=|\son[a-z]+=", text) == []
    for name in re.findall(r'(?:href|src)="([a-z.]+\.(?:js|css))"', text):
        assert (page.with_name(name).exists()) or name == "trioswitch.js"
