# ruff: noqa: S608 - every part of the SQL is a constant of this package; values are parameters
"""The SQL, written once per dialect from one description of the columns.

The guards (terminal rows are frozen, rank and progress never go down, null replaces nothing) are in the
statements themselves, so that they hold for any order of writes and for two operators at once. ``merge.py``
is the same rule in Python.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.dialects.postgresql.base import PGDialect

from claudejobs.api.process_state import MAX_ROW_LOG_LINES, LogLine, ProcessState, ProcessStatus

from .merge import IDENTITY_COLUMNS, NULLABLE_COLUMNS
from .tables import process_states

TAIL_LINE_CHARS = 1000
"""Longest line in a row's ``logs``: bounds the row at about 200 KB. ``process_logs`` has it whole."""

ROW_COLUMNS = (*IDENTITY_COLUMNS, *NULLABLE_COLUMNS, "status", "progress", "metadata")
LOG_COLUMNS = ("process_id", "seq", "time", "stream", "line")

_TERMINAL = ", ".join(f"'{status}'" for status in ProcessStatus if status.terminal)


@dataclass(frozen=True)
class Statement:
    """SQL for ``exec_driver_sql`` and its parameters."""

    sql: str
    parameters: tuple[Any, ...]


def _rank(status: str) -> str:
    cases = " ".join(f"WHEN '{status}' THEN {status.rank}" for status in ProcessStatus)
    return f"CASE {status} {cases} END"


def _on_conflict(greatest: str, differs: str) -> str:
    merged = {name: f"COALESCE(excluded.{name}, t.{name})" for name in NULLABLE_COLUMNS}
    merged["status"] = (
        f"CASE WHEN {_rank('excluded.status')} >= {_rank('t.status')} THEN excluded.status ELSE t.status END"
    )
    merged["progress"] = f"{greatest}(excluded.progress, t.progress)"
    merged["metadata"] = "CASE WHEN excluded.metadata = '{}' THEN t.metadata ELSE excluded.metadata END"
    assignments = ", ".join(f"{name} = {value}" for name, value in merged.items())
    return (
        f"ON CONFLICT (process_id) DO UPDATE SET {assignments}, "
        f"updated_at = {greatest}(excluded.updated_at, t.updated_at) "
        f"WHERE t.status NOT IN ({_TERMINAL}) "
        f"AND ({', '.join(merged.values())}) {differs} ({', '.join(f't.{name}' for name in merged)})"
    )


class PostgresStatements:
    """One statement per batch, with the batch as one JSON document, so that its text never varies.

    Measured (``benchmarks/store_upserts.py``): faster than arrays with unnest, which psycopg builds in
    Python, and than multi-row VALUES, which have 20 parameters for each row.
    """

    def __init__(self) -> None:
        dialect = PGDialect()  # type: ignore[no-untyped-call]
        types = {c.name: c.type.compile(dialect) for c in process_states.columns}
        columns = ", ".join(ROW_COLUMNS)
        typed = ", ".join(f"{name} {types[name]}" for name in ROW_COLUMNS)
        self._upsert = (
            f"INSERT INTO process_states AS t ({columns}, logs, created_at, updated_at) "
            f"SELECT {columns}, '{{}}'::text[], now.at, now.at "
            f"FROM json_to_recordset(%s::json) AS n({typed}), (SELECT %s::timestamptz AS at) AS now "
            + _on_conflict("GREATEST", "IS DISTINCT FROM")
        )

    def upsert_rows(self, rows: Sequence[ProcessState], now: datetime) -> Statement:
        """Insert or merge rows of distinct attempts, sorted so that two writers lock in one order."""
        ordered = sorted(rows, key=lambda row: row.process_id)
        return Statement(self._upsert, (_json([_row_values(row) for row in ordered]), now))

    def insert_lines(self, lines: Sequence[LogLine]) -> Statement:
        """Insert the lines that are not there yet."""
        ordered = sorted(lines, key=lambda line: (line.process_id, line.seq))
        document = _json([{name: getattr(line, name) for name in LOG_COLUMNS} for line in ordered])
        return Statement(
            "INSERT INTO process_logs (process_id, seq, time, stream, line) SELECT * FROM "
            "json_to_recordset(%s::json) AS n(process_id text, seq bigint, time timestamptz, stream text, "
            "line text) ON CONFLICT DO NOTHING",
            (document,),
        )

    def lock_rows(self, process_ids: Iterable[str]) -> Statement | None:
        """Lock rows before their tails are read.

        A statement sees what was committed before it began. Without the lock, two writers that add lines to
        one attempt would each write a tail without the other's lines.
        """
        return Statement(
            "SELECT 1 FROM process_states WHERE process_id = ANY(%s) ORDER BY process_id FOR NO KEY UPDATE",
            (sorted(process_ids),),
        )

    def refresh_tails(self, process_ids: Iterable[str], now: datetime) -> Statement:
        """Set ``logs`` to the newest lines in ``process_logs``."""
        return Statement(
            "UPDATE process_states AS t SET logs = tail.lines, updated_at = GREATEST(t.updated_at, %s) "
            "FROM unnest(%s::text[]) AS wanted(process_id) CROSS JOIN LATERAL ("
            f"SELECT array_agg(left(newest.line, {TAIL_LINE_CHARS}) ORDER BY newest.seq) AS lines FROM ("
            "SELECT l.seq, l.line FROM process_logs AS l WHERE l.process_id = wanted.process_id "
            f"ORDER BY l.seq DESC LIMIT {MAX_ROW_LOG_LINES}) AS newest) AS tail "
            "WHERE t.process_id = wanted.process_id AND tail.lines IS NOT NULL "
            "AND t.logs IS DISTINCT FROM tail.lines",
            (now, sorted(process_ids)),
        )


