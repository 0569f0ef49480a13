"""Sends random images of 800 x 600 pixels to `image_stats.py`, one after the other, and prints the answers."""

import argparse
import sys
import time

import msgspec
import numpy as np
from websockets.sync.client import connect
from websockets.typing import Subprotocol

parser = argparse.ArgumentParser(description="Sends random images to image_stats.py.")
parser.add_argument("mode", choices=("slow", "fast"), help="answered when it is computed, or at once")
parser.add_argument("--url", default="ws://127.0.0.1:8765/ws", help="where the server is")
parser.add_argument("--images", type=int, default=5, help="how many to send")
chosen = parser.parse_args()


def send_images() -> None:
    numbers = np.random.default_rng()
    with connect(chosen.url, subprotocols=[Subprotocol("trioswitch.v1.msgpack")], compression=None) as websocket:
        websocket.recv()  # `connected`
        for number in range(chosen.images):
            image = numbers.integers(0, 256, (600, 800), np.uint8).tobytes()
            started = time.perf_counter()
            websocket.send(msgspec.msgpack.encode({"type": "image", "id": number, "mode": chosen.mode, "image": image}))
            answer = msgspec.msgpack.decode(websocket.recv(decode=False))
            took = 1000 * (time.perf_counter() - started)
            print(f"{took:6.2f} ms  {answer.get('data') or answer}")


try:
    send_images()
except OSError as error:
    sys.exit(f"there is no image_stats.py at {chosen.url}: {error}")
