"""`python -m trioswitch connect URL`: a client for the terminal, to try a server and to watch it (`docs/client.md`)."""

from .command import add_connect

__all__ = ["add_connect"]
