"""HTTP on the same port: pages, the browser client and the health check, for every request that is not a WebSocket upgrade."""

from .http import Site
from .page import Page
from .pages import browser_client, health, landing_page
from .route import Pages, Request, Route, Stream

__all__ = ["Page", "Pages", "Request", "Route", "Site", "Stream", "browser_client", "health", "landing_page"]
