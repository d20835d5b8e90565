"""A database that dies, hangs, refuses to write and is locked while jobs run: jobs go on, and in the end every row says
what the job's status says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sqlite3
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from claudejobs.api.categories import Category
from claudejobs.store import Store, StoreUnavailableError
from tests.integration.postgres import PostgresServer
from tests.support.kube import Namespace
from tests.support.operator import OperatorProcess

from .api import Api, View
from .field import FIGURES, NOTES
from .kubelet import failed
from .scenarios import Stage, cancel, hello, retry

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

JOBS_PER_FAULT = 40
ENDED_MEANWHILE = 15
"""Jobs that must come to their end while the database is away."""

PATIENCE = 120.0
"""Seconds for what takes a few on a quiet machine."""

ROW_STATUS = {"completed": "completed", "failed": "failed", "cancelled": "cancelled", "suspended": "cancelled"}


async def fail(stage: Stage) -> None:
    """A job whose failure is final."""
    await stage.create()
    await stage.run_attempt(1)
    await stage.end_attempt(1, failed(Category.INVALID_REQUEST))
    await stage.until_phase("Failed")


async def retry_and_fail(stage: Stage) -> None:
    """A job that fails twice, for different reasons."""
    await stage.create(retry={"maxAttempts": 2, "backoff": {"delaySeconds": 0}})
    await stage.run_attempt(1)
    await stage.end_attempt(1, failed(Category.NETWORK))
    await stage.run_attempt(2)
    await stage.end_attempt(2, failed(Category.AUTH))
    await stage.until_phase("Failed")


LIVES = [hello, hello, retry, hello, cancel, hello, fail, hello, retry_and_fail, hello]


class Load:
    """Jobs, their author and the node that plays their pods, while an operator with a database looks after them."""

    def __init__(self, api: Api, view: View, node: str, operator: OperatorProcess) -> None:
        self._api, self._view, self._node, self.operator = api, view, node, operator
        self._lives: list[asyncio.Task[None]] = []
        self.faults = 0

    async def more(self) -> None:
        """Make as many jobs as one fault meets, and wait until some of them run."""
        first = len(self._lives)
        for number in range(first, first + JOBS_PER_FAULT):
            stage = Stage(self._api, self._view, self.operator.namespace.name, self._node, f"job{number}", list)
            self._lives.append(asyncio.create_task(LIVES[number % len(LIVES)](stage)))
        await self._until(lambda: self._count("Running") or self.ended() > first, "some jobs run")

    async def strike(self, begin: Callable[[], Any], end: Callable[[], Any]) -> None:
        """Put a fault under the jobs, until many of them have ended and the operator says that it sees it."""
        await self.more()
        await asyncio.to_thread(begin)
        self.faults += 1
        enough = self.ended() + ENDED_MEANWHILE
        await self._until(lambda: self.ended() >= enough, "jobs end without a database")
        await self.until_state("degraded")
        await asyncio.to_thread(end)
        await self.until_state("ok")

    async def until_state(self, state: str) -> None:
        """Wait until the operator says so of itself. It says so as one that is ready: jobs need no database."""
        deadline = time.monotonic() + PATIENCE
        while (told := await asyncio.to_thread(self._told))["database"]["state"] != state:
            assert time.monotonic() < deadline, f"the operator does not say {state}: {told}"
            await asyncio.sleep(0.1)

    async def finish(self) -> None:
        """Every job comes to its end."""
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*self._lives)

    def ended(self) -> int:
        """How many jobs are at their end."""
        return self._count("Completed", "Failed", "Cancelled")

    async def compare(self) -> int:
        """Wait until the rows are what the jobs' statuses say; how many that are."""
        told = {name: _told_by(job["status"]) for name, job in self._view.jobs.items()}
        assert len(told) == len(self._lives)
        deadline = time.monotonic() + PATIENCE
        found: dict[str, list[tuple[Any, ...]]] = {}
        while found != told and time.monotonic() < deadline:
            with contextlib.suppress(StoreUnavailableError):
                found = await self._rows()
            await asyncio.sleep(0.1)
        wrong = {name: (rows, found.get(name)) for name, rows in told.items() if rows != found.get(name)}
        assert not wrong, f"{len(wrong)} jobs: status, and rows, of the first: {next(iter(wrong.items()))}"
        assert found == told, f"rows of jobs that never were: {found.keys() - told.keys()}"
        return sum(map(len, found.values()))

    async def _rows(self) -> dict[str, list[tuple[Any, ...]]]:
        store = Store(self.operator.database_url)
        try:
            rows = await store.rows({"job_namespace": self.operator.namespace.name}, limit=10_000)
        finally:
            await store.stop()
        by_job: dict[str, list[tuple[Any, ...]]] = {}
        for row in sorted(rows, key=lambda row: row["attempt"]):
            assert (row["end_time"] is not None) == (row["status"] in ROW_STATUS.values()), row
            seen = (row["attempt"], row["status"], row["error_category"], row["pod_name"])
            by_job.setdefault(row["job_name"], []).append(seen)
        return by_job

    async def _until(self, probe: Callable[[], Any], what: str) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._view.until(probe, what)

    def _count(self, *phases: str) -> int:
        return sum(job.get("status", {}).get("phase") in phases for job in self._view.jobs.values())

    def _told(self) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.operator.port}/readyz", timeout=30) as answer:
            assert answer.status == 200
            return json.load(answer)


