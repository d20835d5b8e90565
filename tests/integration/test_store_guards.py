"""The guards: SQL on both databases does what ``merge`` does, for any order and any number of writers."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator
from datetime import timedelta
from functools import reduce
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from claudejobs.api.categories import Category
from claudejobs.api.process_state import ProcessState, ProcessStatus
from claudejobs.store import StoreSettings, merge, upgrade
from claudejobs.store.clean import clean_row
from claudejobs.store.config import build_engine, parse_url
from claudejobs.store.database import Database
from claudejobs.store.tables import process_states
from tests.integration.test_store_support import NOW, WAIT, Db, line, migrated, state

_text = st.none() | st.text(max_size=8)
_time = st.none() | st.integers(0, 10**12).map(lambda micros: NOW + timedelta(microseconds=micros))
_json = st.dictionaries(
    st.text(max_size=4), st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4), max_size=3
)
_numbers = itertools.count()


@st.composite
def updates(draw: st.DrawFn) -> list[ProcessState]:
    """Writes to one attempt, in the order of their arrival."""
    number = next(_numbers)
    return [
        clean_row(
            state(
                number,
                draw(st.sampled_from(list(ProcessStatus))),
                task_id=draw(_text),
                start_time=draw(_time),
                end_time=draw(_time),
                progress=draw(st.integers(0, 100)),
                error=draw(_text),
                error_category=draw(st.none() | st.sampled_from(list(Category))),
                num_turns=draw(st.none() | st.integers(0, 2**31 - 1)),
                cost_usd=draw(st.none() | st.floats(0, 1e6)),
                input_tokens=draw(st.none() | st.integers(0, 2**63 - 1)),
                metadata=draw(_json),
            )
        )
        for _ in range(draw(st.integers(1, 5)))
    ]


class SyncDatabase:
    """The database for tests that are not asynchronous, as Hypothesis wants them."""

    def __init__(self, db: Db) -> None:
        self._runner = asyncio.Runner()
        self._runner.run(upgrade(db.url))
        self._database = Database(parse_url(db.url), StoreSettings())
        self._engine = build_engine(parse_url(db.url), StoreSettings())

    def write(self, *rows: ProcessState, at: Any = NOW) -> None:
        self._runner.run(self._database.write(rows, [], set(), at))

    def read(self, process_id: str) -> dict[str, Any]:
        async def ask() -> dict[str, Any]:
            async with self._engine.connect() as connection:
                query = select(process_states).where(process_states.c.process_id == process_id)
                return dict((await connection.execute(query)).mappings().one())

        return self._runner.run(ask())

    def state(self, process_id: str) -> ProcessState:
        row = self.read(process_id)
        return ProcessState(**{name: row[name] for name in ProcessState.model_fields})

    def close(self) -> None:
        self._runner.run(self._database.close())
        self._runner.run(self._engine.dispose())
        self._runner.close()


@pytest.fixture
def database(db: Db) -> Iterator[SyncDatabase]:
    database = SyncDatabase(db)
    yield database
    database.close()


_property = settings(
    max_examples=120,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_property
@given(writes=updates(), cut=st.integers(0, 5))
def test_sql_and_merge_agree(database: SyncDatabase, writes: list[ProcessState], cut: int) -> None:
    expected = reduce(merge, writes)
    # Written one by one up to the cut, coalesced in memory after it: the store does both.
    for write in writes[:cut]:
        database.write(write)
    if writes[cut:]:
        database.write(reduce(merge, writes[cut:]))
    assert database.state(writes[0].process_id) == expected


@_property
@given(writes=updates(), data=st.data())
def test_any_order_with_a_terminal_write_ends_terminal(
    database: SyncDatabase, writes: list[ProcessState], data: st.DataObject
) -> None:
    ending = writes[0].model_copy(update={"status": ProcessStatus.FAILED})
    for write in data.draw(st.permutations([*writes, ending])):
        database.write(write)
    assert database.state(writes[0].process_id).status.terminal


def test_an_equal_row_is_not_rewritten(database: SyncDatabase) -> None:
    row = state(1, progress=5, cost_usd=0.1, metadata={"b": 1, "a": [1, {"z": 1, "y": None}]}, start_time=NOW)
    database.write(row, at=NOW)
    same = row.model_copy(update={"metadata": {"a": [1, {"y": None, "z": 1}], "b": 1}})
    database.write(same, at=NOW + timedelta(hours=1))
    assert database.read("job-1-1")["updated_at"] == NOW
    database.write(state(1, progress=6), at=NOW + timedelta(hours=2))
    changed = database.read("job-1-1")
    assert (changed["created_at"], changed["updated_at"]) == (NOW, NOW + timedelta(hours=2))


def test_a_terminal_row_is_frozen(database: SyncDatabase) -> None:
    done = state(1, "completed", end_time=NOW, progress=100)
    database.write(done, at=NOW)
    later = NOW + timedelta(hours=1)
    database.write(state(1, "failed", end_time=later, error="late", cost_usd=1.0), at=later)
    assert database.state("job-1-1") == done
    assert database.read("job-1-1")["updated_at"] == NOW


def test_updated_at_does_not_follow_a_clock_that_is_behind(database: SyncDatabase) -> None:
    database.write(state(1, progress=1), at=NOW)
    database.write(state(1, progress=2), at=NOW - timedelta(hours=1))
    assert database.read("job-1-1")["updated_at"] == NOW


async def test_two_operators_at_once(db: Db) -> None:
    """Both write every attempt's states, each in an order of its own, and half of the lines each."""
    await migrated(db)
    async with db.store() as one, db.store() as two:

        async def operate(store: Any, seed: int) -> None:
            order = random.Random(seed)
            writes = [
                state(number, status, progress=progress, pod_name=f"pod-{number}")
                for number in range(60)
                for status, progress in (("starting", 0), ("running", 40), ("completed", 100), ("running", 60))
            ]
            order.shuffle(writes)
            for count, write in enumerate(writes):
                store.put(write)
                store.append_logs([line(count // 4 + 1, count % 4)])
                if count % 20 == 0:
                    await asyncio.sleep(0.002)
            await store.flush(WAIT)

        await asyncio.gather(operate(one, 1), operate(two, 2))
        assert one.health.state == two.health.state == "ok"
    rows = await db.rows()
    assert len(rows) == 60
    assert {row["status"] for row in rows.values()} == {"completed"}
    for number in range(4):
        assert rows[f"job-{number}-1"]["logs"] == [f"line {seq}" for seq in range(1, 61)]


async def test_two_operators_that_follow_one_log_lose_no_line_of_the_tail(db: Db) -> None:
    await migrated(db)
    async with db.store() as one, db.store() as two:
        one.put(state(1))
        await one.flush(WAIT)
        for seq in range(1, 61, 2):
            one.append_logs([line(seq)])
            two.append_logs([line(seq + 1)])
            await asyncio.gather(one.flush(WAIT), two.flush(WAIT))
    assert (await db.rows())["job-1-1"]["logs"] == [f"line {seq}" for seq in range(1, 61)]
