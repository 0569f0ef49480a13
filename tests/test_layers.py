"""The import direction: a module imports only from the layers before its own."""

import ast
from pathlib import Path

import pytest

import trioswitch

ROOT = Path(trioswitch.__file__).parent

LAYERS = [
    {"errors", "version", "clock", "supervise", "memory"},
    {"wire.messages", "wire.frames"},
    {"wire.protocols"},
    {"wire.prepared", "wire.websocket"},
    {"wire.handshake"},
    {"wire.batch", "wire.gaps", "wire.records"},
    {"config", "metrics", "auth"},
    {"stores"},
    {"stores.memory", "stores.schema", "stores.lane", "stores.rows"},
    {"stores.tables"},
    {"stores.sqlite"},
    {"stores.open"},
    {"transport"},
    {"transport.channels", "transport.reactor", "transport.trio_websocket"},
    {"transport.native", "transport.tls"},
    {"flusher"},
    {"outbox"},
    {"connection", "history", "members"},
    {"rooms", "subscription", "heartbeats", "retries"},
    {"dispatcher", "journal"},
    {"registry"},
    {"recovery", "inbox"},
    {"sessions", "answers"},
    {"commands"},
    {"entry", "delivery"},
    {"switch"},
    {"web.http"},
    {"web.pages"},
    {"web"},
    {"serve"},
    {"workers"},
    {"bench.histogram", "bench.host", "bench.target", "bench.wire", "bench.speed_seed", "bench.speed_server"},
    {"bench.orders", "bench.speed_client", "bench.speed_report"},
    {"bench.recorder", "bench.fleet", "bench.measurement"},
    {"bench.crowd", "bench.settings"},
    {"bench.worker", "bench.result"},
    {"bench.show", "bench.plot"},
    {"bench.session", "bench.speed"},
    {"bench.scenarios"},
    {"bench.cli"},
    {"client.errors", "client.messages", "client.options", "client.backoff", "client.reader"},
    {"client.link", "client.requests", "client.track"},
    {"client.inbox"},
    {"client.session"},
    {"client.conversation"},
    {"client.connector"},
    {"client.client"},
    {"client", "client.terminal"},
    {"cli"},
]
FACADES = {"", "wire", "bench", "__main__"}
"""They only gather: the package itself, and the entry point of `python -m`."""
PLACE = {module: number for number, layer in enumerate(LAYERS) for module in layer}


def name_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in ROOT.rglob("*.py")}


def imports(module: str) -> set[str]:
    """The modules of this package that a module imports, relative imports resolved."""
    path = MODULES[module]
    package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    package = [part for part in package if part]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)] + (node.module or "").split(".")
            base = [part for part in base if part]
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                found.add(whole if whole in MODULES else ".".join(base))
    return found


@pytest.mark.parametrize("module", sorted(set(MODULES) - FACADES))
def test_imports_go_one_way(module: str) -> None:
    assert module in PLACE, f"{module} has no place in LAYERS"
    for other in imports(module) - {""}:
        assert PLACE[other] < PLACE[module], f"{module} imports {other}, which is not above it"


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.startswith("wire")))
def test_the_wire_does_no_io_and_reads_no_clock(module: str) -> None:
    forbidden = {"trio", "time", "datetime", "socket", "asyncio", "threading", "os"}
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        assert not forbidden & {name.split(".")[0] for name in names}, module


def test_files_stay_small() -> None:
    assert {name: lines for name, path in MODULES.items() if (lines := len(path.read_text().splitlines())) > 400} == {}
