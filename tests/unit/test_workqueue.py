"""The work queue, on an event loop whose clock nobody waits for."""

from __future__ import annotations

import asyncio

import pytest

from claudejobs.kube.workqueue import BASE_DELAY, MAX_DELAY, QueueClosed, WorkQueue


def pending(queue: WorkQueue[str]) -> list[str]:
    return list(queue._ready)


async def test_a_key_added_many_times_is_worked_on_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for key in ("a", "b", "a"):
        queue.add(key)
    assert [await queue.get(), await queue.get()] == ["a", "b"]
    assert pending(queue) == []


async def test_a_key_added_while_it_is_worked_on_comes_again_afterwards() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    assert pending(queue) == []
    queue.done("a")
    assert pending(queue) == ["a"]


async def test_get_waits_for_a_key() -> None:
    queue: WorkQueue[str] = WorkQueue()
    getter = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not getter.done()
    queue.add("a")
    assert await getter == "a"


async def test_the_earlier_of_two_times_counts() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 500)
    queue.add_after("a", 100)
    early = queue._timers["a"].when()
    queue.add_after("a", 900)
    assert queue._timers["a"].when() == early
    queue.close()


async def test_a_time_that_has_come_makes_the_key_ready() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", -1)
    assert await queue.get() == "a"
    assert queue._timers == {}


async def test_the_backoff_doubles_up_to_its_bound_and_ends_with_success() -> None:
    queue: WorkQueue[str] = WorkQueue()
    delays = [queue.retry("a") for _ in range(40)]
    assert BASE_DELAY * 0.8 <= delays[0] <= BASE_DELAY
    assert BASE_DELAY * 8 * 0.8 <= delays[3] <= BASE_DELAY * 8
    assert MAX_DELAY * 0.8 <= delays[-1] <= MAX_DELAY
    assert queue.retry("b", at_least=120) == 120
    queue.succeeded("a")
    assert queue.retry("a") <= BASE_DELAY
    queue.close()


async def test_a_key_that_waits_out_a_failure_is_not_woken_for_a_slot() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.retry("a")
    queue.wake("a")
    queue.wake("b")
    assert pending(queue) == ["b"]
    queue.add("a")
    assert pending(queue) == ["b", "a"]
    queue.close()


async def test_a_forgotten_key_has_neither_timer_nor_failures() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.retry("a")
    queue.forget("a")
    assert queue._timers == {}
    queue.wake("a")
    assert pending(queue) == ["a"]


async def test_a_closed_queue_gives_no_work_and_sets_no_timer() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.add_after("b", 100)
    getters = [asyncio.create_task(queue.get()) for _ in range(2)]
    await asyncio.sleep(0)
    assert getters[0].done()
    queue.close()
    with pytest.raises(QueueClosed):
        await getters[1]
    with pytest.raises(QueueClosed):
        await queue.get()
    queue.retry("a")  # a worker that was busy while the queue was closed
    queue.add_after("a", 1)
    assert queue._timers == {}
