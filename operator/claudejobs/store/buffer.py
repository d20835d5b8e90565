"""What waits to be written: the newest state per attempt and a bounded queue of log lines. No I/O."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from claudejobs.api.process_state import LogLine, ProcessState

from .config import StoreSettings
from .merge import merge

_LINE_OVERHEAD = 400
"""Bytes that a LogLine costs besides its text, roughly; so that empty lines are bounded too."""


def line_bytes(line: LogLine) -> int:
    """Return about how much memory ``line`` takes."""
    return len(line.line) + _LINE_OVERHEAD


@dataclass
class _PendingRow:
    row: ProcessState
    ticket: int
    since: float


@dataclass
class _PendingLine:
    line: LogLine
    ticket: int
    since: float


@dataclass
class Batch:
    """What was taken out to be written together."""

    pending_rows: list[_PendingRow] = field(default_factory=list)
    pending_lines: list[_PendingLine] = field(default_factory=list)

    @property
    def rows(self) -> list[ProcessState]:
        """The rows, one per attempt."""
        return [pending.row for pending in self.pending_rows]

    @property
    def lines(self) -> list[LogLine]:
        """The log lines, in the order of their arrival."""
        return [pending.line for pending in self.pending_lines]

    def __bool__(self) -> bool:
        return bool(self.pending_rows or self.pending_lines)


class Buffer:
    """Coalesces rows, bounds everything, and numbers what arrives so that a flush knows when to end."""

    def __init__(self, settings: StoreSettings, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._monotonic = settings, monotonic
        self._rows: dict[str, _PendingRow] = {}
        self._lines: deque[_PendingLine] = deque()
        self._taken = Batch()
        self._line_bytes = 0  # taken ones included: they are still in memory
        self.last_ticket = 0
        self.dropped_rows = 0
        self.dropped_lines = 0

    @property
    def row_count(self) -> int:
        """Rows not yet written."""
        return len(self._rows) + len(self._taken.pending_rows)

    @property
    def line_count(self) -> int:
        """Log lines not yet written."""
        return len(self._lines) + len(self._taken.pending_lines)

    @property
    def line_bytes(self) -> int:
        """About how many bytes the log lines not yet written take."""
        return self._line_bytes

    def pending(self, process_id: str) -> ProcessState | None:
        """Return the state of an attempt that waits to be written."""
        waiting = self._rows.get(process_id)
        return waiting.row if waiting else None

    def holds(self, process_id: str) -> bool:
        """Whether a state of an attempt waits to be written, or is being written."""
        return process_id in self._rows or any(p.row.process_id == process_id for p in self._taken.pending_rows)

    def put(self, row: ProcessState) -> None:
        """Add or merge a row. It keeps the place of the one it is merged with."""
        self.last_ticket += 1
        waiting = self._rows.get(row.process_id)
        if waiting is not None:
            waiting.row = merge(waiting.row, row)
            return
        self._rows[row.process_id] = _PendingRow(row, self.last_ticket, self._monotonic())
        while len(self._rows) > self._settings.max_rows:
            del self._rows[next(iter(self._rows))]
            self.dropped_rows += 1

    def append(self, lines: Iterable[LogLine]) -> int:
        """Add log lines; return how many older ones were dropped for them."""
        self.last_ticket += 1
        now = self._monotonic()
        for line in lines:
            self._lines.append(_PendingLine(line, self.last_ticket, now))
            self._line_bytes += line_bytes(line)
        return self._drop_oldest_lines()

    def _drop_oldest_lines(self) -> int:
        dropped = 0
        while self._line_bytes > self._settings.max_log_bytes and self._lines:
            self._line_bytes -= line_bytes(self._lines.popleft().line)
            dropped += 1
        self.dropped_lines += dropped
        return dropped

    def due_in(self) -> float | None:
        """Return the seconds until something should be written: 0 for now, ``None`` for nothing to write."""
        if len(self._rows) >= self._settings.batch_rows or len(self._lines) >= self._settings.batch_lines:
            return 0.0
        due = []
        if self._rows:
            due.append(next(iter(self._rows.values())).since + self._settings.linger)
        if self._lines:
            due.append(self._lines[0].since + self._settings.log_linger)
        return max(0.0, min(due) - self._monotonic()) if due else None

    def take(self) -> Batch:
        """Take out the oldest, as many as a batch may have; ``settle`` or ``give_back`` must follow."""
        batch = Batch()
        for process_id in list(self._rows)[: self._settings.batch_rows]:
            batch.pending_rows.append(self._rows.pop(process_id))
        room = self._settings.batch_bytes
        while self._lines and len(batch.pending_lines) < self._settings.batch_lines and room > 0:
            batch.pending_lines.append(self._lines.popleft())
            room -= line_bytes(batch.pending_lines[-1].line)
        self._taken = batch
        return batch

    def settle(self) -> None:
        """Forget the batch that was taken: it is written, or can never be."""
        self._line_bytes -= sum(line_bytes(line) for line in self._taken.lines)
        self._taken = Batch()

    def give_back(self) -> None:
        """Put the batch that was taken back to the front, under what has come since."""
        front = {pending.row.process_id: pending for pending in self._taken.pending_rows}
        for process_id, newer in self._rows.items():
            older = front.get(process_id)
            if older is None:
                front[process_id] = newer
            else:
                older.row = merge(older.row, newer.row)
        self._rows = front
        self._lines.extendleft(reversed(self._taken.pending_lines))
        self._taken = Batch()
        self._drop_oldest_lines()

    def oldest_ticket(self) -> int | None:
        """Return the number of the oldest arrival that is not written yet; ``None`` when all is."""
        tickets = [p.ticket for p in self._taken.pending_rows] + [p.ticket for p in self._taken.pending_lines[:1]]
        # Rows and lines each wait in the order of their tickets.
        tickets += [pending.ticket for pending in list(self._rows.values())[:1]]
        tickets += [self._lines[0].ticket] if self._lines else []
        return min(tickets, default=None)
