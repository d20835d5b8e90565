"""Transactions on the database, each bounded in time, with errors reduced to the store's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from claudejobs.api.process_state import LogLine, ProcessState, ProcessStatus

from .config import READ_ONLY, StoreSettings, Target, build_engine
from .errors import StoreError, StoreUnavailableError, classify, describe
from .schema import upgrade_engine
from .statements import Statement, statements_for
from .tables import process_logs, process_states
from .waiting import within

T = TypeVar("T")

_OPEN = [status.value for status in ProcessStatus if not status.terminal]


class LastLog(NamedTuple):
    """Where the stored lines of an attempt end.

    Attributes:
        seq: number of the last line.
        time: its time, in microseconds.
        same_time: how many lines have that very time, the last one included.
    """

    seq: int
    time: datetime
    same_time: int


class OpenAttempt(NamedTuple):
    """An attempt whose row is not terminal."""

    process_id: str
    job_uid: str
    job_namespace: str
    job_name: str
    attempt: int


class Database:
    """What the store does with its database.

    Every method raises ``StoreUnavailableError`` when the database cannot be used now, within the connect
    and statement timeouts of the settings; ``write`` may also raise ``TransientConflictError`` or
    ``PoisonError``.
    """

    def __init__(self, target: Target, settings: StoreSettings) -> None:
        self._target, self._settings = target, settings
        self._engine = build_engine(target, settings)
        self._statements = statements_for(target.dialect)
        self.statement_count = 0

    async def migrate(self) -> None:
        """Bring the schema up to date."""
        await self._translated(upgrade_engine(self._engine, self._target, self._settings))

    async def ping(self) -> None:
        """Ask the server for a sign of life."""

        async def ask(connection: AsyncConnection) -> None:
            await connection.exec_driver_sql("SELECT 1")

        await self._read(ask)

    async def write(
        self, rows: Sequence[ProcessState], lines: Sequence[LogLine], fresh: set[str], now: datetime
    ) -> None:
        """Write rows and lines in one transaction.

        Args:
            rows: of distinct attempts.
            lines: any; those that are there already are left alone.
            fresh: attempts among ``rows`` whose lines may have been written before their row.
            now: for ``created_at`` and ``updated_at``.
        """

        async def run() -> None:
            steps = self._steps(rows, lines, fresh, now)
            async with self._engine.begin() as connection:
                for step in steps:
                    self.statement_count += 1
                    await connection.exec_driver_sql(step.sql, step.parameters)

        await self._translated(within(self._limit, run(), self._target.dialect))

    def _steps(
        self, rows: Sequence[ProcessState], lines: Sequence[LogLine], fresh: set[str], now: datetime
    ) -> list[Statement]:
        statements = self._statements
        with_lines = {line.process_id for line in lines}
        steps: list[Statement | None] = []
        if rows:
            steps.append(statements.upsert_rows(rows, now))
        if lines:
            steps.append(statements.insert_lines(lines))
            steps.append(statements.lock_rows(with_lines))
        if with_lines or fresh:
            steps.append(statements.refresh_tails(with_lines | fresh, now))
        return [step for step in steps if step is not None]

    async def open_attempts(self, page: int = 1000) -> list[OpenAttempt]:
        """Return all attempts whose rows are not terminal, read page by page."""
        columns = [process_states.c[name] for name in OpenAttempt._fields]
        found: list[OpenAttempt] = []
        while True:
            query = select(*columns).where(process_states.c.status.in_(_OPEN))
            if found:
                query = query.where(process_states.c.process_id > found[-1].process_id)
            query = query.order_by(process_states.c.process_id).limit(page)

            async def ask(connection: AsyncConnection, query=query) -> list[OpenAttempt]:  # type: ignore[no-untyped-def]
                return [OpenAttempt(*row) for row in await connection.execute(query)]

            rows = await self._read(ask)
            found.extend(rows)
            if len(rows) < page:
                return found

    async def last_log(self, process_id: str) -> LastLog | None:
        """Return where an attempt's lines end; None when it has none."""
        mine = process_logs.c.process_id == process_id
        newest = (
            select(process_logs.c.seq, process_logs.c.time).where(mine).order_by(process_logs.c.seq.desc()).limit(1)
        )

        async def ask(connection: AsyncConnection) -> LastLog | None:
            row = (await connection.execute(newest)).first()
            if row is None:
                return None
            same = select(func.count()).where(
                mine, process_logs.c.seq > row.seq - 1000, process_logs.c.time == row.time
            )
            return LastLog(row.seq, row.time, (await connection.execute(same)).scalar_one())

        return await self._read(ask)

    async def log_lines(self, process_id: str, after: int, limit: int) -> list[LogLine]:
        """Return up to ``limit`` lines numbered above ``after``, in order."""
        query = (
            select(process_logs)
            .where(process_logs.c.process_id == process_id, process_logs.c.seq > after)
            .order_by(process_logs.c.seq)
            .limit(limit)
        )

        async def ask(connection: AsyncConnection) -> list[LogLine]:
            return [LogLine(**row) for row in (await connection.execute(query)).mappings()]

        return await self._read(ask)

    async def rows(self, equal: Mapping[str, str], limit: int) -> list[dict[str, Any]]:
        """Return up to ``limit`` rows whose columns have these values, the newest first."""
        query = select(process_states).order_by(process_states.c.created_at.desc()).limit(limit)
        for column, value in equal.items():
            query = query.where(process_states.c[column] == value)

        async def ask(connection: AsyncConnection) -> list[dict[str, Any]]:
            return [dict(row) for row in (await connection.execute(query)).mappings()]

        return await self._read(ask)

    async def reset(self) -> None:
        """Close the idle connections, so that the next try looks up and reaches the server anew."""
        await self._engine.dispose()

    async def close(self) -> None:
        """Close everything."""
        await self._engine.dispose()

    @property
    def _limit(self) -> float:
        return self._settings.connect_timeout + self._settings.statement_timeout

    async def _read(self, ask: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        async def run() -> T:
            async with self._engine.connect() as connection:
                await connection.execution_options(**{READ_ONLY: True})
                self.statement_count += 1
                return await ask(connection)

        return await self._translated(within(self._limit, run(), self._target.dialect))

    async def _translated(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except StoreError:
            raise
        except Exception as error:
            kind = StoreUnavailableError if isinstance(error, TimeoutError) else classify(error)
            # Without the driver's error as cause: a traceback would show it, unredacted.
            raise kind(self._target.redact(describe(error))) from None
