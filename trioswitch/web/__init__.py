"""HTTP on the same port: pages, the browser client and the health check, for every request that is not a WebSocket upgrade."""

from .http import Site
from .page import Page, Pages
from .pages import browser_client, health, landing_page

__all__ = ["Page", "Pages", "Site", "browser_client", "health", "landing_page"]
