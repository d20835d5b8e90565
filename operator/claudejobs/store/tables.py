"""The tables as the readers see them. The migrations create them; a test keeps the two equal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    column,
    table,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import JSON, TypeDecorator, TypeEngine

from claudejobs.api.process_state import ProcessStatus

SQLITE_TIMESTAMP = "%(year)04d-%(month)02d-%(day)02dT%(hour)02d:%(minute)02d:%(second)02d.%(microsecond)06dZ"
_SQLITE_TIMESTAMP_RE = r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)\.(\d{6})Z"


class Timestamp(TypeDecorator[datetime]):
    """``timestamptz``; on SQLite, RFC 3339 text in UTC of a fixed width, so that it sorts as time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Pick the column type of the dialect."""
        if dialect.name == "sqlite":
            return sqlite.DATETIME(  # type: ignore[no-untyped-call]
                storage_format=SQLITE_TIMESTAMP, regexp=_SQLITE_TIMESTAMP_RE
            )
        return DateTime(timezone=True)

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Send UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Return aware times in UTC."""
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


_JSON = JSON().with_variant(postgresql.JSONB(), "postgresql")
_LINES = JSON().with_variant(postgresql.ARRAY(Text), "postgresql")
_STATUSES = ", ".join(f"'{status}'" for status in ProcessStatus)

metadata = MetaData()

process_states = Table(
    "process_states",
    metadata,
    Column("process_id", Text, primary_key=True),
    Column("task_id", Text),
    Column("user_id", Text),
    Column("job_uid", Text, nullable=False),
    Column("job_namespace", Text, nullable=False),
    Column("job_name", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("start_time", Timestamp),
    Column("end_time", Timestamp),
    Column("progress", Integer, nullable=False),
    Column("logs", _LINES, nullable=False),
    Column("error", Text),
    Column("error_category", Text),
    Column("pod_name", Text),
    Column("node_name", Text),
    Column("session_id", Text),
    Column("model", Text),
    Column("num_turns", Integer),
    Column("cost_usd", Double),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("metadata", _JSON, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("updated_at", Timestamp, nullable=False),
    CheckConstraint(f"status IN ({_STATUSES})", name="process_states_status_check"),
    CheckConstraint("progress BETWEEN 0 AND 100", name="process_states_progress_check"),
    # Readers ask: the attempts of a task; a user's newest; what is in a state; what changed since.
    Index("process_states_task_id_idx", "task_id"),
    Index("process_states_user_id_updated_at_idx", "user_id", "updated_at"),
    Index("process_states_status_updated_at_idx", "status", "updated_at"),
    Index("process_states_updated_at_idx", "updated_at"),
)

# No foreign key: a line may be written before its row (two streams of events feed the two tables), and a
# line is worth keeping even when its row could not be stored.
process_logs = Table(
    "process_logs",
    metadata,
    Column("process_id", Text, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("time", Timestamp, nullable=False),
    Column("stream", Text, nullable=False),
    Column("line", Text, nullable=False),
)

task_states = table("task_states", *(column(c.name, c.type) for c in process_states.columns))
"""View: per task id, the newest attempt of the newest job, every column of ``process_states``.

The newest job is the one whose first attempt started last. A task id that was submitted twice as two jobs
therefore shows the second submission, even while the first one is still retrying.
"""
