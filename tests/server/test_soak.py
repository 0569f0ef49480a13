"""A minute of churn: the server's memory stays as it is. Longer by hand: `benchmarks/soak.py`."""

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"
SECONDS = 60


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_memory_is_flat(workers: int) -> None:
    command = [sys.executable, str(SOAK), "--seconds", str(SECONDS), "--workers", str(workers), "--clients", "15"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3 * SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 messages" not in done.stdout
