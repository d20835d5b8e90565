"""Rows per second of the store's upsert against the ways it could have been done, in one run.

    python -m benchmarks.store_upserts [--rows 5000] [--repeat 5]

Run from the root of the checkout, with ``operator`` on PYTHONPATH. Every arm writes the same rows twice,
first new and then changed, on the same server, in an order that rotates. The rival is what a worker does
that writes each change on its own: one upsert and one commit per row. The floor is COPY into a temporary
table without any index, which no upsert can reach. The server runs with fsync off, which favours the rival:
with it on, each of its commits would wait for the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.dialects.postgresql.base import PGDialect

from claudejobs.api.process_state import ProcessState, ProcessStatus
from claudejobs.store import Store, StoreSettings, upgrade
from claudejobs.store.config import parse_url
from claudejobs.store.database import Database
from claudejobs.store.statements import ROW_COLUMNS, PostgresStatements, _json, _on_conflict, _row_values
from claudejobs.store.tables import process_states
from tests.integration.postgres import PostgresServer

BATCH = 500
Connection = psycopg.AsyncConnection[Any]
Arm = Callable[[Sequence[ProcessState]], Awaitable[int]]
"""Writes the rows and returns how many statements that took."""

_COLUMNS = ", ".join(ROW_COLUMNS)
_CONFLICT = _on_conflict("GREATEST", "IS DISTINCT FROM")
_NOW = datetime(2026, 1, 1, tzinfo=UTC)


def make_rows(count: int, status: ProcessStatus, progress: int) -> list[ProcessState]:
    """Return rows as the operator writes them."""
    return [
        ProcessState(
            process_id=f"0f8fad5b-d9cb-469f-a165-{number:012d}-1",
            task_id=f"task-{number}",
            user_id=f"user-{number % 100}",
            job_uid=f"0f8fad5b-d9cb-469f-a165-{number:012d}",
            job_namespace="jobs",
            job_name=f"job-{number}",
            attempt=1,
            status=status,
            start_time=_NOW,
            progress=progress,
            pod_name=f"job-{number}-1",
            node_name="node-1",
            session_id="0f8fad5b-d9cb-469f-a165-708677289501",
            model="claude-sonnet",
            num_turns=progress,
            cost_usd=progress / 100,
            metadata={"queue": "default", "labels": {"team": "a"}},
        )
        for number in range(count)
    ]


def batches(rows: Sequence[ProcessState], size: int = BATCH) -> list[Sequence[ProcessState]]:
    """Cut rows into batches."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def column_types() -> dict[str, str]:
    """Return the PostgreSQL type of every column that the upsert sets."""
    types = {c.name: str(c.type.compile(PGDialect())) for c in process_states.columns}
    return {name: types[name] for name in ROW_COLUMNS}


def single_insert() -> str:
    """Return the upsert of one row."""
    marks = ", ".join(f"%s::{kind}" for kind in column_types().values())
    return (
        f"INSERT INTO process_states AS t ({_COLUMNS}, logs, created_at, updated_at) "
        f"VALUES ({marks}, '{{}}', %s, %s) {_CONFLICT}"
    )


def values(row: ProcessState) -> list[Any]:
    """Return a row's values in the order of ``ROW_COLUMNS``."""
    return [_json(value) if isinstance(value, dict) else value for value in _row_values(row).values()]


