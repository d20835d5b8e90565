"""The dead-letter queue: data of jobs that failed for good, and the way back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from bullmq import Job, Queue

from claudejobs.api.queue import DEAD_LETTER_SUFFIX

from .bull import BullQueue, Loaded
from .mapping import dead_letter_origin

FIELD_ORIGIN = "ccj.origin"
"""Field of a dead letter's hash: where it came from, as JSON."""

_KEPT_OPTIONS = ("attempts", "backoff")
"""Options that a dead letter has like the job that died; its delay and priority would order the dead."""


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
) -> list[Replayed]:
    """Send dead letters back to their queue, the oldest first.

    Under the id that the producer knows: the failed job is retried in place where it still exists, so that who waits
    for it is told; else it is added again with its data and options.

    Args:
        letter_ids: which; ``None`` means all, at most ``limit``.

    Raises:
        ReplayError: nothing can be sent back now.
    """
    letters = bull.queue(dead_letter_name(bull.name))
    if (await bull.snapshot()).old_pause:
        text = f"queue {bull.name} is paused by a BullMQ before 6, which would lose the jobs; resume it first"
        raise ReplayError(text)
    wanted = letter_ids
    if wanted is None:
        found = await letters.getJobs(["waiting"], 0, limit - 1, True)
        wanted = [job.id for job in found if job]
    return [await _replay_one(bull, letters, letter, dry_run) for letter in wanted]


async def _replay_one(bull: BullQueue, letters: Queue, letter_id: str, dry_run: bool) -> Replayed:
    raw = await bull.client.hgetall(f"{bull.prefix}:{letters.name}:{letter_id}")
    if not raw:
        return Replayed(letter_id, problem="there is no such dead letter")
    letter = Job.fromJSON(letters, raw, letter_id)
    origin = json.loads(raw.get(FIELD_ORIGIN) or "{}")
    job_id = str(origin.get("id") or letter_id)
    queue = bull.queue(bull.name)
    state = await queue.getJobState(job_id)
    if state not in ("failed", "unknown", "waiting", "prioritized"):
        return Replayed(letter_id, job_id, problem=f"job {job_id} of queue {bull.name} is {state}")
    what = {"failed": "retried as", "unknown": "added again as"}.get(state, "waits already as")
    if dry_run:
        return Replayed(letter_id, job_id, what)
    if state == "failed":
        old = await Job.fromId(queue, job_id)
        if old is None:
            return Replayed(letter_id, job_id, problem=f"job {job_id} was removed this moment; try again")
        await old.retry("failed")
    elif state == "unknown":
        opts = {key: value for key, value in origin.get("opts", {}).items() if key not in ("delay", "timestamp")}
        await queue.add(letter.name, letter.data, {**opts, "jobId": job_id})
    # After the job is back: a crash in between leaves a letter whose job waits already.
    await letter.remove()
    return Replayed(letter_id, job_id, what)
