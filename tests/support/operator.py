"""The operator as a process of its own, outside the cluster, as in development."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from claudejobs.api.process_state import LogLine
from claudejobs.store import Store, StoreUnavailableError

from .kube import Namespace, wait_for

REPOSITORY = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def command_environment(**variables: str) -> dict[str, str]:
    """The environment of a command of this checkout: nothing of the caller's own settings reaches it."""
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "SSL_CERT_FILE")}
    return kept | {"PYTHONPATH": str(REPOSITORY / "operator")} | variables


def start_command(command: str, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start ``claudejobs COMMAND``; what it says is added to the log."""
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "claudejobs.cli.main", command], env=environment, stdout=out, stderr=out
        )


def run_command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``claudejobs`` with arguments, whatever comes of it."""
    command = [sys.executable, "-m", "claudejobs.cli.main", *arguments]
    return subprocess.run(command, env=command_environment(**variables), capture_output=True, text=True, check=False)


class OperatorProcess:
    """Starts and ends ``claudejobs operator``. Settings are environment variables."""

    def __init__(self, namespace: Namespace, log: Path, database_url: str, **settings: object) -> None:
        self.namespace = namespace
        self.database_url = database_url
        self.log = log
        self.port = free_port()
        self._settings = {name.upper(): str(value) for name, value in settings.items()}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> OperatorProcess:
        """Start, and wait until it is ready."""
        environment = command_environment(
            KUBECONFIG=str(self.namespace.cluster.kubeconfig),
            DATABASE_URL=self.database_url,
            WATCH_NAMESPACES=self.namespace.name,
            HEALTH_PORT=str(self.port),
        )
        self.process = start_command("operator", self.log, environment | self._settings)
        wait_for(self.ready, f"the operator is ready; its log: {self.log}")
        return self

    def ready(self) -> bool:
        """Whether /readyz says yes."""
        assert self.process is not None
        assert self.process.poll() is None, f"the operator ended: {self.log.read_text()[-3000:]}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """Kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, timeout: float = 20.0) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    async def rows(self, name: str) -> list[dict[str, Any]]:
        """The ProcessState rows of a job, by attempt."""
        store = Store(self.database_url)
        try:
            rows = await store.rows({"job_namespace": self.namespace.name, "job_name": name})
        except StoreUnavailableError:  # away, or the operator has not made its tables yet
            return []
        finally:
            await store.stop()
        return sorted(rows, key=lambda row: row["attempt"])

    async def lines(self, process: str) -> list[LogLine]:
        """The stored log lines of an attempt (by process id), in order."""
        store = Store(self.database_url)
        lines: list[LogLine] = []
        try:
            while page := await store.log_lines(process, lines[-1].seq if lines else 0, 5000):
                lines += page
        finally:
            await store.stop()
        return lines


async def wait_rows(operator: OperatorProcess, name: str, *statuses: str) -> list[dict[str, Any]]:
    """Wait until a job's rows have these statuses, one per attempt."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        rows = await operator.rows(name)
        if tuple(row["status"] for row in rows) == statuses:
            return rows
        await asyncio.sleep(0.1)
    raise AssertionError(f"rows of {name} are {rows}, not {statuses}")
