"""The command line: `python -m trioswitch`."""

from .main import main

__all__ = ["main"]
