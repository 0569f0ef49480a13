"""The chat on three servers, with nginx in front and Redis behind: run it, open what it prints, and kill any of its processes.

It starts Debian's nginx and Redis (the packages `nginx-light` and `redis-tools`, or `redis-server`), and three chats. Whatever
dies is started again. Nobody in the chat misses anything: who was connected to a chat that died comes back to another one.
"""

import argparse
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

CHATS = 3
CHAT = Path(__file__).parents[1] / "chat" / "chat.py"
RESTART_DELAY = 0.5
"""Seconds before a process that has died is started again."""

NGINX = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {directory};
    proxy_temp_path {directory};
    fastcgi_temp_path {directory};
    uwsgi_temp_path {directory};
    scgi_temp_path {directory};
    map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
    upstream chats {{ {servers} }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://chats;
            proxy_next_upstream error timeout http_503 non_idempotent;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header Host $http_host;
            proxy_buffering off;
        }}
    }}
}}
"""


async def keep_running(name: str, command: Sequence[str], executable: str) -> None:
    """Run a program, and start it again whenever it ends. Cancelling ends it."""
    while True:
        process = await trio.lowlevel.open_process(command, executable=executable)
        try:
            status = await process.wait()
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
                with trio.CancelScope(shield=True), trio.move_on_after(10):
                    await process.wait()
                process.kill()
        print(f"{name} has ended ({status}): it is started again", flush=True)
        await trio.sleep(RESTART_DELAY)


def find(*programs: str) -> str:
    for program in programs:
        if found := shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin"):
            return found
    sys.exit(f"{programs[0]} is missing: apt-get install nginx-light redis-tools")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


async def main(port: int, directory: Path) -> None:
    nginx, redis = find("nginx"), find("redis-server", "redis-check-rdb")  # in Debian, one program with several names
    await trio.Path(directory).mkdir(parents=True, exist_ok=True)
    redis_port, *chat_ports = free_ports(1 + CHATS)
    servers = " ".join([f"server 127.0.0.1:{chat} max_fails=1 fail_timeout=1s;" for chat in chat_ports])
    configuration = directory / "nginx.conf"
    await trio.Path(configuration).write_text(NGINX.format(directory=directory, servers=servers, port=port))
    durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--dir", str(directory)]
    redis_url = f"redis://127.0.0.1:{redis_port}"
    chat = ["--store", redis_url, "--broker", redis_url, "--port"]
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            listen = ["--port", str(redis_port), "--bind", "127.0.0.1", "--loglevel", "warning"]
            nursery.start_soon(keep_running, "Redis", ["redis-server", *listen, *durable], redis)
            await wait_for(redis_port)
            for number, chat_port in enumerate(chat_ports, 1):
                command = [sys.executable, str(CHAT), *chat, str(chat_port)]
                nursery.start_soon(keep_running, f"chat {number}", command, sys.executable)
            for chat_port in chat_ports:
                await wait_for(chat_port)
            command = [nginx, "-e", "stderr", "-p", str(directory), "-c", str(configuration)]
            nursery.start_soon(keep_running, "nginx", command, nginx)
            await wait_for(port)
            print(f"The chat is at http://127.0.0.1:{port}/ on {CHATS} servers (Ctrl-C ends it)", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


async def wait_for(port: int) -> None:
    """Wait until somebody listens."""
    while True:
        try:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
        except OSError:
            await trio.sleep(0.05)
        else:
            await stream.aclose()
            return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The chat on three servers, with nginx in front and Redis behind.")
    parser.add_argument("--port", type=int, default=8765, help="port of nginx")
    parser.add_argument("--directory", type=Path, default=Path("chat-cluster"), help="where Redis keeps what is said")
    chosen = parser.parse_args()
    trio.run(main, chosen.port, chosen.directory.resolve())
