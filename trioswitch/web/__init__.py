"""HTTP on the same port: pages and health for whatever is no WebSocket upgrade."""

from .http import Page, Pages, Site
from .pages import health, landing_page

__all__ = ["Page", "Pages", "Site", "health", "landing_page"]
