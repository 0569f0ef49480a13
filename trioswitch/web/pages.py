"""The pages of `python -m trioswitch serve`."""

from collections.abc import Callable
from importlib import resources

import msgspec

from ..switch import Switch
from ..version import __version__
from .http import Page

__all__ = ["health", "landing_page"]


def landing_page() -> Page:
    """What a person sees at `/`: what this is, and a room to try."""
    text = resources.files(__package__).joinpath("landing.html").read_text(encoding="utf-8")
    return Page(text.replace("{{version}}", __version__).encode())


def health(switch: Switch) -> Callable[[], Page]:
    """`/health`: 200 while clients are let in, 503 during a drain. `degraded`: the store does not work, and the rest does."""

    def page() -> Page:
        status = "draining" if switch.draining else "ok" if switch.store_error is None else "degraded"
        facts = {"status": status, "version": __version__, "connections": len(switch.connections())}
        if switch.store_error is not None:
            facts["problem"] = switch.store_error
        body = msgspec.json.encode(facts)
        return Page(body, "application/json", 503 if switch.draining else 200)

    return page
