"""What to do with each queue job, decided from what Redis and the cluster hold. Pure.

Read from ``plan_held`` for the queue jobs that are active, and ``plan_absent`` for the resources whose queue job is
not.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from claudejobs.api.queue_job import QueueJob
from claudejobs.reconcile.admission import Room
from claudejobs.reconcile.views import JobView


class Lock(StrEnum):
    """Who holds an active queue job."""

    OURS = "ours"
    FORMER = "former"
    """A ClaudeCodeQueue that was there before, or one of another cluster."""
    ABSENT = "absent"
    FOREIGN = "foreign"


@dataclass(frozen=True)
class Active:
    """A queue job in BullMQ's active list.

    Attributes:
        uid: UID of the resource that was made for this run of it, once that was noted.
        cancel: a producer asked to cancel it.
        deferred_failure: why BullMQ wants it to be failed, such as that it stalled too often; else empty.
        successor_due: a job scheduler made it, and may not have made the next one.
    """

    identity: QueueJob
    lock: Lock
    uid: str | None = None
    cancel: bool = False
    deferred_failure: str = ""
    successor_due: bool = False


class Step(StrEnum):
    """What a queue job or a resource needs."""

    CREATE = "create its resource"
    NOTE_UID = "note the resource's UID with the queue job"
    CANCEL_RESOURCE = "cancel its resource"
    DELIVER = "finish the queue job with the resource's end"
    FAIL_CANCELLED = "fail the queue job as cancelled: nothing of it runs"
    FAIL_DELETED = "fail the queue job as cancelled: its resource was deleted"
    FAIL_STALLED = "fail the queue job as BullMQ wants it"
    SCHEDULE_NEXT = "have its job scheduler make the next one"
    REVIVE = "take the lock again that was lost"
    TAKE_OVER = "take the lock over from the ClaudeCodeQueue that was there before"
    MARK_LOST = "note with the resource that Redis lost the queue job"
    SETTLE = "nothing more will come of the queue job"


def plan_held(active: Active, job: JobView | None) -> list[Step]:
    """The steps for an active queue job, in order.

    Args:
        job: the resource of this very run of it, if there is one.
    """
    takeover = active.lock is Lock.FORMER and job is not None and active.uid == job.uid
    if active.lock in (Lock.FOREIGN, Lock.FORMER) and not takeover:
        # Another worker has it, for example after our lock was lost for long: it must not run twice.
        # Unless nobody has noted a resource for it yet. Then the lock tells whose it is: one that is dead loses it.
        undecided = active.lock is Lock.FORMER and not active.uid
        return [Step.CANCEL_RESOURCE] if job and not _resting(job) and not undecided else []
    steps = [Step.TAKE_OVER] if takeover else []
    if active.lock is Lock.ABSENT:
        if job is None:
            return []  # not ours as far as anyone can tell: BullMQ's stalled check gives it back to the queue
        steps.append(Step.REVIVE)
    if active.successor_due:
        steps.append(Step.SCHEDULE_NEXT)
    if job is None:
        return [*steps, _without_resource(active)]
    if active.uid != job.uid:
        steps.append(Step.NOTE_UID)
    if job.status.phase.terminal:
        return [*steps, Step.DELIVER]
    if active.cancel and not _resting(job):
        steps.append(Step.CANCEL_RESOURCE)
    return steps


def _without_resource(active: Active) -> Step:
    if active.uid:
        return Step.FAIL_DELETED
    if active.cancel:
        return Step.FAIL_CANCELLED
    return Step.FAIL_STALLED if active.deferred_failure else Step.CREATE


@dataclass(frozen=True)
class Absent:
    """What Redis has of a queue job that is not active.

    Attributes:
        identity: as it would be now; ``None`` when there is no such job any more.
        finished: it is completed or failed.
    """

    identity: QueueJob | None
    finished: bool = False


def plan_absent(job: JobView, held: QueueJob, found: Absent, data_lost: bool) -> list[Step]:
    """The steps for a resource whose queue job is not active.

    Args:
        held: the queue job that the resource was made for.
        data_lost: Redis was restarted or failed over since it was seen last, so that what is missing may be lost.
    """
    ended = job.status.phase.terminal
    if found.identity == held and not found.finished:
        return []  # waits, after a stall: it will be fetched again and find this resource
    if ended:
        return [Step.SETTLE]
    if found.identity is None and (data_lost or job.queue_job_lost):
        return [] if job.queue_job_lost else [Step.MARK_LOST]
    # Removed, added anew under the same id, or finished by somebody else: nobody waits for this run.
    return [] if _resting(job) else [Step.CANCEL_RESOURCE]


def _resting(job: JobView) -> bool:
    return job.status.phase.terminal or job.spec.cancel or job.deleting


REACH = 10
"""How many times the look-ahead may be fetched to find a job for a slot that stays empty."""


def fetch_budget(room: Room, look_ahead: int, coming: int) -> int:
    """How many more queue jobs may be fetched.

    Redis does not tell users apart. When those who wait are all of users at their limits, slots stay empty until a job
    of somebody else is found behind theirs, so more than the look-ahead is fetched then.

    Args:
        coming: queue jobs that were fetched and have no resource yet.
    """
    spare = room.free - (room.waiting - room.barred) - coming
    ahead = look_ahead * REACH if spare > 0 else look_ahead
    return max(0, room.free + ahead - room.waiting - coming)
