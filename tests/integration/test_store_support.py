"""What the store's tests share: databases of both kinds, rows and lines. Has no tests itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Executable, select, text

from claudejobs.api.process_state import LogLine, ProcessState, ProcessStatus
from claudejobs.store import Store, StoreSettings, upgrade
from claudejobs.store.config import build_engine, parse_url
from claudejobs.store.tables import process_states
from tests.integration.postgres import PostgresServer

NOW = datetime(2026, 3, 4, 5, 6, 7, 891011, tzinfo=UTC)
SETTINGS = StoreSettings(
    linger=0.01,
    log_linger=0.01,
    connect_timeout=2,
    statement_timeout=1,
    backoff_initial=0.02,
    backoff_max=0.2,
)
"""As little waiting as works."""

WAIT = 15.0
"""Longest wait for what must happen; long, since it is only used up when a test fails."""


@dataclass
class Db:
    """An empty database and ways to look into it besides the store."""

    dialect: str
    url: str

    async def run(self, statement: Executable | str) -> list[dict[str, Any]]:
        """Run one statement, committed, and return its rows."""
        engine = build_engine(parse_url(self.url), StoreSettings())
        try:
            async with engine.begin() as connection:
                result = await connection.execute(text(statement) if isinstance(statement, str) else statement)
                return [dict(row) for row in result.mappings()] if result.returns_rows else []
        finally:
            await engine.dispose()

    async def rows(self) -> dict[str, dict[str, Any]]:
        """Return all rows by process id."""
        return {row["process_id"]: row for row in await self.run(select(process_states))}

    @asynccontextmanager
    async def store(self, settings: StoreSettings = SETTINGS, **more: Any) -> AsyncIterator[Store]:
        """Run a store on this database."""
        store = Store(self.url, settings=settings, **more)
        await store.start()
        try:
            yield store
        finally:
            await store.stop(timeout=WAIT)


@pytest.fixture
def postgres_db(postgres_server: PostgresServer) -> Db:
    """Return a PostgreSQL database of the test's own."""
    return Db("postgresql", postgres_server.url(postgres_server.create_database()))


@pytest.fixture(params=["postgresql", "sqlite"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Db:
    """Return an empty schema of a PostgreSQL database, and an empty SQLite file."""
    if request.param == "sqlite":
        return Db("sqlite", f"sqlite:///{tmp_path}/store.db")
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return Db("postgresql", server.create_schema())


@pytest.fixture
def store_errors(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return a function that lists what the store logged as warnings and errors."""
    caplog.set_level(logging.INFO, "claudejobs.store")
    return lambda: [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("claudejobs.")
    ]


async def migrated(db: Db) -> Db:
    """Bring the schema up to date and return ``db``."""
    await upgrade(db.url)
    return db


def state(number: int = 1, status: str = "running", **more: Any) -> ProcessState:
    """Return a row of attempt 1 of job ``number``."""
    values: dict[str, Any] = {
        "process_id": f"job-{number}-1",
        "job_uid": f"job-{number}",
        "job_namespace": "jobs",
        "job_name": f"name-{number}",
        "attempt": 1,
        "status": ProcessStatus(status),
    }
    return ProcessState(**(values | more))


def line(seq: int, number: int = 1, text: str = "", **more: Any) -> LogLine:
    """Return a log line of attempt 1 of job ``number``."""
    values: dict[str, Any] = {
        "process_id": f"job-{number}-1",
        "seq": seq,
        "time": NOW + timedelta(seconds=seq),
        "line": text or f"line {seq}",
    }
    return LogLine(**(values | more))


async def until(condition: Callable[[], bool], timeout: float = WAIT) -> None:
    """Wait until ``condition`` holds."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - the condition is about a server, not about this loop
            await asyncio.sleep(0.005)
