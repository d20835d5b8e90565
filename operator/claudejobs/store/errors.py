"""What can go wrong with the database, reduced to what the writer can do about it."""

from __future__ import annotations

import sqlite3

import psycopg
from sqlalchemy.exc import DBAPIError


class StoreError(Exception):
    """Base of the store's errors. Messages never contain a password."""


class StoreConfigError(StoreError, ValueError):
    """The database URL or a setting can never work as it is."""


class StoreUnavailableError(StoreError):
    """The database cannot be used now: away, hung, read-only, full or refusing us. Trying later may work."""


class SchemaMissingError(StoreUnavailableError):
    """The tables are gone (dropped, or another database answers now): migrations must run again."""


class SchemaConflictError(StoreUnavailableError):
    """The schema holds what our migrations did not make. Goes away only when a person acts."""


class TransientConflictError(StoreError):
    """A deadlock or serialisation failure: the same transaction may succeed at once."""


class PoisonError(StoreError):
    """The database refuses the values themselves: the same transaction can never succeed."""


_CONFLICT_STATES = {"40001", "40P01", "55P03"}  # serialisation, deadlock, lock timeout
_MISSING_STATES = {"42P01", "42703", "3F000"}  # no such table, column, schema
_POISON_CLASSES = {"22", "23", "54"}  # bad data, constraint, a limit such as an index entry's size
_VALUE_ERRORS = (OverflowError, UnicodeError, TypeError, ValueError)
_SQLITE_POISON = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
)


def classify(error: Exception) -> type[StoreError]:
    """Return the class of ours that says what can be done about ``error``.

    Anything unknown counts as unavailable: rows are kept and tried again rather than dropped.
    """
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    # SQLAlchemy's asyncio adapters re-raise under classes of their own; the driver's error is the cause.
    original = cause if isinstance(cause, psycopg.Error | sqlite3.Error) else cause.__cause__ or cause
    if isinstance(original, psycopg.Error):
        return _classify_postgres(original)
    if isinstance(original, sqlite3.Error):
        return _classify_sqlite(original)
    return PoisonError if isinstance(original, _VALUE_ERRORS) else StoreUnavailableError


def _classify_postgres(error: psycopg.Error) -> type[StoreError]:
    state = error.sqlstate or ""
    if state in _CONFLICT_STATES:
        return TransientConflictError
    if state in _MISSING_STATES:
        return SchemaMissingError
    # psycopg raises DataError without a state for what it cannot even send.
    if state[:2] in _POISON_CLASSES or (isinstance(error, psycopg.DataError) and not state):
        return PoisonError
    return StoreUnavailableError


def _classify_sqlite(error: sqlite3.Error) -> type[StoreError]:
    text = str(error)
    if "no such table" in text or "no such column" in text:
        return SchemaMissingError
    return PoisonError if isinstance(error, _SQLITE_POISON) else StoreUnavailableError


def describe(error: BaseException) -> str:
    """Return a one-line description without SQL or parameters (rows hold prompts and results)."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    text = " ".join(str(cause).split())
    if isinstance(error, TimeoutError) and not text:
        text = "no answer in time"
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__
