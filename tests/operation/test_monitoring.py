"""Samples, alarms, health checks and metrics; and the files for Prometheus and others in examples/deploy."""

import json
import logging
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import trio
import trustme
from engine_server import free_port
from servers import Program, run
from trio.testing import MockClock

from trioswitch import Options, Page, RoomPolicy, StoreError, serve
from trioswitch._util import systemd
from trioswitch.api import Api, ApiKey
from trioswitch.cli.operation import check_exposure, post_alarm
from trioswitch.monitoring import Alarm, Monitor, Thresholds, health_pages, metrics_page
from trioswitch.settings.load import load
from trioswitch.settings.model import Settings
from trioswitch.stores.memory import MemoryStore
from trioswitch.testing import TestSwitch, open_test_switch
from trioswitch.web import Request, Route

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"


def metrics(page: Callable[[], Page]) -> dict[str, float]:
    """Series with their values."""
    lines = [line for line in page().body.decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


async def test_metrics_of_a_busy_server(autojump_clock: MockClock) -> None:
    options = Options(policies=(RoomPolicy(pattern="t*"), RoomPolicy(pattern="*", history="memory")))
    async with open_test_switch(options) as app:
        monitor = Monitor(app.switch)
        api = Api(app.switch, [ApiKey("a key for everything")])
        page = metrics_page(monitor, api)
        before = metrics(page)
        client = await app.connect()
        await client.join("hall", user_id="ada")
        await client.ask("chat_message", room="hall", content="hello")
        async with app.switch.subscribe("ticker"):
            for number in range(1024 + 3):  # one that does not read
                await app.switch.publish("ticker", number)
            found = metrics(page)
        assert (before["trioswitch_connections"], found["trioswitch_connections"]) == (0, 1)
        assert found["trioswitch_messages_received_total"] == 2
        assert found["trioswitch_received_bytes_total"] > 50
        assert found['trioswitch_messages_dropped_total{policy="t*",cause="overflow"}'] == 3
        assert (found["trioswitch_users"], found["trioswitch_rooms"]) == (1, 2)
        assert found["trioswitch_history_bytes"] > 0
        assert found["trioswitch_api_calls_total"] == 0
        await app.switch.publish("gone", 1)
        await trio.sleep(100)
        assert metrics(page)['trioswitch_messages_dropped_total{policy="t*",cause="overflow"}'] == 3, (
            "though it is closed"
        )
        for number in range(200):  # names that anybody can invent
            await app.switch.publish(f"room '\"\\\n{number}", 1)
        assert set(metrics(page)) == set(found)


async def test_how_long_messages_wait_in_outboxes(autojump_clock: MockClock) -> None:
    async with open_test_switch(Options(linger=0.3)) as app:
        page = metrics_page(Monitor(app.switch))
        client = await app.connect()
        await client.join("hall", user_id="ada")
        await trio.sleep(1)
        before = metrics(page)
        await app.switch.publish("hall", 1)
        await trio.sleep(0.1)
        await app.switch.publish("hall", 2)
        await trio.sleep(1)
        after = metrics(page)
        more = {name: value - before[name] for name, value in after.items() if name.startswith("trioswitch_outbox")}
        assert more['trioswitch_outbox_wait_seconds_bucket{le="0.25"}'] == 0
        assert more['trioswitch_outbox_wait_seconds_bucket{le="0.5"}'] == 1
        assert more["trioswitch_outbox_wait_seconds_count"] == more["trioswitch_outbox_batch_messages_count"] == 1
        assert more["trioswitch_outbox_wait_seconds_sum"] == pytest.approx(0.3, abs=0.01)
        assert more['trioswitch_outbox_batch_messages_bucket{le="1"}'] == 0
        assert more["trioswitch_outbox_batch_messages_sum"] == 2


async def test_promtool_finds_nothing_wrong_with_them(autojump_clock: MockClock) -> None:
    async with open_test_switch() as app:
        monitor = Monitor(app.switch)
        text = metrics_page(monitor, Api(app.switch, [ApiKey("a key for everything")]))().body
        done = await trio.run_process(
            ["promtool", "check", "metrics"], stdin=text, capture_stdout=True, capture_stderr=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@asynccontextmanager
async def watched(thresholds: Thresholds) -> AsyncIterator[tuple[TestSwitch, Monitor, list[Alarm]]]:
    told: list[Alarm] = []

    async def tell(alarm: Alarm) -> None:
        told.append(alarm)

    async with open_test_switch() as app, trio.open_nursery() as nursery:
        monitor = Monitor(app.switch, thresholds, tell)
        nursery.start_soon(monitor.run)
        yield app, monitor, told
        nursery.cancel_scope.cancel()


async def test_alarms_are_raised_and_end(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with watched(Thresholds(connections=9, memory=1 << 50)) as (app, monitor, told):
        clients = [await app.connect() for _ in range(9)]
        await trio.sleep(6)
        assert told == []
        clients.append(await app.connect())
        await trio.sleep(60)
        assert [(alarm.name, alarm.raised, alarm.value) for alarm in told] == [("connections", True, 10)]
        assert "alarm: connections is 10, which is above the threshold of 9" in caplog.text
        assert metrics(metrics_page(monitor))['trioswitch_alarm{name="connections"}'] == 1
        await clients.pop().close()
        await trio.sleep(60)
        assert len(told) == 1, "9 is not below nine tenths of the threshold"
        await clients.pop().close()
        await trio.sleep(60)
        assert [alarm.raised for alarm in told] == [True, False]
        assert monitor.alarms == {}
        assert metrics(metrics_page(monitor))['trioswitch_alarm{name="connections"}'] == 0


async def test_samples(autojump_clock: MockClock) -> None:
    async with watched(Thresholds()) as (app, monitor, _):
        await app.connect()
        await trio.sleep(5 * 120 + 1)
        facts = monitor.facts()
        assert len(facts["samples"]) == 100
        newest = facts["samples"][-1]
        assert newest["connections"] == 1
        assert newest["memory"] > 10_000_000
        assert newest["open_files"] > 3
        assert facts["alarms"] == []
        json.dumps(facts)
        assert sum(monitor.lags.distribution().counts) > 500


async def test_who_cannot_be_told_of_an_alarm(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async def fails(_alarm: Alarm) -> None:
        raise OSError("nobody is there")

    async with open_test_switch() as app, trio.open_nursery() as nursery:
        nursery.start_soon(Monitor(app.switch, Thresholds(memory=1), fails).run)
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert [record.message for record in caplog.records if record.exc_info] == ["telling of an alarm failed"]


class BrokenStore(MemoryStore):
    async def append(self, *_: Any, **__: Any) -> Any:
        raise StoreError("the disk is full")


async def test_health(autojump_clock: MockClock) -> None:
    options = Options(policies=(RoomPolicy(history="stored"),))
    async with open_test_switch(options, store=BrokenStore()) as app:
        pages: Any = health_pages(Monitor(app.switch))

        def ready() -> tuple[int, list[str]]:
            page = pages["/health/ready"]()
            return page.status, json.loads(page.body)["reasons"]

        assert ready() == (200, [])
        with pytest.raises(StoreError):
            await app.switch.publish("r", 1)
        assert ready() == (503, ["the disk is full"])
        assert pages["/health/live"]().status == 200
        await app.switch.drain(1)
        assert ready() == (503, ["the server is draining", "the disk is full"])
        assert pages["/health/live"]().status == 200


# --- files


def test_the_alerts_fire_when_they_should() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"], cwd=DEPLOY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tested = set(re.findall(r"alertname: (\w+)", (DEPLOY / "alerts_test.yml").read_text()))
    assert tested == set(re.findall(r"alert: (\w+)", (DEPLOY / "alerts.yml").read_text()))


def test_prometheus_takes_its_configuration() -> None:
    done = subprocess.run(
        ["promtool", "check", "config", str(DEPLOY / "prometheus.yml")], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


async def test_alerts_and_dashboard_name_metrics_that_there_are(autojump_clock: MockClock) -> None:
    async with open_test_switch() as app:
        page = metrics_page(Monitor(app.switch), Api(app.switch, [ApiKey("a key for everything")]))
        text = page().body.decode()
    there = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    there |= {f"{name}{suffix}" for name in there for suffix in ("_bucket", "_count", "_sum")}
    documented = (DEPLOY.parents[1] / "docs" / "operating.md").read_text()
    for source in ((DEPLOY / "alerts.yml").read_text(), (DEPLOY / "grafana-dashboard.json").read_text()):
        named = set(re.findall(r"\b((?:trioswitch|process)_\w+)\b", source))
        assert len(named) > 8
        assert named <= there, named - there
    undocumented = [
        name for name in there if not name.endswith(("_bucket", "_count", "_sum")) and _short(name) not in documented
    ]
    assert undocumented == ["process_start_time_seconds"]


def _short(name: str) -> str:
    """How the table abbreviates it."""
    return name.removeprefix("trioswitch").removeprefix("process")


def test_the_other_files_are_well_formed() -> None:
    json.loads((DEPLOY / "index-template.json").read_text())
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    load(DEPLOY / "trioswitch.toml", {})


def test_what_is_reachable_needs_tokens() -> None:
    open_to_all, with_tokens = Settings(), load(None, {"TRIOSWITCH_AUTH__SECRETS": "x" * 32}).settings
    for hosts in ([], ["127.0.0.1"], ["localhost", "::1"], ["127.1.2.3"], ["[::1]"]):
        check_exposure(hosts, open_to_all, insecure=False)
    for host in ("0.0.0.0", "::", "10.0.0.1", "host.example", ""):
        check_exposure([host], with_tokens, insecure=False)
        check_exposure([host], open_to_all, insecure=True)
        with pytest.raises(ValueError, match="nothing says who may connect"):
            check_exposure(["127.0.0.1", host], open_to_all, insecure=False)


# --- real servers


@pytest.mark.kill
async def test_a_server_with_a_port_for_operators(tmp_path: Path) -> None:
    file, admin, secrets = tmp_path / "t.toml", free_port(), [f"{letter}" * 40 for letter in "ab"]
    key = "the key of the API"

    def configure(secret: str, level: str) -> None:
        file.write_text(
            f'[server]\nport = 0\n[auth]\nsecrets = ["{secret}"]\n'
            f'[api]\nkey = "{key}"\nport = {admin}\n[log]\nlevel = "{level}"\n'
        )

    configure(secrets[0], "info")
    async with run("-m", "trioswitch", "serve", "--config", str(file), is_up=r"listens on (ws://[^\s;]+)") as program:
        clients = program.found.replace("ws://", "http://").removesuffix("/ws")
        async with httpx.AsyncClient() as client:
            at = f"http://127.0.0.1:{admin}"
            with trio.fail_after(20):
                while True:
                    try:
                        assert (await client.get(f"{at}/health/ready")).status_code == 200
                        break
                    except httpx.ConnectError:
                        await trio.sleep(0.05)
            assert "trioswitch_connections 0" in (await client.get(f"{at}/metrics")).text
            answer = await client.post(f"{at}/api/statistics", headers={"X-API-Key": key})
            assert answer.json()["result"]["switch"]["active_connections"] == 0
            assert [
                (await client.get(f"{clients}{path}")).status_code for path in ("/metrics", "/api/info", "/health")
            ] == [
                404,
                404,
                200,
            ]
            assert (await client.get(clients)).status_code == 200
            await _reload(program, configure, secrets, clients)


async def _reload(program: Program, configure: Callable[[str, str], None], secrets: list[str], clients: str) -> None:
    """At SIGHUP another secret holds; a configuration that is not valid changes nothing."""

    async def lets_in(secret: str) -> bool:
        token = jwt.encode({"sub": "ada"}, secret)
        headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
        async with httpx.AsyncClient() as client:
            async with client.stream("GET", f"{clients}/ws?token={token}", headers={**headers, **key}) as answer:
                return answer.status_code == 101

    assert [await lets_in(secret) for secret in secrets] == [True, False]
    configure(secrets[1], "debug")
    program.process.send_signal(signal.SIGHUP)
    with trio.fail_after(10):
        while not await lets_in(secrets[1]):
            await trio.sleep(0.05)
    assert not await lets_in(secrets[0])
    configure("too short", "loud")
    program.process.send_signal(signal.SIGHUP)
    await trio.sleep(0.5)
    assert await lets_in(secrets[1])


SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, "-m", "trioswitch", "serve", *sys.argv[2:]])
"""


def _with_socket(listener: socket.socket, *arguments: str) -> subprocess.Popen[bytes]:
    """Start the server as systemd does that holds its socket: as descriptor 3."""
    command = [sys.executable, "-c", SYSTEMD, str(listener.fileno()), *arguments]
    return subprocess.Popen(command, pass_fds=[listener.fileno()], stderr=subprocess.PIPE)


@pytest.mark.slow
def test_systemd_holds_the_port_while_the_server_is_replaced() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        for _ in range(2):
            with socket.create_connection(address, timeout=30) as client:  # before the server runs
                client.sendall(b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                with _with_socket(listener, "--port", "1") as server:
                    assert client.recv(1000).startswith(b"HTTP/1.1 200")
                    server.send_signal(signal.SIGTERM)
                    _, said = server.communicate(timeout=30)
                    assert server.returncode == 0
                    assert f"listens on ws://127.0.0.1:{address[1]}/ws".encode() in said


def test_descriptors_that_are_no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "FIRST", 100_000)
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    with pytest.raises(
        ValueError, match="LISTEN_FDS promises 1 sockets from descriptor 100000 on: Bad file descriptor"
    ):
        systemd.inherited_sockets()
    assert systemd.inherited_sockets() == []  # they are taken once


@pytest.mark.slow
def test_a_socket_of_systemd_that_others_reach_needs_tokens_too() -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener, _with_socket(listener) as server:
        _, said = server.communicate(timeout=30)
        assert (server.returncode, b"--insecure" in said) == (2, True)
    with socket.create_server(("127.0.0.1", 0)) as listener, _with_socket(listener, "--workers", "2") as server:
        _, said = server.communicate(timeout=30)
        assert (server.returncode, b"for one process" in said) == (2, True)


@pytest.mark.kill
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_systemd_is_told_when_the_server_is_ready(
    workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        arguments = ("-m", "trioswitch", "serve", "--port", "0", "--workers", workers)
        async with run(*arguments, is_up=r"listens on (ws://[^\s;]+)") as program:
            assert manager.recv(100) == b"READY=1"
            program.process.terminate()
            with trio.fail_after(20):
                await program.process.wait()
        assert manager.recv(100) == b"STOPPING=1"


@pytest.mark.kill
async def test_a_certificate_is_replaced_while_the_server_runs(tmp_path: Path) -> None:
    authority, file = trustme.CA(), tmp_path / "server.pem"
    trust = ssl.create_default_context()
    authority.configure_trust(trust)

    def issue() -> None:
        file.write_bytes(b"".join(part.bytes() for part in _parts(authority.issue_cert("127.0.0.1"))))

    async def serial(port: int) -> str:
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=trust)
        await stream.do_handshake()
        number: str = stream.getpeercert()["serialNumber"]
        await trio.aclose_forcefully(stream)
        return number

    issue()
    arguments = ("-m", "trioswitch", "serve", "--port", "0", "--tls-cert", str(file))
    async with run(*arguments, is_up=r"listens on wss://127\.0\.0\.1:(\d+)/ws") as program:
        first = await serial(int(program.found))
        issue()
        program.process.send_signal(signal.SIGHUP)
        with trio.fail_after(10):
            while (second := await serial(int(program.found))) == first:
                await trio.sleep(0.05)
        file.write_text("nothing")
        program.process.send_signal(signal.SIGHUP)
        await trio.sleep(0.5)
        assert await serial(int(program.found)) == second
        assert "the configuration stays as it was: argument --tls-cert: there is no certificate (PEM)" in program.said


def _parts(certificate: trustme.LeafCert) -> list[trustme.Blob]:
    return [certificate.private_key_pem, *certificate.cert_chain_pems]


@pytest.mark.kill
async def test_workers_share_the_port_for_operators() -> None:
    admin = free_port()
    arguments = ("-m", "trioswitch", "serve", "--port", "0", "--workers", "2", "--admin-port", str(admin))
    async with run(*arguments, is_up=r"listens on (ws://[^\s;]+)"):
        async with httpx.AsyncClient() as client:
            for _ in range(5):
                text = (await client.get(f"http://127.0.0.1:{admin}/metrics")).text
                found = re.findall(r'^trioswitch_connections\{worker="([^"]+)"\} 0$', text, re.MULTILINE)
                assert len(set(found)) == 2, text[:500]


async def test_an_alarm_reaches_a_webhook() -> None:
    received: list[Any] = []

    async with open_test_switch() as app, trio.open_nursery() as nursery:

        async def hook(request: Request) -> Page:
            received.append(json.loads(request.body))
            return Page(b"", status=204)

        server = await nursery.start(partial(serve, app.switch, port=0, pages={"/hook": Route(hook, "POST")}))
        alarm = Alarm(name="memory", value=2.0, threshold=1.0, raised=True, at=5.0)
        await post_alarm(f"http://127.0.0.1:{server.port}/hook", alarm)
        with pytest.raises(httpx.HTTPStatusError):
            await post_alarm(f"http://127.0.0.1:{server.port}/nothing", alarm)
        nursery.cancel_scope.cancel()
    assert received == [
        {
            "name": "memory",
            "value": 2.0,
            "threshold": 1.0,
            "raised": True,
            "at": 5.0,
            "sentence": "memory is 2, which is above the threshold of 1",
        }
    ]
