"""The loop that moves the buffer into the database and outlives every outage."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from claudejobs.api.process_state import LogLine, ProcessState

from .breaker import Breaker
from .buffer import Buffer
from .database import Database
from .errors import PoisonError, SchemaMissingError, StoreError, StoreUnavailableError, TransientConflictError
from .merge import NULLABLE_COLUMNS

logger = logging.getLogger(__name__)

_CONFLICT_TRIES = 5
_SEEN_LIMIT = 100_000


class Writer:
    """Writes what is due, in batches; one at a time, so that order within this process is kept.

    Attributes:
        written_rows: rows that reached the database, equal ones that changed nothing included.
        poison_lines: log lines that the database can never take.
        last_error: why the database cannot be used, ``None`` while it can.
        since: when the state last changed between usable and not.
    """

    def __init__(
        self,
        buffer: Buffer,
        database: Database,
        breaker: Breaker,
        now: Callable[[], datetime],
    ) -> None:
        self._buffer, self._database, self._breaker, self._now = buffer, database, breaker, now
        self._wake = asyncio.Event()
        self._progress = asyncio.Event()
        self._hurry = 0
        self._migrated = False
        self._seen: set[str] = set()
        self.written_rows = 0
        self.poison_lines = 0
        self.last_error: str | None = None
        self.since = now()

    @property
    def healthy(self) -> bool:
        """Whether the schema is up to date and the last try to write succeeded."""
        return self._migrated and self._breaker.closed

    def wake(self) -> None:
        """Have the loop look at the buffer."""
        self._wake.set()

    async def flushed(self) -> None:
        """Return when all that is in the buffer now has been written."""
        ticket = self._buffer.last_ticket
        self._hurry += 1
        try:
            while (oldest := self._buffer.oldest_ticket()) is not None and oldest <= ticket:
                self._progress.clear()
                self._wake.set()
                await self._progress.wait()
        finally:
            self._hurry -= 1

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wait_until_due()
            try:
                await self._step()
            except StoreUnavailableError as error:
                await self._opened(error)
            except Exception as error:
                # A defect of ours; without its text, which may hold anything.
                logger.exception("the store's writer failed; it goes on")
                await self._opened(StoreUnavailableError(f"internal error {type(error).__name__}"))
            else:
                self._closed()
            self._progress.set()

    async def _wait_until_due(self) -> None:
        while True:
            # Cleared before looking, so that no call of wake() after the look is lost.
            self._wake.clear()
            if not self.healthy:
                await asyncio.sleep(self._breaker.wait())
                return
            due = self._buffer.due_in()
            if due is not None and (due == 0 or self._hurry):
                return
            try:
                # Not wait_for, which before Python 3.12 forgets that it was cancelled when the event is set just then.
                async with asyncio.timeout(due):
                    await self._wake.wait()
            except TimeoutError:
                return

    async def _step(self) -> None:
        if not self._migrated:
            await self._database.migrate()
            self._migrated, self.since = True, self._now()
        batch = self._buffer.take()
        try:
            if batch:
                await self._write(batch.rows, batch.lines)
            elif not self._breaker.closed:
                await self._database.ping()
        except BaseException:
            self._buffer.give_back()
            raise
        self._buffer.settle()

    async def _write(self, rows: Sequence[ProcessState], lines: Sequence[LogLine]) -> None:
        """Write, halving what the database refuses until only the poison is left out.

        Each part is a transaction of its own; the guards make it safe to write a part again.
        """
        try:
            await self._write_once(rows, lines)
        except PoisonError as error:
            if rows and lines:
                await self._write(rows, [])
                await self._write([], lines)
            elif max(len(rows), len(lines)) > 1:
                middle = max(len(rows), len(lines)) // 2
                await self._write(rows[:middle], lines[:middle])
                await self._write(rows[middle:], lines[middle:])
            elif rows:
                await self._rescue(rows[0], error)
            else:
                self.poison_lines += 1
                logger.error(
                    "log line %d of %s cannot be stored and is dropped: %s",
                    lines[0].seq,
                    lines[0].process_id,
                    error,
                )

    async def _write_once(self, rows: Sequence[ProcessState], lines: Sequence[LogLine]) -> None:
        fresh = {row.process_id for row in rows} - self._seen
        for attempt in range(1, _CONFLICT_TRIES + 1):
            try:
                await self._database.write(rows, lines, fresh, self._now())
                break
            except TransientConflictError as error:
                if attempt == _CONFLICT_TRIES:
                    raise StoreUnavailableError(str(error)) from None
                await asyncio.sleep(random.uniform(0, 0.02 * attempt))  # noqa: S311 - not a secret
        self.written_rows += len(rows)
        if len(self._seen) + len(fresh) > _SEEN_LIMIT:
            self._seen.clear()  # costs a needless look at the lines of the rows that come again
        self._seen |= fresh

    async def _rescue(self, row: ProcessState, error: PoisonError) -> None:
        """Find the column that makes ``row`` poison, and write the row without it."""
        candidates = [name for name in NULLABLE_COLUMNS if getattr(row, name) is not None]
        removals: list[tuple[dict[str, Any], str]] = [({name: None}, name) for name in candidates]
        if row.metadata:
            removals.append(({"metadata": {}}, "metadata"))
        removals.append(({**dict.fromkeys(candidates), "metadata": {}}, ", ".join(candidates)))
        for update, names in removals:
            try:
                await self._write_once([row.model_copy(update=update)], [])
            except PoisonError:
                continue
            logger.error("column %s of %s cannot be stored and is left out: %s", names, row.process_id, error)
            return
        logger.error(
            "row %s (status %s) cannot be stored and is dropped: one of the columns that it must have "
            "(job_uid, job_namespace, job_name, attempt, status, progress) is refused: %s",
            row.process_id,
            row.status,
            error,
        )

    async def _opened(self, error: StoreError) -> None:
        if isinstance(error, SchemaMissingError):
            self._migrated = False
        text = str(error)
        if self._breaker.failed():
            self.since = self._now()
        if text != self.last_error:  # once per cause, not once per probe
            logger.warning(
                "the database cannot be used; %d rows and %d log lines wait; next try in %.1f s: %s",
                self._buffer.row_count,
                self._buffer.line_count,
                self._breaker.wait(),
                text,
            )
        self.last_error = text
        await self._database.reset()

    def _closed(self) -> None:
        if self._breaker.succeeded():
            logger.info("the database can be used again after %s", self._now() - self.since)
            self.since = self._now()
        self.last_error = None
