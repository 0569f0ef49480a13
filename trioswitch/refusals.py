"""How a client is told that it is not let in: by an HTTP status, or by a close code where it would not see that."""

from collections.abc import Sequence
from typing import Final

from .auth.request import ConnectRequest
from .errors import CloseCause, Refused
from .wire.handshake import Rejected, response

__all__ = ["RETRY_AFTER", "response_to", "status_of", "told_by_closing"]

_CLOSED_WITH = {"unauthorised": CloseCause.UNAUTHORISED, "forbidden": CloseCause.FORBIDDEN}
_STATUS = {"unauthorised": 401, "not_found": 404, "rate_limited": 429, "internal": 500, "unavailable": 503}
"""HTTP status for the code of a Refused; 403 for any other."""
RETRY_AFTER: Final = 5
"""Seconds after which a client that was refused for lack of room may try again."""


def told_by_closing(request: ConnectRequest, refused: Refused) -> CloseCause | None:
    """The cause with which a client is admitted and closed at once, because it would not see an HTTP status.

    A browser (it sends `Origin`) does not show a page the status of a refused handshake, and the page would try again without
    end.
    """
    if "origin" not in request.headers:
        return None
    return _CLOSED_WITH.get("forbidden" if status_of(refused)[0] == 403 else refused.code)


def status_of(refused: Refused) -> tuple[int, Sequence[tuple[str, str]]]:
    """The HTTP status of a refusal, and the header fields that belong to it."""
    status = _STATUS.get(refused.code, 403)
    later = [("Retry-After", str(RETRY_AFTER))]
    headers = {401: [("WWW-Authenticate", "Bearer")], 429: later, 503: later}.get(status, [])
    return status, headers


def response_to(refused: Refused | Rejected) -> bytes:
    status, headers = (refused.status, refused.headers) if isinstance(refused, Rejected) else status_of(refused)
    return response(status, f"{refused.message}\n", headers)
