"""The store on a database that works: batches, logs, bounds, and rows that it cannot take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from claudejobs.api.process_state import MAX_ROW_LOG_LINES
from claudejobs.store import OpenAttempt, Store, StoreSettings
from claudejobs.store.statements import TAIL_LINE_CHARS
from tests.integration.test_store_support import NOW, SETTINGS, WAIT, Db, line, migrated, state, until

Errors = Callable[[], list[str]]


async def test_what_is_put_is_there_after_a_flush(db: Db) -> None:
    row = state(1, start_time=NOW, cost_usd=0.1, metadata={"queue": "a"}, task_id="t", progress=7)
    async with db.store(clock=lambda: NOW) as store:
        store.put(row)
        await store.flush(WAIT)
        health = store.health
    expected = {**row.model_dump(), "logs": [], "created_at": NOW, "updated_at": NOW}
    assert (await db.rows())["job-1-1"] == expected
    assert (health.state, health.last_error, health.pending_rows, health.written_rows) == ("ok", None, 0, 1)


async def test_states_of_one_attempt_are_coalesced_and_many_share_a_statement(db: Db) -> None:
    await migrated(db)
    async with db.store() as store:
        await store.flush(WAIT)
        await until(lambda: store.health.state == "ok")
        before = store.health.statements
        for progress in range(10):
            for number in range(400):
                store.put(state(number, progress=progress))
        await store.flush(WAIT)
        # The upsert, and a look for lines that came before their row.
        assert store.health.statements - before <= 4
        assert store.health.written_rows == 400
    assert {row["progress"] for row in (await db.rows()).values()} == {9}


async def test_put_before_start_is_kept_and_stop_writes_it(db: Db) -> None:
    store = Store(db.url, settings=SETTINGS)
    store.put(state(1))
    await store.start()
    store.put(state(2))
    await store.stop(WAIT)
    assert sorted(await db.rows()) == ["job-1-1", "job-2-1"]


async def test_a_store_that_never_started_stops(db: Db) -> None:
    await Store(db.url).stop()


async def test_the_row_has_the_newest_lines_each_cut_and_the_table_has_all(db: Db) -> None:
    count = MAX_ROW_LOG_LINES + 50
    long = "x" * (TAIL_LINE_CHARS + 1)
    async with db.store() as store:
        store.put(state(1))
        store.append_logs(line(seq) for seq in range(1, count))
        store.append_logs([line(count, text=long)])
        await store.flush(WAIT)
        last = await store.last_log("job-1-1")
        assert last is not None
        assert last.seq == count
        lines = await store.log_lines("job-1-1", after=count - 2)
        assert lines == [line(count - 1), line(count, text=long)]
        assert [found.seq for found in await store.log_lines("job-1-1", limit=3)] == [1, 2, 3]
    logs = (await db.rows())["job-1-1"]["logs"]
    assert logs == [f"line {seq}" for seq in range(count - 199, count)] + [long[:TAIL_LINE_CHARS]]


async def test_lines_are_written_once_in_any_order(db: Db) -> None:
    async with db.store() as store:
        store.put(state(1))
        for seqs in ((3, 1), (2, 3), (1, 2, 3)):
            store.append_logs(line(seq) for seq in seqs)
            await store.flush(WAIT)
        store.append_logs([line(2, text="another text for a line that is there")])
        await store.flush(WAIT)
        assert await store.log_lines("job-1-1") == [line(1), line(2), line(3)]
    row = (await db.rows())["job-1-1"]
    assert row["logs"] == ["line 1", "line 2", "line 3"]


async def test_lines_may_come_before_their_row_and_after_its_end(db: Db) -> None:
    async with db.store() as store:
        store.append_logs([line(1)])
        await store.flush(WAIT)
        store.put(state(1, "completed"))
        await store.flush(WAIT)
        assert (await db.rows())["job-1-1"]["logs"] == ["line 1"]
        store.append_logs([line(2)])
        await store.flush(WAIT)
    assert (await db.rows())["job-1-1"]["logs"] == ["line 1", "line 2"]


async def test_lines_that_change_nothing_leave_updated_at(db: Db) -> None:
    times = iter(NOW + timedelta(hours=hour) for hour in range(100))
    async with db.store(clock=lambda: next(times)) as store:
        store.put(state(1))
        store.append_logs([line(1)])
        await store.flush(WAIT)
        before = (await db.rows())["job-1-1"]["updated_at"]
        store.append_logs([line(1)])
        await store.flush(WAIT)
        assert (await db.rows())["job-1-1"]["updated_at"] == before
        store.append_logs([line(2)])
        await store.flush(WAIT)
        assert (await db.rows())["job-1-1"]["updated_at"] > before


async def test_no_lines_and_no_such_attempt(db: Db) -> None:
    await migrated(db)
    async with db.store() as store:
        assert await store.last_log("absent") is None
        assert await store.log_lines("absent") == []


async def test_open_attempts_are_found_over_pages_and_memory_counts(db: Db) -> None:
    # Long enough that the last put still waits in memory when the rows are read.
    settings = StoreSettings(linger=2.0)
    async with db.store(settings) as store:
        for number in range(2500):
            store.put(state(number, "completed" if number % 10 == 0 else "running"))
        await store.flush(WAIT)
        store.put(state(1, "failed"))
        found = await store.open_attempts()
    assert len(found) == len(set(found)) == 2249
    assert OpenAttempt("job-2-1", "job-2", "jobs", "name-2", 1) in found
    assert {"job-1-1", "job-10-1"}.isdisjoint(attempt.process_id for attempt in found)


async def test_text_that_postgresql_refuses_is_made_storable(db: Db, store_errors: Errors) -> None:
    async with db.store() as store:
        bad = "a\x00b\ud800c"
        store.put(state(1, error=bad, cost_usd=float("nan"), metadata={bad: [bad, float("inf")]}))
        store.append_logs([line(1, text=bad)])
        await store.flush(WAIT)
    row = (await db.rows())["job-1-1"]
    assert (row["error"], row["cost_usd"], row["metadata"]) == ("abc", None, {"abc": ["abc", None]})
    assert row["logs"] == ["abc"]
    assert store_errors() == []


@pytest.mark.parametrize(
    ("column", "poison"),
    [("input_tokens", 2**70), ("metadata", {"a": {(1, 2): "a key that JSON has not"}})],
)
async def test_a_value_that_cannot_be_stored_costs_only_its_column(
    db: Db, store_errors: Errors, column: str, poison: Any
) -> None:
    rows = [state(number, "completed", error="e", progress=9) for number in range(50)]
    # Past the cleaning, as a defect of ours would be.
    rows[17] = rows[17].model_copy(update={column: poison})
    async with db.store() as store:
        for row in rows:
            store._buffer.put(row)
        store.append_logs(line(1, number) for number in range(50))
        await store.flush(WAIT)
        assert store.health.state == "ok"
    stored = await db.rows()
    assert len(stored) == 50
    assert stored["job-17-1"][column] in (None, {})
    assert all(row["status"] == "completed" and row["logs"] == ["line 1"] for row in stored.values())
    assert len(store_errors()) == 1
    assert f"column {column} of job-17-1" in store_errors()[0]


async def test_a_row_that_cannot_be_stored_at_all_is_dropped_alone(db: Db, store_errors: Errors) -> None:
    async with db.store() as store:
        for number in range(50):
            store.put(state(number, attempt=2**70 if number == 17 else 1))
        store.put(state(50))
        await store.flush(WAIT)
        assert (store.health.state, store.health.pending_rows) == ("ok", 0)
    assert len(await db.rows()) == 50
    assert len(store_errors()) == 1
    assert "job-17-1" in store_errors()[0]
    assert "attempt" in store_errors()[0]


async def test_a_line_that_cannot_be_stored_is_dropped_alone(db: Db, store_errors: Errors) -> None:
    async with db.store() as store:
        store.put(state(1))
        lines = [line(seq) for seq in range(1, 60)]
        lines[30] = lines[30].model_copy(update={"seq": 2**70})
        store.append_logs(lines)
        await store.flush(WAIT)
        assert store.health.dropped_log_lines == 1
        assert len(await store.log_lines("job-1-1")) == 58
    assert len(store_errors()) == 1
    assert "of job-1-1 cannot be stored" in store_errors()[0]


async def test_an_index_entry_too_large_costs_only_its_column(postgres_db: Db, store_errors: Errors) -> None:
    # Text of a length that compresses badly and is over what a B-tree entry may be.
    huge = "".join(chr(0x4E00 + (number * 7919) % 20000) for number in range(4000))
    async with postgres_db.store() as store:
        store.put(state(1, task_id=huge, progress=3))
        store.put(state(2))
        await store.flush(WAIT)
    rows = await postgres_db.rows()
    assert (rows["job-1-1"]["task_id"], rows["job-1-1"]["progress"], len(rows)) == (None, 3, 2)
    assert "column task_id of job-1-1" in store_errors()[0]
    assert huge[:20] not in store_errors()[0]


async def test_a_flush_that_cannot_end_says_so(db: Db) -> None:
    store = Store(db.url)
    store.put(state(1))
    with pytest.raises(TimeoutError, match="1 rows and 0 log lines"):
        await store.flush(0.01)
    await store.stop()


async def test_a_flush_does_not_wait_for_what_comes_later(db: Db) -> None:
    async with db.store() as store:
        stopped = asyncio.Event()

        async def load() -> None:
            number = 0
            while not stopped.is_set():
                number += 1
                store.put(state(number % 300, progress=number % 101))
                store.append_logs([line(number)])
                await asyncio.sleep(0.0005)

        loading = asyncio.create_task(load())
        await until(lambda: store.health.written_rows > 100)
        await store.flush(WAIT)
        stopped.set()
        await loading
