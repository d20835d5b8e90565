"""The store while its database is away, hung, locked, full, read-only or dies, and when it is back."""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event

from claudejobs.store import Store, StoreSettings, StoreUnavailableError
from claudejobs.store.config import parse_url
from claudejobs.store.database import Database
from tests.integration.postgres import PASSWORD, PostgresServer
from tests.integration.test_store_support import NOW, SETTINGS, WAIT, Db, line, migrated, state, until

Errors = Callable[[], list[str]]

# A fault that the server itself raises, on every write while there is a row in `faults`.
FAULTS = """
CREATE TABLE faults (code text);
CREATE SEQUENCE fault_count;
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE wanted text;
BEGIN
    SELECT code INTO wanted FROM faults;
    IF wanted IS NOT NULL AND nextval('fault_count') <= 3 THEN
        RAISE EXCEPTION 'fault' USING ERRCODE = wanted;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON process_states FOR EACH ROW EXECUTE FUNCTION fail();
"""

# Notes every row that left a terminal status, whoever made it do so.
WITNESS = """
CREATE TABLE violations (process_id text, old text, new text);
CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO violations VALUES (OLD.process_id, OLD.status, NEW.status);
    RETURN NEW;
END $$;
CREATE TRIGGER witness AFTER UPDATE ON process_states FOR EACH ROW
WHEN (OLD.status IN ('completed', 'failed', 'cancelled') AND OLD.status <> NEW.status)
EXECUTE FUNCTION witness();
"""


