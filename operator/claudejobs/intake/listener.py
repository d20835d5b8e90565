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
    while True:
        answer = await client.xread({bull.events_key: cursor}, count=500, block=BLOCK_SECONDS * 1000)
        entries = answer[0][1] if answer else []
        names = {fields.get("event") for _, fields in entries}
        asked = [(at, fields["jobId"]) for at, fields in entries if _asks_to_cancel(fields)]
        for at, job_id in asked:
            await bull.ask_to_cancel(job_id, int(at.partition("-")[0]))
        if entries:
            cursor = entries[-1][0]
        if asked:
            await bull.remember(cursor=cursor)
        if names & _NEWS:
            fetch_now.set()
        if asked or names & _LOSSES:
            sweep_now.set()


def _asks_to_cancel(fields: dict[str, str]) -> bool:
    return fields.get("event") == CANCEL_EVENT and bool(fields.get("jobId"))
