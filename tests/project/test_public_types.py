"""What applications import is typed completely: a type checker that reads the installed package knows each type."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import trioswitch

PUBLIC = (
    "trioswitch",
    *(f"trioswitch.{name}" for name in ("brokers", "client", "messages", "stores", "testing", "web")),
)


def public_names() -> set[str]:
    """The full names of what the public modules export, as `module.Class`."""
    modules = [importlib.import_module(name) for name in PUBLIC]
    objects = [getattr(module, name) for module in modules for name in module.__all__]
    return {f"{each.__module__}.{each.__qualname__}" for each in objects if hasattr(each, "__qualname__")}


@pytest.mark.slow
def test_each_type_is_known(tmp_path: Path) -> None:
    venv.create(tmp_path, symlinks=True)
    (site,) = tmp_path.glob("lib/python*/site-packages")
    shutil.copytree(Path(trioswitch.__file__).parent, site / "trioswitch", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    pyright = [sys.executable, "-m", "pyright", "--verifytypes", "trioswitch", "--ignoreexternal", "--outputjson"]
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        pyright,
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    report = json.loads(run.stdout)["typeCompleteness"]
    names = public_names()
    checked, unknown = 0, {}
    for symbol in report["symbols"]:
        owner = symbol["name"] if symbol["name"] in names else symbol["name"].rpartition(".")[0]
        if owner in names:
            checked += 1
            # What is known in part refers to a class of our own, of which an attribute has no annotation but the value it gets.
            told = [each["message"] for each in symbol["diagnostics"]]
            if told := [each for each in told if "partially unknown" not in each and "docstring" not in each]:
                unknown[symbol["name"]] = told
    assert checked > len(names)
    assert unknown == {}
