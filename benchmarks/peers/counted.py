"""trioswitch, which writes down at its end how often it compressed. Usage: counted.py PORT FILE"""

import json
import signal
import sys
from pathlib import Path

import attrs
import trio

import trioswitch


async def main(port: int) -> dict[str, int]:
    """Serve until SIGTERM."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trioswitch.open_switch() as switch, trio.open_nursery() as nursery:
            await nursery.start(lambda **status: trioswitch.serve(switch, port=port, **status))
            await anext(signals)
            counted = switch.statistics()
            nursery.cancel_scope.cancel()
    return {
        **attrs.asdict(counted.compression),
        "messages_sent": counted.messages_sent,
        "bytes_sent": counted.bytes_sent,
    }


Path(sys.argv[2]).write_text(json.dumps(trio.run(main, int(sys.argv[1]))))
