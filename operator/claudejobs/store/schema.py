"""Brings the database's schema up to date, safely with several operators at once."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect
from sqlalchemy.ext.asyncio import AsyncEngine

from .config import READ_ONLY, StoreSettings, Target, build_engine, parse_url
from .errors import SchemaConflictError, classify, describe
from .waiting import within

VERSION_TABLE = "claudejobs_schema_version"
"""Where Alembic keeps the revision. A name of our own: the database may have another Alembic's table."""

_LOCK = 0x636C6A6F62  # any number that nobody else uses for an advisory lock
_OURS = ("process_states", "process_logs", "task_states")


async def upgrade(url: str, settings: StoreSettings | None = None) -> None:
    """Create or update the tables; nothing happens when they are up to date.

    Raises:
        StoreConfigError: the URL cannot be used.
        SchemaConflictError: a table of ours exists but is not ours, or a newer version made the schema.
        StoreUnavailableError: the database cannot be used now.
    """
    settings = settings or StoreSettings()
    target = parse_url(url)
    engine = build_engine(target, settings)
    try:
        await upgrade_engine(engine, target, settings)
    except (SchemaConflictError, OSError):
        raise
    except Exception as error:
        raise classify(error)(target.redact(describe(error))) from None
    finally:
        await engine.dispose()


async def upgrade_engine(engine: AsyncEngine, target: Target, settings: StoreSettings) -> None:
    """Do the work of ``upgrade``, raising the driver's own errors.

    A look at the revision, with the short timeouts, comes first: it finds an absent or hung server soon, and
    most starts end there. The migrations themselves get a connection with the long timeout.
    """
    head = ScriptDirectory.from_config(_config()).get_current_head()
    limit = settings.connect_timeout + settings.statement_timeout
    if await within(limit, _revision(engine), target.dialect) == head:
        return
    slow = build_engine(target, settings, statement_timeout=settings.migrate_timeout)
    try:
        await within(settings.migrate_timeout, _migrate(slow), target.dialect)
    finally:
        await slow.dispose()


async def _revision(engine: AsyncEngine) -> str | None:
    async with engine.connect() as connection:
        await connection.execution_options(**{READ_ONLY: True})
        return await connection.run_sync(_current_revision)


async def _migrate(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:  # on SQLite this takes the write lock
        if connection.dialect.name == "postgresql":
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        await connection.run_sync(_upgrade_connection)


def _upgrade_connection(connection: Connection) -> None:
    revision = _current_revision(connection)
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision is None:
        _refuse_foreign_tables(connection)
    elif revision not in known:
        raise SchemaConflictError(
            f"the schema is at revision {revision}, which this version does not know (it knows "
            f"{', '.join(sorted(known))}): a newer version has been here. Run that version or a later one"
        )
    command.upgrade(_config(connection), "head")


def downgrade_connection(connection: Connection, revision: str = "base") -> None:
    """Go back to ``revision`` on an open connection; ``base`` drops everything. For tests and repairs."""
    command.downgrade(_config(connection), revision)


def _refuse_foreign_tables(connection: Connection) -> None:
    inspector = inspect(connection)
    present = {*inspector.get_table_names(), *inspector.get_view_names()}
    taken = [name for name in _OURS if name in present]
    if taken:
        raise SchemaConflictError(
            f"{', '.join(taken)} already exists in this schema and was not made by claudejobs (there is no "
            f"table {VERSION_TABLE}); nothing was changed. Let claudejobs own its tables: give it a schema "
            "of its own (CREATE SCHEMA claudejobs, then add ?schema=claudejobs to the URL), or rename the "
            "existing table. Prisma can read the tables, but must not create them"
        )


def _current_revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