class Rivals:
    """The ways of writing, each returning how many statements it took."""

    def __init__(self, connection: Connection, database: Database) -> None:
        self._connection, self._database = connection, database
        self._insert = single_insert()

    def arms(self) -> dict[str, Arm]:
        """Return every way by its name."""
        return {
            "per-row commit (rival)": self.per_row,
            "executemany": self.executemany,
            "multi-row VALUES": self.multi_values,
            "unnest of arrays": self.unnest,
            "json_to_recordset, bare psycopg": self.json_recordset,
            "json_to_recordset, store (chosen)": self.chosen,
            "COPY to temp table (floor)": self.copy_floor,
        }

    async def _run(self, sql: str, parameters: Sequence[Any]) -> None:
        async with self._connection.transaction():
            await self._connection.execute(sql, parameters)  # type: ignore[arg-type]

    async def per_row(self, rows: Sequence[ProcessState]) -> int:
        """One upsert and one commit for each row."""
        for row in rows:
            await self._run(self._insert, [*values(row), _NOW, _NOW])
        return len(rows)

    async def executemany(self, rows: Sequence[ProcessState]) -> int:
        """One upsert for each row, pipelined, and one commit for each batch."""
        for batch in batches(rows):
            async with self._connection.transaction(), self._connection.cursor() as cursor:
                await cursor.executemany(self._insert, [[*values(row), _NOW, _NOW] for row in batch])  # type: ignore[arg-type]
        return len(rows)

    async def multi_values(self, rows: Sequence[ProcessState]) -> int:
        """One upsert with a parameter for each value of a batch."""
        start = self._insert.index("(", self._insert.index("VALUES"))
        marks = self._insert[start : self._insert.index(" ON CONFLICT")]
        for batch in batches(rows):
            sql = self._insert.replace(marks, ", ".join([marks] * len(batch)))
            await self._run(sql, [value for row in batch for value in [*values(row), _NOW, _NOW]])
        return len(batches(rows))

    async def unnest(self, rows: Sequence[ProcessState]) -> int:
        """One upsert with an array for each column."""
        arrays = ", ".join(f"%s::{kind}[]" for kind in column_types().values())
        sql = (
            f"INSERT INTO process_states AS t ({_COLUMNS}, logs, created_at, updated_at) SELECT {_COLUMNS}, "
            f"'{{}}'::text[], now.at, now.at FROM unnest({arrays}) AS n({_COLUMNS}), "
            f"(SELECT %s::timestamptz AS at) AS now {_CONFLICT}"
        )
        for batch in batches(rows):
            columns = zip(*(values(row) for row in batch), strict=True)
            await self._run(sql, [*(list(column) for column in columns), _NOW])
        return len(batches(rows))

    async def json_recordset(self, rows: Sequence[ProcessState]) -> int:
        """The store's statement without the store around it."""
        statements = PostgresStatements()
        for batch in batches(rows):
            statement = statements.upsert_rows(batch, _NOW)
            await self._run(statement.sql, statement.parameters)
        return len(batches(rows))

    async def chosen(self, rows: Sequence[ProcessState]) -> int:
        """What the store does."""
        for batch in batches(rows):
            await self._database.write(batch, [], set(), _NOW)
        return len(batches(rows))

    async def copy_floor(self, rows: Sequence[ProcessState]) -> int:
        """COPY, with nothing to check and no index to keep."""
        async with self._connection.transaction():
            await self._connection.execute(
                f"CREATE TEMP TABLE floor ON COMMIT DROP AS SELECT {_COLUMNS} FROM process_states LIMIT 0"
            )
            async with (
                self._connection.cursor() as cursor,
                cursor.copy(f"COPY floor ({_COLUMNS}) FROM STDIN") as copy,
            ):
                for row in rows:
                    await copy.write_row(values(row))
        return 1


async def measure(url: str, count: int, repeat: int) -> dict[str, tuple[list[float], float]]:
    """Return, per arm, rows per second of each repetition, and statements per 1,000 rows."""
    database = Database(parse_url(url), StoreSettings())
    results: dict[str, tuple[list[float], float]] = {}
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        choices = list(Rivals(connection, database).arms().items())
        for round_ in range(repeat):
            for name, arm in choices[round_ % len(choices) :] + choices[: round_ % len(choices)]:
                # The slow rival gets fewer rows, so that the run stays short; its rate does not depend on it.
                size = count if "rival" not in name and name != "executemany" else max(200, count // 10)
                new = make_rows(size, ProcessStatus.STARTING, 0)
                changed = make_rows(size, ProcessStatus.RUNNING, 50)
                await connection.execute("TRUNCATE process_states")
                began = time.perf_counter()
                statements = await arm(new) + await arm(changed)
                rate = 2 * size / (time.perf_counter() - began)
                rates, _ = results.get(name, ([], 0.0))
                results[name] = ([*rates, rate], statements / (2 * size) * 1000)
    await database.close()
    return results


async def stalls(url: str, count: int) -> tuple[float, float, float]:
    """Return what ``Store`` does to its event loop under load: rows/s, p99 and maximum stall in ms."""
    rows = make_rows(count, ProcessStatus.COMPLETED, 100)
    late: list[float] = []

    async def tick() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            late.append((time.perf_counter() - began - 0.001) * 1000)

    store = Store(url)
    await store.start()
    await store.flush(10)
    ticker = asyncio.create_task(tick())
    began = time.perf_counter()
    for start in range(0, count, 50):
        for row in rows[start : start + 50]:
            store.put(row)
        await asyncio.sleep(0)
    await store.flush(30)
    rate = count / (time.perf_counter() - began)
    ticker.cancel()
    await store.stop()
    return rate, statistics.quantiles(late, n=100)[-1], max(late)


async def main(url: str, count: int, repeat: int) -> None:
    """Measure and print."""
    await upgrade(url)
    results = await measure(url, count, repeat)
    medians = {name: statistics.median(rates) for name, (rates, _) in results.items()}
    rival = next(rate for name, rate in medians.items() if "rival" in name)
    floor = next(rate for name, rate in medians.items() if "floor" in name)
    print(f"{'arm':<34}{'rows/s':>9}{'range':>18}{'x rival':>9}{'of floor':>10}{'stmts/1000':>12}")
    for name, (rates, statements) in results.items():
        spread = f"{min(rates):,.0f}-{max(rates):,.0f}"
        rate = medians[name]
        print(f"{name:<34}{rate:>9,.0f}{spread:>18}{rate / rival:>9.1f}{rate / floor:>10.2f}{statements:>12.1f}")
    rate, p99, worst = await stalls(url, count)
    print(f"\nStore.put to flush: {rate:,.0f} rows/s; event loop late p99 {p99:.1f} ms, max {worst:.1f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--repeat", type=int, default=5)
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="claudejobs-bench-"))
    server = PostgresServer(folder)
    try:
        asyncio.run(main(server.url(server.create_database()), chosen.rows, chosen.repeat))
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