class SqliteStatements:
    """One statement per batch, as multi-row VALUES.

    Not one run per row: each run gives the interpreter's lock away and waits to get it back, up to 5 ms
    behind a busy event loop. Not JSON: SQLite may round a number from text differently than Python does.
    """

    def __init__(self) -> None:
        self._insert = f"INSERT INTO process_states AS t ({', '.join(ROW_COLUMNS)}, logs, created_at, updated_at)"
        self._on_conflict = _on_conflict("max", "IS NOT")

    def upsert_rows(self, rows: Sequence[ProcessState], now: datetime) -> Statement:
        """Insert or merge rows of distinct attempts."""
        at = _sqlite_value(now)
        marks = f"({'?, ' * len(ROW_COLUMNS)}'[]', ?, ?)"
        values = [_sqlite_value(v) for row in rows for v in (*_row_values(row).values(), at, at)]
        sql = f"{self._insert} VALUES {', '.join([marks] * len(rows))} {self._on_conflict}"
        return Statement(sql, tuple(values))

    def insert_lines(self, lines: Sequence[LogLine]) -> Statement:
        """Insert the lines that are not there yet."""
        marks = ", ".join(["(?, ?, ?, ?, ?)"] * len(lines))
        return Statement(
            f"INSERT INTO process_logs ({', '.join(LOG_COLUMNS)}) VALUES {marks} ON CONFLICT DO NOTHING",
            tuple(_sqlite_value(getattr(line, name)) for line in lines for name in LOG_COLUMNS),
        )

    def lock_rows(self, _process_ids: Iterable[str]) -> Statement | None:
        """Nothing: a writing transaction has the whole file."""
        return None

    def refresh_tails(self, process_ids: Iterable[str], now: datetime) -> Statement:
        """Set ``logs`` to the newest lines in ``process_logs``."""
        return Statement(
            "UPDATE process_states AS t SET logs = tail.lines, updated_at = max(t.updated_at, ?) FROM ("
            "SELECT wanted.value AS process_id, ("
            f"SELECT json_group_array(substr(line, 1, {TAIL_LINE_CHARS})) FROM ("
            "SELECT line FROM (SELECT seq, line FROM process_logs WHERE process_id = wanted.value "
            f"ORDER BY seq DESC LIMIT {MAX_ROW_LOG_LINES}) ORDER BY seq)) AS lines "
            "FROM json_each(?) AS wanted) AS tail "
            "WHERE t.process_id = tail.process_id AND tail.lines <> '[]' AND t.logs IS NOT tail.lines",
            (_sqlite_value(now), _json(sorted(process_ids))),
        )


Statements = PostgresStatements | SqliteStatements


def statements_for(dialect: str) -> Statements:
    """Return the statements of ``postgresql`` or ``sqlite``."""
    return PostgresStatements() if dialect == "postgresql" else SqliteStatements()


def _row_values(row: ProcessState) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in ROW_COLUMNS}
    # The drivers do not know our enums; they are plain text.
    values["status"] = row.status.value
    values["error_category"] = None if row.error_category is None else row.error_category.value
    return values


def _json(value: Any) -> str:
    # Sorted, so that equal metadata is equal text, which is how SQLite compares it. No NaN: it is not JSON.
    return json.dumps(value, default=_plain, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _sqlite_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime(_SQLITE_TIME)
    return _json(value) if isinstance(value, dict) else value


_SQLITE_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
"""As ``tables.Timestamp`` reads it."""
