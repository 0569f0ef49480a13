"""The command line: `python -m trioswitch`."""
