"""A bound on waiting that holds even when the awaited side ignores being cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_GRACE = 0.3


async def bounded(work: Coroutine[Any, Any, T], timeout: float) -> T:
    """Return what ``work`` returns, or raise ``TimeoutError`` after ``timeout`` seconds and a little.

    ``asyncio.timeout`` is not enough: on the first cancellation psycopg asks the server to cancel the query
    and waits up to ten seconds for its answer, which a hung server never gives. A second cancellation makes
    it close the connection at once. Work that survives that as well is left to end on its own.
    """
    task = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout)
        if done:
            return task.result()
    finally:
        await _cancel(task)
    if not task.done() or task.cancelled():
        raise TimeoutError(f"no answer within {timeout:g} s")
    return task.result()


async def _cancel(task: asyncio.Task[Any]) -> None:
    for _ in range(3):
        if task.done():
            break
        task.cancel()
        await asyncio.wait({task}, timeout=_GRACE)
    # Marks a late error as seen, so that nothing is printed when the task is collected.
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
