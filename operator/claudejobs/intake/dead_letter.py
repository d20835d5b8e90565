"""The dead-letter queue: data of jobs that failed for good, and the way back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from bullmq import Job, Queue

from claudejobs.api.queue import DEAD_LETTER_SUFFIX

from .bull import BullQueue, Loaded
from .mapping import dead_letter_origin

FIELD_ORIGIN = "ccj.origin"
"""Field of a dead letter's hash: where it came from, as JSON."""

_KEPT_OPTIONS = ("attempts", "backoff")
"""Options that a dead letter has like the job that died; its delay and priority would order the dead."""

LETTERS_PER_LOOK = 100
"""How many dead letters are sent back before it is looked again whether that is safe."""


def dead_letter_name(queue_name: str) -> str:
    """Name of the dead-letter queue of a queue."""
    return queue_name + DEAD_LETTER_SUFFIX


async def bury(bull: BullQueue, dead: Loaded, reason: str, lines: Sequence[str]) -> None:
    """Put the producer's data into the dead-letter queue, once however often it is called for the same run.

    Any BullMQ tool sees a waiting job with the same name and data, and in its log why it is there.
    """
    target = bull.queue(dead_letter_name(bull.name))
    letter_id = dead.identity.resource_name
    kept = {key: dead.opts[key] for key in _KEPT_OPTIONS if dead.opts.get(key)}
    await target.add(dead.name, dead.data, {"jobId": letter_id, **kept})
    prefix = f"{bull.prefix}:{dead_letter_name(bull.name)}:{letter_id}"
    category = reason.partition(":")[0]
    origin = dead_letter_origin(dead.identity, dead.opts, reason, category, letter_id)
    if await bull.client.hexists(prefix, "data"):
        # Set anew each time, as the log is: after a crash in between, both are whole.
        pipe = bull.client.pipeline(transaction=False)
        pipe.hset(prefix, FIELD_ORIGIN, origin).delete(f"{prefix}:logs").rpush(f"{prefix}:logs", reason, *lines)
        await pipe.execute()


class ReplayError(Exception):
    """Nothing can be sent back now."""


@dataclass(frozen=True)
class Replayed:
    """What became of a dead letter.

    Attributes:
        what: what was done, or would be, with the job of this id.
        problem: why the letter stays.
    """

    letter: str
    job_id: str = ""
    what: str = ""
    problem: str | None = None


async def replay(
    bull: BullQueue, letter_ids: Sequence[str] | None, limit: int, dry_run: bool = False
) -> AsyncIterator[Replayed]:
    """Send dead letters back to their queue, the oldest first, and tell of each as soon as that is done.

    Under the id that the producer knows: the failed job is retried in place where it still exists, so that who waits
    for it is told; else it is added again with its data and options. Whoever calls it again after it was cut off goes
    on where it was.

    Args:
        letter_ids: which; ``None`` means all, at most ``limit``.

    Raises:
        ReplayError: nothing can be sent back now.
    """
    queue, letters = bull.queue(bull.name), bull.queue(dead_letter_name(bull.name))
    # Ids only: the data of thousands of letters need not fit into memory.
    wanted = await _oldest(bull, limit) if letter_ids is None else list(dict.fromkeys(letter_ids))
    for number, letter_id in enumerate(wanted):
        if number % LETTERS_PER_LOOK == 0 and (await bull.snapshot()).old_pause:
            text = f"queue {bull.name} is paused by a BullMQ before 6, which would lose the jobs; resume it first"
            raise ReplayError(text)
        try:
            yield await _replay_one(bull.client, queue, letters, letter_id, dry_run)
        except (TypeError, ValueError) as error:  # data that nobody can read, or the library's word for a lost race
            yield Replayed(letter_id, problem=f"it cannot be sent back: {error}")


async def _oldest(bull: BullQueue, limit: int) -> list[str]:
    """Ids of waiting dead letters. (BullMQ before 6 moves those of a paused queue aside.)"""
    found: list[str] = []
    for part in ("wait", "paused"):
        key = f"{bull.prefix}:{dead_letter_name(bull.name)}:{part}"
        found += reversed(await bull.client.lrange(key, -limit, -1))
    return found[:limit]


async def _replay_one(client: Any, queue: Queue, letters: Queue, letter_id: str, dry_run: bool) -> Replayed:
    raw = await client.hgetall(letters.toKey(letter_id))
    if not raw:
        return Replayed(letter_id, problem="there is no such dead letter")
    letter = Job.fromJSON(letters, raw, letter_id)
    origin = json.loads(raw.get(FIELD_ORIGIN) or "{}")
    job_id = str(origin.get("id") or letter_id)
    state = await queue.getJobState(job_id)
    old = await Job.fromId(queue, job_id)
    if (old is None) != (state == "unknown"):
        return Replayed(letter_id, job_id, problem=f"job {job_id} changed this moment; try again")
    what = {"failed": "retried as", "unknown": "added again as"}.get(state, "waits already as")
    if problem := _in_the_way(letter, old, state):
        return Replayed(letter_id, job_id, problem=f"job {job_id} of queue {queue.name} {problem}")
    if dry_run:
        return Replayed(letter_id, job_id, what)
    if old is None:
        opts = {key: value for key, value in origin.get("opts", {}).items() if key not in ("delay", "timestamp")}
        await queue.add(letter.name, letter.data, {**opts, "jobId": job_id})
    elif state == "failed":
        await old.retry("failed")
    # After the job is back: a crash in between leaves a letter whose job waits already.
    if not await letters.backend.remove(letter_id, True):
        return Replayed(letter_id, job_id, problem=f"{what} {job_id}, but a worker of {letters.name} holds the letter")
    return Replayed(letter_id, job_id, what)


def _in_the_way(letter: Job, old: Job | None, state: str) -> str:
    """Why the job that has the id now keeps a letter from being sent back; empty when nothing does."""
    if old is None:
        return ""
    if (old.name, old.data) != (letter.name, letter.data):
        return f"has other data than the letter and is {state}; replay again once it is removed"
    if state in ("failed", "waiting", "prioritized"):
        return ""
    return f"has the letter's data and is {state}; remove the letter unless it is to run once more after that"
