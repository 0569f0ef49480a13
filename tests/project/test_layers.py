"""The import direction: a package imports only from the packages above it in the list, and no module is in an import cycle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import trioswitch

ROOT = Path(trioswitch.__file__).parent
PROJECT = Path(__file__).parents[2]

LAYERS = [
    ["errors", "config", "metrics", "version"],
    ["_util"],
    ["wire"],
    ["redis", "nats", "postgres"],
    ["stores", "brokers", "transport", "auth"],
    ["hub"],
    ["connections"],
    ["rooms"],
    ["durability"],
    ["cluster"],
    ["publishing", "handlers", "hooks", "messages"],
    ["services", "replies", "endpoints", "permissions", "refusals", "sign_in", "tracing"],
    ["commands", "administration"],
    ["admission"],
    ["parts"],
    ["drain"],
    ["switch"],
    ["assembly"],
    ["web", "workers", "backend"],
    ["api"],
    ["monitoring"],
    ["console"],
    ["serve", "settings"],
    ["client", "bench", "testing"],
    ["cli"],
]
"""`docs/architecture.md` says what each package holds. Packages on one line do not import each other, but for the first line."""
PLACE = {package: number for number, packages in enumerate(LAYERS) for package in packages}
FACADES = {"", "__main__"}
"""They only gather: the package itself, and the entry point of `python -m`."""


def name_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in ROOT.rglob("*.py")}


def imports(module: str) -> set[str]:
    """The modules of this project that a module imports when it is loaded, relative imports resolved."""
    path = MODULES[module]
    package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    package = [part for part in package if part]
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)] + (node.module or "").split(".")
            base = [part for part in base if part]
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                found.add(whole if whole in MODULES else ".".join(base))
    return found


def package_of(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("package", sorted({package_of(module) for module in MODULES} - FACADES))
def test_a_package_imports_only_from_packages_above_it(package: str) -> None:
    assert package in PLACE, f"{package} has no place in LAYERS"
    for module in (module for module in MODULES if package_of(module) == package):
        for other in {package_of(name) for name in imports(module)} - {package}:
            above = PLACE[other] < PLACE[package] or PLACE[other] == PLACE[package] == 0
            assert above, f"{module} imports {other}, which is not above {package}"


def test_no_module_is_in_an_import_cycle() -> None:
    graph = {module: imports(module) - {module} for module in MODULES}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle


@pytest.mark.parametrize("module", sorted(name for name in MODULES if package_of(name) == "wire"))
def test_the_wire_does_no_io_and_reads_no_clock(module: str) -> None:
    forbidden = {"trio", "time", "datetime", "socket", "asyncio", "threading", "os"}
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        assert not forbidden & {name.split(".")[0] for name in names}, module


def test_files_stay_small() -> None:
    assert {name: lines for name, path in MODULES.items() if (lines := len(path.read_text().splitlines())) > 400} == {}


PRIVATE = {
    *(("os", "_exit"), ("sys", "_current_frames"), ("sys", "_getframe")),
    *(
        ("trio._core._run", "_ALLOW_DETERMINISTIC_SCHEDULING"),
        ("trio._core._run", "_r"),
        ("trio._core", "_run"),
        ("trio", "_core"),
    ),
}
"""Names of the standard library with an underscore that are documented, and what Trio has for tests with a seed."""
SCRIPTS = sorted(
    [*PROJECT.glob("tests/**/*.py"), *PROJECT.glob("benchmarks/**/*.py"), *PROJECT.glob("examples/**/*.py")]
)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_nothing_outside_the_package_uses_private_attributes(path: Path) -> None:
    """Tests hold what a class promises: how it does it may change without them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not [each.name for each in node.names if each.name.startswith("_") and each.name[1] != "_"]
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = ast.unparse(node.value)
            assert owner in ("self", "cls") or (owner, node.attr) in PRIVATE, f"line {node.lineno}: {owner}.{node.attr}"
