"""Settings, the database URL in the forms that people have it, and the engine made from it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, event
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from .errors import StoreConfigError

READ_ONLY = "claudejobs_read_only"
"""Execution option of a connection that only reads: on SQLite it then takes no write lock."""

_PRISMA_ONLY = {"connection_limit", "pool_timeout", "socket_timeout", "statement_cache_size", "sslaccept"}
_ALLOWED = "postgresql://user:password@host:5432/database or sqlite:////absolute/path/file.db"


@dataclass(frozen=True)
class StoreSettings:
    """How the store batches, waits and bounds itself.

    Attributes:
        linger: seconds that a row may wait for others to share its statement.
        log_linger: the same for log lines; longer, since each batch rewrites the row's ``logs``.
        batch_rows: most rows in one statement.
        batch_lines: most log lines in one statement.
        batch_bytes: most bytes of log lines in one statement.
        max_rows: most attempts kept in memory while the database is away; the oldest are dropped beyond it.
        max_log_bytes: most bytes of log lines kept in memory; the oldest are dropped beyond it.
        connect_timeout: seconds for reaching the server.
        statement_timeout: seconds for one transaction, after which the connection is given up.
        migrate_timeout: seconds for bringing the schema up to date, waiting for other operators included.
        backoff_initial: seconds before the first probe of a database that failed; doubled each time.
        backoff_max: most seconds between two probes.
    """

    linger: float = 0.05
    log_linger: float = 0.25
    batch_rows: int = 500
    batch_lines: int = 2000
    batch_bytes: int = 4 * 1024 * 1024
    max_rows: int = 100_000
    max_log_bytes: int = 64 * 1024 * 1024
    connect_timeout: float = 3.0
    statement_timeout: float = 5.0
    migrate_timeout: float = 60.0
    backoff_initial: float = 0.2
    backoff_max: float = 15.0


@dataclass(frozen=True)
class Target:
    """A parsed database URL.

    Attributes:
        dialect: ``postgresql`` or ``sqlite``.
        display: the URL for people, without its password.
        connect: keyword arguments for the driver.
        pgbouncer: a transaction pooler is in between: no session settings, no prepared statements.
    """

    dialect: str
    display: str
    connect: dict[str, Any] = field(repr=False)
    pgbouncer: bool = False
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def redact(self, text: str) -> str:
        """Return ``text`` without this target's password, however it is encoded."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return re.sub(r"(password\s*=\s*)('[^']*'|\S+)", r"\1***", text, flags=re.IGNORECASE)


def parse_url(url: str) -> Target:
    """Parse a database URL as libpq, SQLAlchemy or Prisma write it.

    Raises:
        StoreConfigError: not a URL that the store can use; the message does not repeat the URL, since a
            password with unescaped characters could be anywhere in it.
    """
    scheme = url.split(":", 1)[0].split("+", 1)[0]
    if scheme == "sqlite":
        return _parse_sqlite(url)
    if scheme in ("postgresql", "postgres") and "://" in url:
        return _parse_postgres(url)
    shown = scheme if re.fullmatch(r"[a-z][a-z0-9.-]{0,20}", scheme) and "://" in url else "no scheme"
    raise StoreConfigError(f"the database URL has {shown!r} where postgresql or sqlite is needed: {_ALLOWED}")


def _parse_sqlite(url: str) -> Target:
    # sqlite:///relative, sqlite:////absolute, as SQLAlchemy writes them.
    path = unquote(url.partition(":///")[2].partition("?")[0])
    if not path or path == ":memory:":
        raise StoreConfigError(f"the SQLite URL names no file, which the store needs: {_ALLOWED}")
    if not Path(path).parent.is_dir():
        raise StoreConfigError(
            f"the folder {Path(path).parent} of the SQLite file {path} does not exist: create it, "
            "or mount a volume there"
        )
    return Target("sqlite", f"sqlite:///{path}", {"database": path})


def _parse_postgres(url: str) -> Target:
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    schema, pgbouncer = query.pop("schema", ""), query.pop("pgbouncer", "false") == "true"
    query = {key: value for key, value in query.items() if key not in _PRISMA_ONLY}
    plain = urlunsplit(("postgresql", parts.netloc, parts.path, urlencode(query, quote_via=quote), ""))
    try:
        connect: dict[str, Any] = dict(conninfo_to_dict(plain))
    except psycopg.Error:
        connect = {"host": "@"}
    # A special character left as it is makes the rest of the password part of the host, port or database
    # name, to be shown in every error.
    shifted = "@" in f"{connect.get('host', '')}{connect.get('dbname', '')}" or parts.fragment
    if shifted or not re.fullmatch(r"[\d,]*", str(connect.get("port", ""))):
        raise StoreConfigError(
            "the PostgreSQL URL cannot be read: percent-encode special characters in user and password "
            f"(@ is %40, / is %2F, # is %23), and use the form {_ALLOWED}"
        )
    if schema:
        connect["options"] = f"{connect.get('options', '')} -c search_path={schema}".strip()
    password = str(connect.get("password") or "")
    secrets = tuple({password, quote(password, safe="")}) if password else ()
    display = "postgresql://{}@{}:{}/{}".format(
        connect.get("user", ""),
        connect.get("host", ""),
        connect.get("port", ""),
        connect.get("dbname", ""),
    )
    return Target("postgresql", display, connect, pgbouncer, secrets)


def build_engine(target: Target, settings: StoreSettings, *, statement_timeout: float | None = None) -> AsyncEngine:
    """Return an engine of at most a few connections; nothing is connected yet."""
    timeout = settings.statement_timeout if statement_timeout is None else statement_timeout
    if target.dialect == "sqlite":
        return _sqlite_engine(target, timeout)
    connect = dict(target.connect)
    connect.setdefault("connect_timeout", max(2, round(settings.connect_timeout)))  # libpq's least is 2
    connect.setdefault("application_name", "claudejobs")
    if target.pgbouncer:
        connect["prepare_threshold"] = None
    else:
        millis = int(timeout * 1000)
        # The server ends what we no longer wait for, so that no lock of ours outlives us.
        limits = f"-c statement_timeout={millis} -c idle_in_transaction_session_timeout={2 * millis}"
        connect["options"] = f"{connect.get('options', '')} {limits}".strip()
    return create_async_engine(
        URL.create("postgresql+psycopg"),
        connect_args=connect,
        hide_parameters=True,
        pool_size=2,
        max_overflow=2,
        pool_timeout=settings.connect_timeout,
    )


def _sqlite_engine(target: Target, timeout: float) -> AsyncEngine:
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=target.connect["database"]),
        connect_args={"timeout": timeout, "isolation_level": None},
        hide_parameters=True,
        pool_size=2,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        limit = f"busy_timeout={int(timeout * 1000)}"
        for pragma in (limit, "synchronous=NORMAL", "foreign_keys=ON", "journal_mode=WAL"):
            try:
                cursor.execute(f"PRAGMA {pragma}")
            except Exception as error:
                # Two connections that switch a new file to WAL meet without busy_timeout. The mode stays in
                # the file, so it is enough that one of them succeeds, or whoever connects next.
                if "WAL" not in pragma or "locked" not in str(error):
                    raise
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that reads first and writes later can fail with SQLITE_BUSY at once, busy_timeout or
        # not; so whoever may write takes the write lock at the start.
        reading = connection.get_execution_options().get(READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine
