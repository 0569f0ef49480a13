"""The console: a page on which operators see what the server does, look for users and rooms, and act on them."""

from .console import Console

__all__ = ["Console"]
