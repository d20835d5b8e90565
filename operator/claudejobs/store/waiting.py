"""Bounds on waiting that hold whatever the driver underneath does with a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_GRACE = 0.3


async def within(timeout: float, work: Coroutine[Any, Any, T], dialect: str) -> T:
    """Return what ``work``, which uses a connection of ``dialect``, returns.

    Raises:
        TimeoutError: PostgreSQL did not answer in ``timeout`` seconds. SQLite bounds itself (busy_timeout).
    """
    return await (finished(work, timeout) if dialect == "sqlite" else bounded(work, timeout))


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


async def finished(work: Coroutine[Any, Any, T], grace: float) -> T:
    """Return what ``work`` returns, however long it takes; when cancelled, let it end first.

    aiosqlite runs statements in a thread, where nothing can cancel them. Cancelling the wait for one leaves
    the thread at work, with the file's write lock or in the queue for it: the next try piles up behind it,
    and the interpreter, which waits for its threads, cannot exit.

    Args:
        work: what must not be cut off.
        grace: after a cancellation, most seconds to wait for the end.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=grace)
        _mark_seen(task)
        raise


async def _cancel(task: asyncio.Task[Any]) -> None:
    for _ in range(3):
        if task.done():
            break
        task.cancel()
        await asyncio.wait({task}, timeout=_GRACE)
    _mark_seen(task)


def _mark_seen(task: asyncio.Task[Any]) -> None:
    """Keep asyncio from reporting an error that nobody waits for any more."""
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