def _told_by(status: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The rows that a job's status asks for, by a way of its own: one for each attempt."""
    return [
        (one["attempt"], ROW_STATUS[one["outcome"]], one.get("category"), one["podName"]) for one in status["attempts"]
    ]


@asynccontextmanager
async def load(api: Api, node: str, operator: OperatorProcess) -> AsyncIterator[Load]:
    """Start the operator, and end everything afterwards."""
    view = View(api, operator.namespace.name)
    jobs = Load(api, view, node, operator)
    try:
        await asyncio.to_thread(operator.start)
        yield jobs
        assert operator.stop() == 0
    finally:
        for life in jobs._lives:
            life.cancel()
        await asyncio.gather(*jobs._lives, return_exceptions=True)
        operator.kill()
        await view.stop()


def _note(name: str, jobs: Load, rows: int) -> None:
    FIGURES["rows compared with the cluster"] += rows
    NOTES.append(f"{name}: {rows} rows of {jobs.ended()} jobs compared after {jobs.faults} faults: all equal")


async def test_rows_are_right_after_postgresql_was_away(
    api: Api, node: str, own_namespace: Namespace, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    server, database = postgres_server, postgres_server.create_database()

    def read_only() -> None:
        with server.admin() as admin:
            admin.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [database])

    def writable() -> None:
        with server.admin() as admin:
            admin.execute(f"ALTER DATABASE {database} RESET default_transaction_read_only")

    operator = OperatorProcess(own_namespace, tmp_path / "log", server.url(database), max_concurrent_jobs=100)
    try:
        async with load(api, node, operator) as jobs:
            await jobs.until_state("ok")
            await jobs.strike(server.kill, server.start)
            await jobs.strike(server.pause, server.resume)
            await jobs.strike(server.kill, server.start)
            await jobs.strike(read_only, writable)
            await jobs.strike(server.kill, server.start)
            await jobs.finish()
            _note("PostgreSQL", jobs, await jobs.compare())
    finally:
        server.resume()
        server.start()


async def test_rows_are_right_after_trouble_with_sqlite(
    api: Api, node: str, own_namespace: Namespace, tmp_path: Path
) -> None:
    file = tmp_path / "rows.db"
    operator = OperatorProcess(own_namespace, tmp_path / "log", f"sqlite:///{file}", max_concurrent_jobs=100)
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)

    def limit_files(size: int) -> None:
        """No file of the operator can grow beyond that, as on a full disk."""
        assert operator.process is not None
        resource.prlimit(operator.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    async with load(api, node, operator) as jobs:
        await jobs.until_state("ok")
        for begin, end in (
            (lambda: other.execute("BEGIN IMMEDIATE"), lambda: other.execute("ROLLBACK")),
            # Last, as an operator that starts anew writes every row again.
            (lambda: limit_files(4096), lambda: limit_files(resource.RLIM_INFINITY)),
        ):
            await jobs.more()
            operator.kill()
            jobs.faults += 1
            await asyncio.to_thread(operator.start)
            await jobs.strike(begin, end)
        await jobs.finish()
        _note("SQLite", jobs, await jobs.compare())
    other.close()
