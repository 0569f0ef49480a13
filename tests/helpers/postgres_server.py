"""A PostgreSQL server of a test's own."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs
from engine_server import free_port

__all__ = ["PostgresServer", "postgres_server"]

PATIENCE = 60.0
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
"""Of Debian's package postgresql, the newest last."""


def _as_user(command: Sequence[str]) -> list[str]:
    """PostgreSQL does not run as root."""
    if os.getuid():
        return list(command)
    postgres = pwd.getpwnam("postgres")
    setpriv = ["setpriv", f"--reuid={postgres.pw_uid}", f"--regid={postgres.pw_gid}", "--clear-groups"]
    return [*setpriv, *command]


@attrs.define(eq=False)
class PostgresServer:
    """Its methods block; a test on Trio calls them in a thread."""

    port: int
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres") -> str:
        return f"postgres://postgres:secret@127.0.0.1:{self.port}/{database}"

    def make(self) -> None:
        """Make the files of a server whose user `postgres` has the password `secret`."""
        password = self.directory / "password"
        password.write_text("secret")
        if not os.getuid():
            for path in (self.directory, password):
                shutil.chown(path, "postgres")
        options = ["-U", "postgres", "--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8", "--no-sync"]
        command = [str(PROGRAMS[-1] / "initdb"), *options, str(self.directory / "data")]
        subprocess.run(_as_user(command), stdout=subprocess.DEVNULL, check=True, timeout=PATIENCE)

    def start(self) -> None:
        """Start it, or start it again with what it has committed."""
        options = ["-p", str(self.port), "-h", "127.0.0.1", "-k", "", "-c", "max_connections=200"]
        command = [str(PROGRAMS[-1] / "postgres"), "-D", str(self.directory / "data"), *options]
        self.process = subprocess.Popen(_as_user(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ready = [str(PROGRAMS[-1] / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        deadline = time.monotonic() + PATIENCE
        while subprocess.run(ready, check=False).returncode:
            assert time.monotonic() < deadline, "PostgreSQL has not started"
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once, as a crash does: what was not committed is lost."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)  # its children end, too
            self.process.wait(PATIENCE)

    def execute(self, sql: str, database: str = "postgres") -> str:
        """Execute SQL, as `psql` does."""
        command = [str(PROGRAMS[-1] / "psql"), "-qtAX", "-v", "ON_ERROR_STOP=1", self.url(database), "-c", sql]
        return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=PATIENCE).stdout


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    with tempfile.TemporaryDirectory(prefix="trioswitch-postgres-") as directory:
        server = PostgresServer(free_port(), Path(directory))
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.kill()
