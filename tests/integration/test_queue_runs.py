"""One run of a queue job is never taken for another one: on a real Redis, with nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from bullmq import Job

from claudejobs.intake.bull import BullQueue, Loaded, NotHeld
from claudejobs.intake.connection import connect
from tests.support.redis import RedisServer

LOCK_MS = 60_000


@pytest_asyncio.fixture
async def bull(tmp_path: Path) -> AsyncIterator[BullQueue]:
    with RedisServer(tmp_path) as server:
        client = connect(server.url())
        yield BullQueue(client, "bull", "tasks", "token")
        await client.aclose()


async def _retried(bull: BullQueue) -> tuple[Loaded, Loaded]:
    """The same job's first run, which failed, and its second, which a retry by hand began."""
    queue = bull.queue("tasks")
    await queue.add("run", {"taskId": "task"}, {"jobId": "a"})
    first = await bull.fetch(LOCK_MS)
    assert first is not None
    await bull.fail(first, "billing: no more")
    job = await Job.fromId(queue, "a")
    assert job is not None
    await job.retry("failed")
    second = await bull.fetch(LOCK_MS)
    assert second is not None
    return first, second


def _complete(bull: BullQueue, run: Loaded) -> Awaitable[None]:
    return bull.complete(run, {"text": "the first run's"})


def _fail(bull: BullQueue, run: Loaded) -> Awaitable[None]:
    return bull.fail(run, "the first run's")


@pytest.mark.parametrize("end", [_complete, _fail])
async def test_the_end_of_a_run_that_is_told_again_does_not_end_the_next(
    end: Callable[[BullQueue, Loaded], Awaitable[None]], bull: BullQueue
) -> None:
    # As when the answer was lost, and the client sends the command again: the same operator holds the next run by then.
    first, second = await _retried(bull)
    with pytest.raises(NotHeld):
        await end(bull, first)
    assert [one.identity for one in await bull.sweep(LOCK_MS)] == [second.identity]
    await bull.complete(second, {"text": "done"})
    assert (await bull.client.hget(bull.key("a"), "returnvalue")) == '{"text":"done"}'
    with pytest.raises(NotHeld):
        await bull.complete(second, {"text": "done"})


async def test_a_resource_is_noted_with_the_run_that_it_was_made_for(bull: BullQueue) -> None:
    first, second = await _retried(bull)
    await bull.note_uid(second.identity, "second")
    # As when a sweep, which saw the first run without a note, is overtaken by its end and a retry.
    await bull.note_uid(first.identity, "first")
    assert [one.uid for one in await bull.sweep(LOCK_MS)] == ["second"]
    await bull.complete(second, {"text": "done"})
    await bull.note_uid(second.identity, "second")
    assert await bull.client.hget(bull.key("a"), "ccj.uid") == ""
    await bull.client.delete(bull.key("a"))
    await bull.note_uid(second.identity, "second")
    assert not await bull.client.exists(bull.key("a"))
