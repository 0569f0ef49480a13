"""The pages that trioswitch itself has: the landing page, the browser client, and the health check."""

from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any

import attrs
import msgspec

from ..switch import Switch
from ..version import __version__
from .page import Page

__all__ = ["browser_client", "health", "landing_page"]

_FILES = resources.files(__package__) / "files"


@cache
def browser_client() -> Page:
    """`trioswitch.js`, the client for web pages (docs/browser.md). Every site serves it at `/trioswitch.js`.

    Pages of any origin may import it.
    """
    return Page.file(_FILES / "trioswitch.js", ("Access-Control-Allow-Origin", "*"))


@cache
def landing_page() -> Page:
    """What a person sees at `/` of `trioswitch serve`: what trioswitch is, and a room to try. Brings its script and style."""
    page = Page.file(_FILES / "landing.html")
    files = {f"/{name}": Page.file(_FILES / name) for name in ("landing.css", "landing.js")}
    return attrs.evolve(page, body=page.body.replace(b"{{version}}", __version__.encode()), files=files)


def health(switch: Switch) -> Callable[[], Page]:
    """`/health`: 200 while clients are let in, 503 during a drain. `degraded`: the store or the broker does not work.

    In a cluster `nodes` has a name and the number of connections of each node, and `connections` is the sum.
    """

    def page() -> Page:
        problem = switch.store_error or switch.broker_error
        status = "draining" if switch.draining else "ok" if problem is None else "degraded"
        facts: dict[str, Any] = {"status": status, "version": __version__, "connections": len(switch.connections())}
        if nodes := switch.nodes():
            facts["nodes"] = {node.id: {"name": node.name, **node.statistics} for node in nodes}
            facts["connections"] = sum([node.statistics.get("connections", 0) for node in nodes])
        if problem is not None:
            facts["problem"] = problem
        body = msgspec.json.encode(facts)
        return Page(body, "application/json", 503 if switch.draining else 200)

    return page
