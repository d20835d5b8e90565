"""A real PostgreSQL server for tests, which can be stopped, hung, killed and started again."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from tests.support.debian import provide

PASSWORD = "s3cret/p@ss"
_DEADLINE = 30.0


def find_binaries() -> Path:
    """Return the folder of Debian's newest PostgreSQL programs, installing them when root."""
    return provide("postgresql", _installed)


def _installed() -> Path | None:
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(folders, key=lambda folder: int(folder.parent.name), default=None)


class PostgresServer:
    """One server with a data directory of its own, on a loopback port of its own.

    Its superuser is ``postgres``; tests connect as ``app``, which owns each database made by
    ``create_database``.
    """

    def __init__(self, folder: Path) -> None:
        self._binaries = find_binaries()
        self._folder, self._data = folder, folder / "data"
        self._user = self._unprivileged_user()
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = self._schemas = 0
        self._shared = ""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            os.chown(folder, entry.pw_uid, entry.pw_gid)
        self._run(
            "initdb",
            "--pgdata",
            str(self._data),
            "--username=postgres",
            "--auth=trust",
            "--no-sync",
            "-E",
            "UTF8",
        )
        # The superuser is trusted, so that tests can repair what they break; app needs its password.
        (self._data / "pg_hba.conf").write_text(
            "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )
        self.start()
        with self.admin() as admin:
            admin.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")

    @staticmethod
    def _unprivileged_user() -> str | None:
        # PostgreSQL refuses to run as root.
        if os.geteuid() != 0:
            return None
        names = {entry.pw_name for entry in pwd.getpwall()}
        return "postgres" if "postgres" in names else "nobody"

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._binaries / program), *arguments],
            user=self._user,
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            pytest.fail(f"{program} failed: {done.stdout}{done.stderr}", pytrace=False)

    def start(self) -> None:
        """Start the server and wait until it takes connections, which after a kill includes recovery."""
        if self._process is not None:
            return
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "full_page_writes": "off",
            "max_connections": 40,
            "shared_buffers": "32MB",
            "autovacuum": "off",
            "logging_collector": "off",
        }
        arguments = [item for name, value in settings.items() for item in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._binaries / "postgres"), "-D", str(self._data), *arguments],
                user=self._user,
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the server takes connections."""
        deadline = time.monotonic() + _DEADLINE
        while True:
            try:
                self.admin().close()
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline or self._process is None or self._process.poll() is not None:
                    pytest.fail(f"PostgreSQL did not start: {error}\n{self.log()[-3000:]}", pytrace=False)
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """Stop the server cleanly but at once (fast shutdown: open transactions are rolled back)."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Kill the server and everything it started as a power cut would (SIGKILL, no shutdown)."""
        if self._process is not None:
            # The backends share the postmaster's session, which start() made for it alone.
            for pid in self._pids():
                _signal(pid, signal.SIGKILL)
            self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Hang the server: connections are still taken by the kernel, and nothing ever answers."""
        for pid in self._pids():
            _signal(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """End a hang."""
        for pid in self._pids():
            _signal(pid, signal.SIGCONT)

    def _pids(self) -> list[int]:
        if self._process is None:
            return []
        parent = self._process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [parent, *map(int, children)]

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self.resume()
            _signal(self._process.pid, how)
            self._process.wait(_DEADLINE)
            self._process = None

    def admin(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        """Return an autocommitting connection of the superuser."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="postgres",
            dbname=database,
            autocommit=True,
            connect_timeout=5,
        )

    def create_database(self) -> str:
        """Create an empty database and return its name; it goes with the server's folder."""
        self._databases += 1
        name = f"test_{self._databases}"
        with self.admin() as admin:
            admin.execute(f"CREATE DATABASE {name} OWNER app")
        return name

    def create_schema(self) -> str:
        """Create an empty schema and return the URL of a database where it is the only one searched.

        Much cheaper than a database of one's own, which is a thousand files.
        """
        if self._schemas == 0:
            self._shared = self.create_database()
        self._schemas += 1
        name = f"schema_{self._schemas}"
        with self.admin(self._shared) as admin:
            admin.execute(f"CREATE SCHEMA {name} AUTHORIZATION app")
        return f"{self.url(self._shared)}?schema={name}"

    def url(self, database: str, user: str = "app", password: str = PASSWORD) -> str:
        """Return the URL of a database."""
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def log(self) -> str:
        """Return what the server logged."""
        return (self._folder / "log").read_text(errors="replace")


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for the whole session; a test that stops or hangs it must leave it running."""
    # Not under pytest's own folder, which only its owner may enter: the server is another user.
    folder = Path(tempfile.mkdtemp(prefix="claudejobs-postgres-"))
    server = PostgresServer(folder)
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
