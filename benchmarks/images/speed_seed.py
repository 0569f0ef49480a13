"""What `benchmarks/images/speed.py` compares with: websockets on asyncio, and a process for each message.

Server and clients are those of the article that thought the experiment up (https://github.com/listenzcc/websocket-speed-test),
but for what today's libraries ask for: handlers of websockets take one argument, and event loops are made by
`asyncio.run`. Of each image the client prints a line of JSON: its number, when its connection was begun, and when its answer was
there, in seconds of the monotonic clock.
"""

import argparse
import asyncio
import json
import multiprocessing
import sys
import time

import numpy as np
import websockets

fork = multiprocessing.get_context("fork")  # the article's way on Linux, whatever Python's default is by now


def deal_msg(msg: bytes) -> None:
    mat = np.frombuffer(msg, dtype=np.uint8)
    shape, max, min, mean, median = mat.shape, np.max(mat), np.min(mat), np.mean(mat), np.median(mat)
    print(f"> Received: {len(msg)}, {shape}, {max}, {min}, {mean}, {median}", file=sys.stderr)


async def handle(websocket: websockets.ServerConnection) -> None:
    msg = await websocket.recv(decode=False)
    process = fork.Process(target=deal_msg, args=(msg,))
    process.start()
    response = f"Received: {len(msg)}"
    await websocket.send(response)
    print(f"> {response}", file=sys.stderr)


async def serve() -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    async with websockets.serve(handle, "127.0.0.1", 0) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        await ended.wait()


async def short_connect(url: str, msg: bytes, number: int) -> None:
    started = time.monotonic()
    async with websockets.connect(url) as websocket:
        await websocket.send(msg)
        await websocket.recv()
        answered = time.monotonic()
    sys.stdout.write(json.dumps([number, started, answered]) + "\n")
    sys.stdout.flush()


def target(url: str, msg: bytes, number: int) -> None:
    asyncio.run(short_connect(url, msg, number))


def send_images(url: str, images: int, *, parallel: bool) -> None:
    msg = np.random.randint(0, 255, (800, 600)).astype(np.uint8).tobytes()
    processes = []
    for number in range(images):
        if parallel:
            process = fork.Process(target=target, args=(url, msg, number), daemon=True)
            process.start()
            processes.append(process)
        else:
            target(url, msg, number)
    for process in processes:
        process.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("serve", "serial", "parallel"))
    parser.add_argument("--url")
    parser.add_argument("--images", type=int)
    chosen = parser.parse_args()
    if chosen.role == "serve":
        asyncio.run(serve())
    else:
        send_images(chosen.url, chosen.images, parallel=chosen.role == "parallel")
