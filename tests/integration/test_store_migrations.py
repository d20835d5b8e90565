"""The schema: it comes up on both databases, agrees with the tables, and respects what is not ours."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, select

from claudejobs.store import SchemaConflictError, Store, StoreConfigError, StoreSettings, upgrade
from claudejobs.store.config import build_engine, parse_url
from claudejobs.store.schema import VERSION_TABLE, downgrade_connection
from claudejobs.store.tables import metadata, task_states
from tests.integration.test_store_support import NOW, WAIT, Db, migrated, state, until


async def on_connection(db: Db, work: Any) -> Any:
    engine = build_engine(parse_url(db.url), StoreSettings())
    async with engine.begin() as connection:
        result = await connection.run_sync(work)
    await engine.dispose()
    return result


def differences(connection: Connection) -> list[Any]:
    options = {"version_table": VERSION_TABLE, "compare_type": True, "compare_server_default": True}
    return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)


async def test_migrations_and_tables_agree(db: Db) -> None:
    await migrated(db)
    assert await on_connection(db, differences) == []


async def test_downgrade_removes_everything_and_upgrade_brings_it_back(db: Db) -> None:
    await migrated(db)
    await on_connection(db, downgrade_connection)
    kinds = {d[0] for d in await on_connection(db, differences)}
    assert kinds >= {"add_table"}
    await upgrade(db.url)
    assert await on_connection(db, differences) == []
    assert await db.run(select(task_states)) == []


async def test_operators_that_start_together_migrate_once(db: Db) -> None:
    await asyncio.gather(*(upgrade(db.url) for _ in range(5)))
    assert await db.run(f"SELECT version_num FROM {VERSION_TABLE}") == [{"version_num": "0001"}]


@pytest.mark.parametrize("table", ["process_states", "process_logs", "task_states"])
async def test_a_table_of_someone_else_is_named_and_left_alone(db: Db, table: str) -> None:
    await db.run(f"CREATE TABLE {table} (id integer)")
    with pytest.raises(SchemaConflictError) as caught:
        await upgrade(db.url)
    assert table in str(caught.value)
    assert "?schema=" in str(caught.value)
    assert await db.run(f"SELECT * FROM {table}") == []


async def test_the_store_waits_for_a_conflict_to_be_solved(db: Db) -> None:
    await db.run("CREATE TABLE process_logs (id integer)")
    async with db.store() as store:
        store.put(state())
        await until(lambda: "process_logs" in (store.health.last_error or ""))
        await db.run("DROP TABLE process_logs")
        await store.flush(WAIT)
    assert list(await db.rows()) == ["job-1-1"]


async def test_a_newer_schema_is_refused_with_what_to_do(db: Db) -> None:
    await migrated(db)
    await db.run(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(SchemaConflictError, match=r"9999.*newer version"):
        await upgrade(db.url)


async def test_a_schema_in_the_url_is_honoured(postgres_db: Db) -> None:
    await postgres_db.run("CREATE TABLE process_states (theirs integer)")
    await postgres_db.run("CREATE SCHEMA claudejobs")
    ours = Db("postgresql", postgres_db.url + "?schema=claudejobs&connection_limit=5")
    async with ours.store() as store:
        store.put(state())
        await store.flush(WAIT)
    assert len(await postgres_db.run("SELECT process_id FROM claudejobs.process_states")) == 1


async def test_a_pooler_gets_no_session_settings(postgres_db: Db) -> None:
    pooled = Db("postgresql", postgres_db.url + "?pgbouncer=true")
    async with pooled.store() as store:
        store.put(state())
        await store.flush(WAIT)
    assert await pooled.run("SHOW statement_timeout") == [{"statement_timeout": "0"}]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreConfigError, match=r"absent.*does not exist"):
        Store(f"sqlite:///{tmp_path}/absent/store.db")


async def test_a_dropped_table_is_made_again(db: Db) -> None:
    async with db.store() as store:
        store.put(state(1))
        await store.flush(WAIT)
        # What a database restored from an older, empty copy looks like.
        for statement in ("DROP VIEW task_states", "DROP TABLE process_states", "DROP TABLE process_logs"):
            await db.run(statement)
        await db.run(f"DROP TABLE {VERSION_TABLE}")
        store.put(state(2))
        await store.flush(WAIT)
    assert list(await db.rows()) == ["job-2-1"]


async def test_the_view_shows_the_newest_attempt_of_the_newest_job(db: Db) -> None:
    def attempt(job: int, number: int, minute: int, task: str = "t") -> Any:
        return state(
            job,
            "failed",
            process_id=f"job-{job}-{number}",
            attempt=number,
            task_id=task,
            start_time=NOW + timedelta(minutes=minute),
        )

    async with db.store() as store:
        # Task t was submitted twice. The first job retries after the second one began.
        for row in (attempt(1, 1, 0), attempt(2, 1, 5), attempt(2, 2, 7), attempt(1, 2, 9)):
            store.put(row)
        store.put(attempt(3, 1, 0, "other"))
        store.put(state(4))  # no task: not in the view
        await store.flush(WAIT)
    shown = await db.run(select(task_states).order_by(task_states.c.task_id))
    assert [(row["task_id"], row["process_id"]) for row in shown] == [("other", "job-3-1"), ("t", "job-2-2")]
    assert shown[0]["start_time"] == NOW


async def test_a_reader_of_one_task_does_not_compute_the_whole_view(postgres_db: Db) -> None:
    await migrated(postgres_db)
    plan = await postgres_db.run(
        "EXPLAIN SELECT * FROM task_states WHERE task_id = 't'"  # the index on a table that is never analysed
    )
    assert "process_states_task_id_idx" in str(plan)
