"""The status of a ClaudeCodeQueue, from what its consumer knows. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from claudejobs.api.queue import QueueCounts, QueueStatus
from claudejobs.api.status import with_condition

from .bull import NO_ASIDE, Snapshot

Truth = Literal["True", "False", "Unknown"]

_DRAINED = ("Accepted", "the queue is drained into ClaudeCodeJobs")
_SUSPENDED = ("Suspended", "nothing is fetched (spec.suspend); what was fetched goes on")


def accepted(
    status: QueueStatus, problem: tuple[str, str] | None, suspended: bool, generation: int, now: datetime
) -> QueueStatus:
    """Whether the queue is drained; ``problem`` is the reason and the message why not."""
    reason, message = problem or (_SUSPENDED if suspended else _DRAINED)
    conditions = with_condition(
        status.conditions, "Accepted", "False" if problem else "True", reason, message, generation, now
    )
    update = {"conditions": conditions, "observed_generation": generation}
    return status.model_copy(update=update)


def is_accepted(status: QueueStatus) -> bool:
    """Whether the status says that the queue is drained."""
    return any((one.type, one.status) == ("Accepted", "True") for one in status.conditions)


def connected(
    status: QueueStatus,
    snapshot: Snapshot | None,
    answers: bool,
    error: tuple[str, float] | None,
    generation: int,
    now: datetime,
) -> QueueStatus:
    """What Redis says of the queue, or that it says nothing: then the last counts stay."""
    last_error, when = error or (None, None)
    truth: tuple[Truth, str, str] = ("True", "Connected", "Redis answers")
    if not answers:
        truth = ("False", "RedisAway", last_error) if last_error else ("Unknown", "NotAsked", "Redis was not asked yet")
    conditions = with_condition(status.conditions, "Connected", *truth, generation, now)
    update: dict[str, object] = {"connected": answers, "conditions": conditions}
    # An error that goes on keeps the time at which it began: a new one each time would be a write each time.
    if last_error and when and (answers or status.connected or status.last_error != last_error):
        update |= {"last_error": last_error, "last_error_time": datetime.fromtimestamp(int(when), UTC)}
    if snapshot and answers:
        oldest = snapshot.oldest
        lag = max(0, int(now.timestamp() - oldest / 1000)) if oldest else 0
        compatible = _compatible(snapshot)
        update |= {
            "counts": QueueCounts(**snapshot.counts),
            "lag_seconds": lag,
            "paused": snapshot.paused,
            "producer_version": snapshot.version,
            "conditions": with_condition(conditions, "Compatible", *compatible, generation, now),
        }
    return status.model_copy(update=update)


def exclusive(status: QueueStatus, rival: str | None, generation: int, now: datetime) -> QueueStatus:
    """Whether no other operator drains the queue; ``rival`` is the UID of the ClaudeCodeQueue of one that does."""
    truth: tuple[Truth, str, str] = ("True", "Alone", "no other operator drains the queue")
    if rival:
        text = (
            "another operator, of another cluster or with other WATCH_NAMESPACES, drains the queue by the "
            f"ClaudeCodeQueue with the UID {rival}. It cannot see this one's jobs, and fails them should this one be "
            "away for longer than spec.lockSeconds. Delete one of the two, or give each a queue or a prefix of its own"
        )
        truth = ("False", "DrainedElsewhere", text)
    conditions = with_condition(status.conditions, "Exclusive", *truth, generation, now)
    return status.model_copy(update={"conditions": conditions})


def _compatible(snapshot: Snapshot) -> tuple[Truth, str, str]:
    if snapshot.major is None:
        return "Unknown", "NoVersion", "no producer has told its version yet"
    if snapshot.major >= NO_ASIDE:
        return "True", "Supported", f"written by {snapshot.version}"
    text = (
        f"written by {snapshot.version}: before BullMQ 6, pausing a queue moves its waiting jobs aside, and what "
        "others add to the waiting ones meanwhile is lost on resume. The operator adds nothing while the queue is "
        "paused; do not pause it while workers of another version use it, or move the producers to BullMQ 6"
    )
    return "False", "OldPause", text
