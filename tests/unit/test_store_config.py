"""Database URLs as people have them, errors as the store sorts them, and no password anywhere."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError, OperationalError

from claudejobs.api.process_state import LogLine
from claudejobs.store import Store, StoreConfigError, StoreUnavailableError
from claudejobs.store.clean import MAX_LINE_CHARS, clean_json, clean_line, clean_text
from claudejobs.store.config import parse_url
from claudejobs.store.errors import (
    PoisonError,
    SchemaMissingError,
    StoreError,
    TransientConflictError,
    classify,
    describe,
)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p%40ss@h:5433/d", {"user": "u", "password": "p@ss", "host": "h", "port": "5433"}),
        ("postgres://u@h/d", {"user": "u", "dbname": "d"}),
        ("postgresql+psycopg://u@h/d?sslmode=require", {"sslmode": "require"}),
        ("postgresql+asyncpg://u@h/d", {"host": "h"}),
        ("postgresql://u@h1:1,h2:2/d?target_session_attrs=read-write", {"host": "h1,h2", "port": "1,2"}),
        ("postgresql://u@/d?host=/run/postgresql", {"host": "/run/postgresql"}),
        ("postgresql://u@h/d?schema=jobs&connection_limit=9", {"options": "-c search_path=jobs"}),
        ("postgresql://u@h/d?options=-c%20a%3Db&schema=s", {"options": "-c a=b -c search_path=s"}),
    ],
)
def test_postgresql_urls(url: str, expected: dict[str, Any]) -> None:
    connect = parse_url(url).connect
    assert {name: connect.get(name) for name in expected} == expected
    assert not {"schema", "connection_limit", "pgbouncer"} & set(connect)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:pa@secret@h/d",
        "postgresql://u:pa/secret@h/d",
        "postgresql://u:pa#secret@h/d",
        "postgresql://u:secret@h:port/d",
        "postgresql://u:secret@h/d?no_such_option=1",
        "mysql://u:secret@h/d",
        "u:secret@h/d",
        "secret",
        "",
        "sqlite://",
        "sqlite:///:memory:",
    ],
)
def test_urls_that_cannot_work_are_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(StoreConfigError) as caught:
        Store(url)
    assert "secret" not in str(caught.value)
    assert "postgresql://user:password@host" in str(caught.value)
    assert caught.value.__cause__ is None


def test_sqlite_urls(tmp_path: Path) -> None:
    assert parse_url(f"sqlite:///{tmp_path}/a%20b.db").connect["database"] == f"{tmp_path}/a b.db"
    assert parse_url("sqlite+aiosqlite:///relative.db").connect["database"] == "relative.db"


def test_no_password_is_shown() -> None:
    target = parse_url("postgresql://u:p%40ss%2F@h/d")
    assert "p@ss" not in repr(target) + repr(Store("postgresql://u:p%40ss%2F@h/d"))
    assert target.redact("a p@ss/ b p%40ss%2F c password=other d") == "a *** b *** c password=*** d"


def driver_error(kind: type[psycopg.Error]) -> DBAPIError:
    return DBAPIError("INSERT secret", {"row": "secret"}, kind("text\n of it"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (driver_error(psycopg.errors.DeadlockDetected), TransientConflictError),
        (driver_error(psycopg.errors.SerializationFailure), TransientConflictError),
        (driver_error(psycopg.errors.NumericValueOutOfRange), PoisonError),
        (driver_error(psycopg.errors.CheckViolation), PoisonError),
        (driver_error(psycopg.errors.ProgramLimitExceeded), PoisonError),
        (driver_error(psycopg.DataError), PoisonError),
        (driver_error(psycopg.errors.UndefinedTable), SchemaMissingError),
        (driver_error(psycopg.errors.DiskFull), StoreUnavailableError),
        (driver_error(psycopg.errors.ReadOnlySqlTransaction), StoreUnavailableError),
        (driver_error(psycopg.errors.QueryCanceled), StoreUnavailableError),
        (driver_error(psycopg.errors.AdminShutdown), StoreUnavailableError),
        (driver_error(psycopg.errors.InsufficientPrivilege), StoreUnavailableError),
        (driver_error(psycopg.OperationalError), StoreUnavailableError),
        (OperationalError("", {}, sqlite3.OperationalError("database is locked")), StoreUnavailableError),
        (OperationalError("", {}, sqlite3.OperationalError("no such table: x")), SchemaMissingError),
        (sqlite3.IntegrityError("CHECK"), PoisonError),
        (OverflowError("int too large"), PoisonError),
        (ConnectionRefusedError(), StoreUnavailableError),
        (TimeoutError(), StoreUnavailableError),
        (RuntimeError("a defect"), StoreUnavailableError),
    ],
)
def test_errors_are_sorted_by_what_can_be_done(error: Exception, expected: type[StoreError]) -> None:
    assert classify(error) is expected


def test_a_description_has_no_sql_and_no_values() -> None:
    assert describe(driver_error(psycopg.errors.DiskFull)) == "DiskFull: text of it"
    assert describe(TimeoutError()) == "TimeoutError: no answer in time"
    assert describe(ConnectionResetError()) == "ConnectionResetError"


def test_text_and_json_are_made_storable() -> None:
    assert clean_text("a\x00b\udfffc\U0001f600") == "abc\U0001f600"
    kept = "as it is é"
    assert clean_text(kept) is kept
    assert clean_json({"\x00k": [1, "\x00", float("-inf"), {"n": None}], 2: (True,)}) == {
        "k": [1, "", None, {"n": None}],
        "2": [True],
    }


def test_a_long_line_is_cut() -> None:
    line = LogLine(process_id="a", seq=1, time=datetime(2026, 1, 1, tzinfo=UTC), line="x" * 300_000)
    assert len(clean_line(line).line) == MAX_LINE_CHARS
