"""Follows the event stream of a queue: news of jobs, and producers' requests to cancel them.

Reading the stream takes nothing from other workers, as waiting at BullMQ's marker would. A request to cancel is
noted with the job before the place in the stream is remembered, so that none is lost by a crash.
"""

from __future__ import annotations

import asyncio
from typing import Any

from .bull import BullQueue
from .connection import BLOCK_SECONDS

CANCEL_EVENT = "cancel"
"""Name of the event by which a producer cancels a job: ``publishEvent({eventName: "cancel", jobId})``."""

PAGE = 500
"""Events that are read at a time; after a shorter page the stream is at its end."""

_NEWS = frozenset({"waiting", "added", "delayed", "resumed", "stalled"})
_LOSSES = frozenset({"removed", "drained", "cleaned"})


async def listen(bull: BullQueue, client: Any, fetch_now: asyncio.Event, sweep_now: asyncio.Event) -> None:
    """Follow the stream until Redis fails; sets the events when there is something to fetch, or to look at.

    Args:
        client: with a timeout longer than the wait for news.
    """
    cursor = (await bull.recall()).get("cursor")
    if cursor is None:
        last = await client.xrevrange(bull.events_key, count=1)
        cursor = last[0][0] if last else "0-0"
        await bull.remember(cursor=cursor)
    asked: set[str] = set()
    while True:
        answer = await client.xread({bull.events_key: cursor}, count=PAGE, block=BLOCK_SECONDS * 1000)
        entries = answer[0][1] if answer else []
        names = {fields.get("event") for _, fields in entries}
        for cursor, fields in entries:  # noqa: B007 - the last one is where the next page begins
            _note(fields, asked)
        if asked and len(entries) < PAGE:
            for job_id in asked:
                await bull.ask_to_cancel(job_id)
            asked.clear()
            await bull.remember(cursor=cursor)
            sweep_now.set()
        if names & _NEWS:
            fetch_now.set()
        if names & _LOSSES:
            sweep_now.set()


def _note(fields: dict[str, str], asked: set[str]) -> None:
    """Keep in ``asked`` the jobs that are to be cancelled: one that is added again afterwards is another one.

    The stream's order tells that, and no clock: the time that a job carries is its producer's, or any that it chose.
    """
    event, job_id = fields.get("event"), fields.get("jobId")
    if event == CANCEL_EVENT and job_id:
        asked.add(job_id)
    elif event == "added" and job_id:
        asked.discard(job_id)