@pytest.fixture
def server(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    """The server, which is brought back whatever the test did to it."""
    yield postgres_server
    postgres_server.resume()
    postgres_server.start()


def run_script(server: PostgresServer, db: Db, script: str) -> None:
    with server.admin(db.url.rsplit("/", 1)[1]) as admin:
        admin.execute("SET ROLE app")
        admin.execute(script)


async def degraded(store: Store) -> str:
    await until(lambda: store.health.state == "degraded" and store.health.last_error is not None)
    return store.health.last_error or ""


async def test_a_server_that_is_away_at_the_start(server: PostgresServer, postgres_db: Db) -> None:
    server.stop()
    began = time.monotonic()
    async with postgres_db.store() as store:
        store.put(state(1))
        store.append_logs([line(1)])
        assert time.monotonic() - began < 0.5
        assert "refused" in await degraded(store)
        with pytest.raises(StoreUnavailableError, match="refused"):
            await store.open_attempts()
        with pytest.raises(TimeoutError, match="1 rows and 1 log lines"):
            await store.flush(0.1)
        server.start()
        await store.flush(WAIT)
        assert (store.health.state, store.health.last_error) == ("ok", None)
    assert (await postgres_db.rows())["job-1-1"]["logs"] == ["line 1"]


async def test_what_happens_during_an_outage_is_written_after_it(
    server: PostgresServer, postgres_db: Db, store_errors: Errors
) -> None:
    async with postgres_db.store() as store:
        for number in range(1000):
            store.put(state(number, "starting"))
        await store.flush(WAIT)
        server.stop()
        for number in range(1000):
            store.put(state(number, progress=50))
            store.append_logs([line(1, number)])
        await degraded(store)
        for number in range(1000):
            store.put(state(number, "completed", progress=100))
        assert (store.health.pending_rows, store.health.pending_log_lines) == (1000, 1000)
        server.start()
        await store.flush(WAIT)
    rows = await postgres_db.rows()
    assert {(row["status"], row["progress"], *row["logs"]) for row in rows.values()} == {("completed", 100, "line 1")}
    # Said once per cause, however many probes there were.
    assert 1 <= len(store_errors()) <= 4


async def test_a_hung_server_holds_nothing_up(
    server: PostgresServer, postgres_db: Db, caplog: pytest.LogCaptureFixture
) -> None:
    async with postgres_db.store() as store:
        store.put(state(1, "starting"))
        await store.flush(WAIT)
        server.pause()
        late: list[float] = []

        async def tick() -> None:
            while True:
                began = time.monotonic()
                await asyncio.sleep(0.01)
                late.append(time.monotonic() - began)

        ticking = asyncio.create_task(tick())
        began = time.monotonic()
        store.put(state(1, "completed"))
        await degraded(store)
        # connect_timeout + statement_timeout = 3 s, and the grace of giving up.
        assert time.monotonic() - began < 5
        assert "no answer" in (store.health.last_error or "")
        server.resume()
        await store.flush(WAIT)
        ticking.cancel()
        assert max(late) < 0.5
    assert (await postgres_db.rows())["job-1-1"]["status"] == "completed"


async def test_stopping_while_the_server_hangs_is_bounded(
    server: PostgresServer, postgres_db: Db, store_errors: Errors
) -> None:
    store = Store(postgres_db.url, settings=SETTINGS)
    await store.start()
    await store.flush(WAIT)
    await until(lambda: store.health.state == "ok")
    server.pause()
    store.put(state(1))
    began = time.monotonic()
    await store.stop(timeout=0.2)
    assert time.monotonic() - began < 3
    assert "1 rows" in store_errors()[-1]
    server.resume()


async def test_a_wrong_password_and_then_the_right_one(
    server: PostgresServer, postgres_db: Db, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wanted = "n3w/p@ss wörd"
    with server.admin() as admin:
        admin.execute("DROP ROLE IF EXISTS rotated")
        admin.execute("CREATE ROLE rotated LOGIN PASSWORD 'old' IN ROLE app INHERIT")
    url = server.url(postgres_db.url.rsplit("/", 1)[1], "rotated", wanted)
    await migrated(postgres_db)
    store = Store(url, settings=SETTINGS)
    await store.start()
    store.put(state(1))
    assert "password authentication failed" in await degraded(store)
    with server.admin() as admin:
        admin.execute(f"ALTER ROLE rotated PASSWORD '{wanted}'")
    await store.flush(WAIT)
    seen = caplog.text + repr(store) + str(store.health) + repr(vars(store))
    await store.stop()
    for secret in (wanted, url.split(":")[2].split("@")[0], PASSWORD):
        assert secret not in seen
    assert list(await postgres_db.rows()) == ["job-1-1"]


async def test_a_server_that_became_read_only(server: PostgresServer, postgres_db: Db) -> None:
    name = postgres_db.url.rsplit("/", 1)[1]
    async with postgres_db.store() as store:
        store.put(state(1))
        await store.flush(WAIT)
        with server.admin() as admin:
            admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        store.put(state(2))
        await until(lambda: "read-only" in (store.health.last_error or ""))
        with server.admin() as admin:
            admin.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await store.flush(WAIT)
    assert len(await postgres_db.rows()) == 2


@pytest.mark.parametrize(("code", "shows"), [("53100", True), ("40P01", False), ("40001", False)])
async def test_disk_full_opens_the_breaker_and_deadlocks_are_tried_again(
    server: PostgresServer, postgres_db: Db, code: str, shows: bool, store_errors: Errors
) -> None:
    await migrated(postgres_db)
    run_script(server, postgres_db, FAULTS)
    await postgres_db.run(f"INSERT INTO faults VALUES ('{code}')")
    async with postgres_db.store() as store:
        for number in range(20):
            store.put(state(number))
        await store.flush(WAIT)
    assert bool(store_errors()) is shows
    assert len(await postgres_db.rows()) == 20


async def test_rows_survive_kills_under_load(server: PostgresServer, postgres_db: Db) -> None:
    """The server is killed twice in the middle of writes; two operators write; nothing is lost or goes back."""
    await migrated(postgres_db)
    run_script(server, postgres_db, WITNESS)
    jobs, lines = 150, 20
    async with postgres_db.store() as one, postgres_db.store() as two:

        async def operate(store: Store, seed: int) -> None:
            order = random.Random(seed)
            steps = [(number, step) for number in range(jobs) for step in range(lines + 1)]
            order.shuffle(steps)
            for count, (number, step) in enumerate(steps):
                done = step == lines
                status = ("completed" if seed == 1 else "failed") if done else "running"
                store.put(state(number, status, progress=step * 5, end_time=NOW if done else None))
                if not done:
                    store.append_logs([line(step + 1, number)])
                if count % 10 == 0:
                    await asyncio.sleep(0.001)

        async def kill() -> None:
            for target in (300, 600):
                await until(lambda target=target: one.health.written_rows > target)
                await asyncio.to_thread(server.kill)
                await degraded(one)
                await asyncio.to_thread(server.start)

        await asyncio.gather(operate(one, 1), operate(two, 2), kill())
        await asyncio.gather(one.flush(WAIT), two.flush(WAIT))
        assert one.health.state == two.health.state == "ok"
    rows = await postgres_db.rows()
    assert len(rows) == jobs
    for row in rows.values():
        assert row["status"] in ("completed", "failed")
        assert row["end_time"] == NOW
        assert row["logs"] == [f"line {seq}" for seq in range(1, lines + 1)]
    assert await postgres_db.run("SELECT * FROM violations") == []
    assert await postgres_db.run("SELECT count(*) AS n FROM process_logs") == [{"n": jobs * lines}]


async def test_memory_is_bounded_while_the_server_is_away(
    server: PostgresServer, postgres_db: Db, store_errors: Errors
) -> None:
    settings = replace(SETTINGS, max_log_bytes=200_000, max_rows=50)
    server.stop()
    async with postgres_db.store(settings) as store:
        for seq in range(1, 1001):
            store.append_logs([line(seq, text="x" * 1000)])
            store.put(state(seq))
        health = store.health
        assert health.pending_log_lines + health.dropped_log_lines == 1000
        assert 100 < health.pending_log_lines <= 200
        assert (health.pending_rows, health.dropped_rows) == (50, 950)
        server.start()
        await store.flush(WAIT)
        found = await store.log_lines("job-1-1")
    # The oldest were dropped, and the newest are all there.
    assert [kept.seq for kept in found] == list(range(1001 - len(found), 1001))
    assert "job-1000-1" in await postgres_db.rows()
    assert any("dropped so far" in error for error in store_errors())


async def test_a_locked_sqlite_file(tmp_path: Any) -> None:
    db = await migrated(Db("sqlite", f"sqlite:///{tmp_path}/store.db"))
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with db.store(replace(SETTINGS, statement_timeout=0.1)) as store:
        store.put(state(1))
        assert "locked" in await degraded(store)
        other.execute("ROLLBACK")
        other.close()
        await store.flush(WAIT)
    assert list(await db.rows()) == ["job-1-1"]


async def test_readers_do_not_wait_for_a_writer_of_the_sqlite_file(tmp_path: Any) -> None:
    db = await migrated(Db("sqlite", f"sqlite:///{tmp_path}/store.db"))
    async with db.store() as store:
        store.put(state(1))
        await store.flush(WAIT)
        other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert len(await store.open_attempts()) == 1
        other.close()


async def test_a_full_disk_under_the_sqlite_file(tmp_path: Any) -> None:
    db = await migrated(Db("sqlite", f"sqlite:///{tmp_path}/store.db"))
    full = True
    store = Store(db.url, settings=SETTINGS)

    @event.listens_for(store._database._engine.sync_engine, "connect")
    def limit(connection: Any, _record: Any) -> None:
        if full:
            cursor = connection.cursor()
            cursor.execute("PRAGMA max_page_count = 20")
            cursor.close()

    await store.start()
    for number in range(500):
        store.put(state(number, error="x" * 500))
    assert "full" in await degraded(store)
    full = False
    await store.flush(WAIT)
    await store.stop()
    assert len(await db.rows()) == 500


def sqlite_threads() -> int:
    return sum("_connection_worker" in thread.name for thread in threading.enumerate())


async def test_cancelled_callers_leave_no_lock_and_no_thread(tmp_path: Any) -> None:
    db = await migrated(Db("sqlite", f"sqlite:///{tmp_path}/store.db"))
    await until(lambda: sqlite_threads() == 0)
    database = Database(parse_url(db.url), SETTINGS)
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        writing = asyncio.create_task(database.write([state(1)], [], set(), NOW))
        await until(lambda: sqlite_threads() == 1)
        await asyncio.sleep(0.1)  # the thread waits for the lock now, which nothing shows
        writing.cancel()
        # Longer than anybody is patient with a cancelled PostgreSQL connection, shorter than busy_timeout.
        await asyncio.wait({writing}, timeout=0.6)
        assert not writing.done()
        other.execute("ROLLBACK")
        await asyncio.wait({writing})
        await database.write([state(1, "completed")], [], set(), NOW)
    finally:
        other.close()
        await database.close()
    await until(lambda: sqlite_threads() == 0)
    assert (await db.rows())["job-1-1"]["status"] == "completed"


async def test_a_password_in_a_driver_error_is_not_passed_on(postgres_db: Db) -> None:
    database = Database(parse_url(postgres_db.url), SETTINGS)

    async def fail() -> None:
        raise OSError(f"cannot connect to {postgres_db.url} with {PASSWORD}")

    with pytest.raises(StoreUnavailableError) as caught:
        await database._translated(fail())
    assert PASSWORD not in str(caught.value)
    assert str(caught.value).count("***") == 2


def test_default_settings_bound_a_hang_to_seconds() -> None:
    settings = StoreSettings()
    assert settings.connect_timeout + settings.statement_timeout <= 8
