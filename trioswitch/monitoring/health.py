"""Health checks: is the process alive, and should it get clients?"""

from typing import Any

import msgspec

from ..version import __version__
from ..web import Page, Pages, health
from .monitor import Monitor

__all__ = ["health_pages"]


def health_pages(monitor: Monitor) -> Pages:
    """`/health` for people, `/health/live` and `/health/ready` for load balancers and orchestrators.

    Live: 200 whenever it is answered at all; who gets no answer may restart the process. Ready: 200, or 503 with the reasons why
    it should get no new clients. An alarm that is raised is told, and is no reason by itself: to send all clients elsewhere would
    overload the others.
    """

    def live() -> Page:
        return _page({"status": "ok", "version": __version__}, 200)

    def ready() -> Page:
        switch, reasons = monitor.switch, []
        if switch.draining:
            reasons.append("the server is draining")
        reasons += [error for error in (switch.store_error, switch.broker_error) if error is not None]
        alarms = [alarm.sentence for alarm in monitor.alarms.values()]
        facts: dict[str, Any] = {"status": "not ready" if reasons else "ready", "reasons": reasons, "alarms": alarms}
        return _page(facts, 503 if reasons else 200)

    return {"/health": health(monitor.switch), "/health/live": live, "/health/ready": ready}


def _page(facts: dict[str, Any], status: int) -> Page:
    return Page(msgspec.json.encode(facts), "application/json", status)
