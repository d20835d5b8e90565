"""The buffer, the breaker and the bounded wait, on clocks that the tests turn."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import pytest

from claudejobs.api.process_state import LogLine, ProcessState, ProcessStatus
from claudejobs.store.breaker import Breaker
from claudejobs.store.buffer import Buffer, line_bytes
from claudejobs.store.config import StoreSettings
from claudejobs.store.waiting import bounded, finished

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def row(number: int, progress: int = 0, status: ProcessStatus = ProcessStatus.RUNNING) -> ProcessState:
    return ProcessState(
        process_id=f"{number}",
        job_uid="u",
        job_namespace="n",
        job_name="j",
        attempt=1,
        status=status,
        progress=progress,
    )


def line(seq: int, text: str = "x") -> LogLine:
    return LogLine(process_id="1", seq=seq, time=NOW, line=text)


def test_rows_linger_less_than_lines_and_a_full_batch_not_at_all() -> None:
    clock = Clock()
    buffer = Buffer(StoreSettings(linger=1, log_linger=5, batch_rows=3), clock)
    assert buffer.due_in() is None
    buffer.append([line(1)])
    assert buffer.due_in() == 5
    buffer.put(row(1))
    assert buffer.due_in() == 1
    clock.now += 0.75
    buffer.put(row(1, 5))  # does not start the wait anew
    assert buffer.due_in() == 0.25
    buffer.put(row(2))
    buffer.put(row(3))
    assert buffer.due_in() == 0


def test_a_batch_is_bounded_in_rows_lines_and_bytes() -> None:
    buffer = Buffer(StoreSettings(batch_rows=2, batch_lines=3, batch_bytes=100_000))
    for number in range(5):
        buffer.put(row(number))
        buffer.append([line(number + 1)])
    batch = buffer.take()
    assert [r.process_id for r in batch.rows] == ["0", "1"]
    assert [found.seq for found in batch.lines] == [1, 2, 3]
    assert (buffer.row_count, buffer.line_count) == (5, 5)
    buffer.settle()
    assert (buffer.row_count, buffer.line_count) == (3, 2)
    buffer.append([line(9, "y" * 99_500), line(10)])
    assert [found.seq for found in buffer.take().lines] == [4, 5, 9]


def test_a_batch_given_back_goes_under_what_came_since() -> None:
    buffer = Buffer(StoreSettings())
    buffer.put(row(1, progress=10, status=ProcessStatus.COMPLETED))
    buffer.put(row(2, progress=10))
    buffer.append([line(1)])
    buffer.take()
    buffer.put(row(3))
    buffer.put(row(2, progress=20))
    buffer.put(row(1, progress=50))
    buffer.append([line(2)])
    buffer.give_back()
    batch = buffer.take()
    assert [(r.process_id, r.progress) for r in batch.rows] == [("1", 10), ("2", 20), ("3", 0)]
    assert [found.seq for found in batch.lines] == [1, 2]
    buffer.settle()
    assert buffer.line_bytes == 0


def test_the_oldest_lines_are_dropped_also_when_a_batch_comes_back() -> None:
    size = line_bytes(line(1))
    buffer = Buffer(StoreSettings(max_log_bytes=3 * size, batch_lines=2))
    assert buffer.append(line(seq) for seq in range(1, 6)) == 2
    buffer.take()  # lines 3 and 4: being written, so never dropped; what waits is
    assert buffer.append([line(6)]) == 1
    buffer.give_back()
    assert [found.seq for found in buffer.take().lines] == [3, 4]
    assert buffer.dropped_lines == 3


def test_tickets_tell_when_a_flush_is_done() -> None:
    buffer = Buffer(StoreSettings(batch_rows=1))
    buffer.put(row(1))
    buffer.put(row(2))
    ticket = buffer.last_ticket
    buffer.put(row(3))
    for expected in (1, 2):
        assert buffer.oldest_ticket() == expected <= ticket
        buffer.take()
        assert buffer.oldest_ticket() == expected
        buffer.settle()
    assert buffer.oldest_ticket() == 3 > ticket


def test_a_breaker_backs_off_with_jitter_up_to_its_maximum() -> None:
    clock = Clock()
    for jitter, share in ((0.0, 0.5), (1.0, 1.0)):
        breaker = Breaker(1, 10, monotonic=clock, jitter=lambda jitter=jitter: jitter)
        assert breaker.closed
        assert breaker.wait() == 0
        waits = []
        for _ in range(6):
            breaker.failed()
            waits.append(breaker.wait())
        assert waits == [share * delay for delay in (1, 2, 4, 8, 10, 10)]
        clock.now += 11
        assert breaker.wait() == 0
        assert not breaker.closed  # half-open: one try is allowed
        assert breaker.succeeded()
        assert not breaker.succeeded()
        assert breaker.closed


def test_a_breaker_says_only_once_that_it_opened() -> None:
    breaker = Breaker(1, 10)
    assert [breaker.failed() for _ in range(2000)] == [True] + [False] * 1999


async def test_a_bounded_wait_ends_though_the_work_ignores_its_first_cancellations() -> None:
    cancelled = 0

    async def stubborn() -> None:
        nonlocal cancelled
        while cancelled < 2:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled += 1

    began = time.monotonic()
    await bounded(stubborn(), 0.01)
    assert cancelled == 2
    assert time.monotonic() - began < 2

    with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
        await bounded(asyncio.sleep(60), 0.01)


async def test_a_bounded_wait_passes_results_errors_and_cancellation_on() -> None:
    assert await bounded(asyncio.sleep(0, "result"), 1) == "result"

    async def fail() -> None:
        raise KeyError("error")

    with pytest.raises(KeyError, match="error"):
        await bounded(fail(), 1)
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    waiting = asyncio.create_task(bounded(work(), 60))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()


async def test_what_must_finish_finishes_before_its_cancellation_is_passed_on() -> None:
    steps: list[str] = []

    async def work() -> str:
        await asyncio.sleep(0.02)
        steps.append("finished")
        return "result"

    assert await finished(work(), 5) == "result"
    waiting = asyncio.create_task(finished(work(), 5))
    await asyncio.sleep(0.001)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert steps == ["finished", "finished"]
