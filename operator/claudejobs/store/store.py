"""The store as the rest of the operator sees it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from claudejobs.api.process_state import LogLine, ProcessState

from .breaker import Breaker
from .buffer import Buffer
from .clean import clean_line, clean_row
from .config import StoreSettings, parse_url
from .database import Database, LastLog, OpenAttempt
from .errors import StoreUnavailableError
from .writer import Writer

logger = logging.getLogger(__name__)

__all__ = ["LastLog", "OpenAttempt", "Store", "StoreHealth"]

_WARN_EVERY = 10.0  # seconds between two warnings about dropped rows or lines


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class StoreHealth:
    """How the store is.

    Attributes:
        state: ``degraded`` while the database cannot be used, or the schema is not up to date yet.
        since: when ``state`` began.
        last_error: why it is degraded; without any password.
        pending_rows: attempts whose newest state waits in memory.
        pending_log_lines: log lines that wait in memory.
        dropped_rows: rows dropped because too many waited.
        dropped_log_lines: lines dropped because too many waited, or because the database can never take them.
        written_rows: rows written since the start.
        statements: statements sent since the start.
    """

    state: Literal["ok", "degraded"]
    since: datetime
    last_error: str | None
    pending_rows: int
    pending_log_lines: int
    dropped_rows: int
    dropped_log_lines: int
    written_rows: int
    statements: int


class Store:
    """Mirrors attempts into a database without ever making its callers wait for it.

    All methods belong to the event loop that ``start`` was called on; none is safe from other threads.

    Args:
        url: ``postgresql://…`` as libpq, SQLAlchemy or Prisma write it (``?schema=`` is honoured), or
            ``sqlite:////absolute/path``.
        settings: bounds and timeouts.
        clock: the time for ``created_at`` and ``updated_at``, aware.

    Raises:
        StoreConfigError: the URL can never work, or the folder of the SQLite file does not exist.
    """

    def __init__(
        self,
        url: str,
        *,
        settings: StoreSettings | None = None,
        clock: Callable[[], datetime] = _utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        settings = settings or StoreSettings()
        self._target = parse_url(url)
        self._buffer = Buffer(settings, monotonic)
        self._breaker = Breaker(settings.backoff_initial, settings.backoff_max, monotonic=monotonic)
        self._database = Database(self._target, settings)
        self._writer = Writer(self._buffer, self._database, self._breaker, clock)
        self._settings, self._monotonic = settings, monotonic
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._warned_at = -_WARN_EVERY
        self._warned_dropped = 0

    def __repr__(self) -> str:
        return f"<Store {self._target.display}>"

    async def start(self) -> None:
        """Start writing in the background, migrations first. Returns at once, database or no database."""
        if self._task is None and not self._stopped:
            self._task = asyncio.create_task(self._writer.run(), name="store-writer")

    def put(self, row: ProcessState) -> None:
        """Have ``row`` written soon, merged with what waits for the same attempt (see ``merge``).

        Never blocks and never fails because of the database. May be called before ``start``.
        """
        self._buffer.put(clean_row(row))
        self._wake()

    def waits(self, process_id: str) -> bool:
        """Whether a state of this attempt is in memory only."""
        return self._buffer.holds(process_id)

    def append_logs(self, lines: Iterable[LogLine]) -> None:
        """Have ``lines`` written soon, in any order; a line already written changes nothing.

        Never blocks. Beyond ``settings.max_log_bytes`` the oldest waiting lines are dropped and counted.
        """
        self._buffer.append(clean_line(line) for line in lines)
        self._wake()

    async def flush(self, timeout: float | None = None) -> None:
        """Return when all that was put before this call is written.

        Raises:
            TimeoutError: not all of it was within ``timeout`` seconds; it stays in memory and is
                written later.
        """
        try:
            await asyncio.wait_for(self._writer.flushed(), timeout)
        except TimeoutError:
            raise TimeoutError(
                f"{self._buffer.row_count} rows and {self._buffer.line_count} log lines are still not "
                f"written after {timeout} s: {self._writer.last_error or 'the database is slow'}"
            ) from None

    async def open_attempts(self) -> list[OpenAttempt]:
        """Return the attempts whose rows are not terminal, neither in the database nor in memory.

        Raises:
            StoreUnavailableError: the database cannot be used now.
        """
        self._check_usable()
        return [
            attempt
            for attempt in await self._database.open_attempts()
            if not ((row := self._buffer.pending(attempt.process_id)) and row.status.terminal)
        ]

    async def last_log(self, process_id: str) -> LastLog | None:
        """Return where an attempt's lines in the database end; None when it has none.

        Raises:
            StoreUnavailableError: the database cannot be used now. Following from the first line is safe as long as
                the log was not rotated: lines that are there already are not written twice.
        """
        self._check_usable()
        return await self._database.last_log(process_id)

    async def log_lines(self, process_id: str, after: int = 0, limit: int = 1000) -> list[LogLine]:
        """Return up to ``limit`` lines of an attempt numbered above ``after``, in order.

        Raises:
            StoreUnavailableError: the database cannot be used now.
        """
        self._check_usable()
        return await self._database.log_lines(process_id, after, limit)

    async def rows(self, equal: Mapping[str, str], limit: int = 100) -> list[dict[str, Any]]:
        """Return up to ``limit`` rows of ``process_states`` whose columns have these values, the newest first.

        Raises:
            StoreUnavailableError: the database cannot be used now.
        """
        self._check_usable()
        return await self._database.rows(equal, limit)

    @property
    def health(self) -> StoreHealth:
        """How the store is now; costs nothing."""
        return StoreHealth(
            state="ok" if self._writer.healthy else "degraded",
            since=self._writer.since,
            last_error=self._writer.last_error,
            pending_rows=self._buffer.row_count,
            pending_log_lines=self._buffer.line_count,
            dropped_rows=self._buffer.dropped_rows,
            dropped_log_lines=self._buffer.dropped_lines + self._writer.poison_lines,
            written_rows=self._writer.written_rows,
            statements=self._database.statement_count,
        )

    async def stop(self, timeout: float = 5.0) -> None:
        """Write what waits, for at most ``timeout`` seconds, then close; log what could not be written."""
        self._stopped = True
        if self._task is not None:
            try:
                await self.flush(timeout)
            except TimeoutError as error:
                logger.error("the store stops with unwritten state, which is lost with this process: %s", error)
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self._database.close()

    def _check_usable(self) -> None:
        # Fail at once rather than after the timeouts; the writer is the one who probes.
        if not self._breaker.closed:
            raise StoreUnavailableError(f"the database cannot be used: {self._writer.last_error}")

    def _wake(self) -> None:
        self._writer.wake()
        dropped = self._buffer.dropped_lines + self._buffer.dropped_rows
        if dropped > self._warned_dropped and self._monotonic() - self._warned_at >= _WARN_EVERY:
            self._warned_at, self._warned_dropped = self._monotonic(), dropped
            logger.warning(
                "dropped so far because the database does not take them fast enough: %d log lines (more than "
                "%d bytes waited), %d rows (more than %d waited)",
                self._buffer.dropped_lines,
                self._settings.max_log_bytes,
                self._buffer.dropped_rows,
                self._settings.max_rows,
            )
