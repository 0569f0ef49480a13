"""Ctrl-C while `python -m trioswitch` is imported ends the process by the signal, as in most programs, without a traceback.

The package is imported before its `__main__`, so nothing there can catch KeyboardInterrupt. In any other program, importing
trioswitch changes nothing. Importing this module is enough.
"""

import os
import signal
import sys
import threading

__all__ = ["restore"]


def _terminate_while_importing() -> None:
    """Let SIGINT terminate the process, if it is the command line of trioswitch that is being imported."""
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if default and threading.current_thread() is threading.main_thread() and _is_command_line():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def restore() -> None:
    """Let SIGINT raise KeyboardInterrupt again, if importing trioswitch has changed that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command_line() -> bool:
    program = sys.argv[0] if sys.argv else ""
    if program != "-m":  # what it is while Python looks for the module after -m
        return os.path.basename(program) == "trioswitch"
    options = sys.orig_argv[1:]
    return any(
        option == "-mtrioswitch" or (option == "-m" and module == "trioswitch")
        for option, module in zip(options, [*options[1:], ""], strict=True)
    )


_terminate_while_importing()
