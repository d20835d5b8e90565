"""Builds the status that a decision wants to see. Pure; called from ``decide`` alone."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from claudejobs.api.events import RunnerResult
from claudejobs.api.status import (
    AttemptStatus,
    Condition,
    ConditionType,
    JobStatus,
    Phase,
    ResultStatus,
    UsageStatus,
    with_condition,
)

from .claim import own_claim
from .endings import Ending
from .starting import Hindrance
from .views import JobView, LiveReport, PodView

_SESSIONS = uuid.UUID("0d5ae0b4-37f4-4be6-8a36-6e2f5b2b9c0e")


RESERVED = "Reserved"
"""Reason of a status that names a warm pod which was not handed over yet, as far as is known."""

MAX_RESULT_TEXT = 48 * 1024
"""Characters of the agent's answer that the status holds. The runner cuts it so; a forged event might not."""


def session_id(job_uid: str) -> str:
    """The agent's session of a job: one for all attempts, so that an attempt that finds its transcript on the
    workspace resumes it, and known before the pod exists, so that recording it costs no write."""
    return str(uuid.uuid5(_SESSIONS, job_uid))


def waiting(status: JobStatus, phase: Phase, reason: str, message: str) -> JobStatus:
    """The job waits without a pod."""
    return status.model_copy(update={"phase": phase, "reason": reason, "message": message, "pod_name": None})


def with_message(status: JobStatus, reason: str, message: str) -> JobStatus:
    """The same, with something to say."""
    return status.model_copy(update={"reason": reason, "message": message})


def attempt_started(status: JobStatus, number: int, name: str, job: JobView, now: datetime) -> JobStatus:
    """An attempt has its pod, called ``name``."""
    session, now = session_id(job.uid), _seconds(now)
    attempt = AttemptStatus(attempt=number, pod_name=name, start_time=now, session_id=session)
    if _condition(status, ConditionType.STARTED):  # it spoke of the attempt before
        text = f"pod {name} is starting"
        status = _with_condition(status, ConditionType.STARTED, "False", "Starting", text, job, now)
    return status.model_copy(
        update={
            "observed_generation": job.generation,
            "phase": Phase.STARTING,
            "reason": "Starting",
            "message": f"pod {name} is starting",
            "attempt": number,
            "attempts": [*status.attempts, attempt],
            "next_attempt_time": None,
            "pod_name": name,
            "session_id": session,
            "workspace_claim": own_claim(job.spec, job.name, job.uid),
            "progress": 0,
            "start_time": status.start_time or now,
        }
    )


def reserved(status: JobStatus, name: str) -> JobStatus:
    """The attempt that was just started has a warm pod, which does not know of the job yet."""
    return with_message(status, RESERVED, f"pod {name}, which was started ahead, is taken")


def unreserved(status: JobStatus) -> JobStatus:
    """The warm pod that the open attempt has reserved is not to be had: the attempt has not been."""
    attempts = status.attempts[:-1]
    status = status.model_copy(update={"attempts": attempts, "attempt": status.attempt - 1})
    if not attempts:
        status = status.model_copy(update={"start_time": None})
    return waiting(status, Phase.PENDING, "WarmPodLost", "the pod that was started ahead is gone; another one is taken")


def starting(status: JobStatus, hindrance: Hindrance | None, job: JobView, now: datetime) -> JobStatus:
    """The pod is there, its runner is not yet. What kept it is named until it runs, even when the kubelet is between
    two tries, and in the words of the first: it words the same trouble anew each time, and one write is enough."""
    if hindrance is None or status.reason == hindrance.reason:
        return status.model_copy(update={"phase": Phase.STARTING})
    reason, message = hindrance.reason, hindrance.message
    status = status.model_copy(update={"phase": Phase.STARTING, "reason": reason, "message": message})
    return _with_condition(status, ConditionType.STARTED, "False", reason, message, job, now)


def held_back(status: JobStatus, pod: PodView, job: JobView, now: datetime) -> JobStatus:
    """The pod is there, and Kueue does not let it be scheduled yet: the job waits as it does without a pod, and its
    time as a whole does not begin with this attempt."""
    where = f"in Kueue's LocalQueue {pod.queue}" if pod.queue else "for Kueue"
    reason, text = "WaitingForKueue", f"waits {where}; kubectl describe workloads -n {pod.namespace} says for what"
    begun = None if status.start_time == status.attempts[-1].start_time else status.start_time
    update = {"phase": Phase.PENDING, "reason": reason, "message": text, "start_time": begun}
    status = status.model_copy(update=update)
    return _with_condition(status, ConditionType.STARTED, "False", reason, text, job, now)


def let_go(status: JobStatus, pod: PodView, job: JobView, now: datetime) -> JobStatus:
    """The pod, of which was said that Kueue holds it back, may be scheduled."""
    at, text = _seconds(min(pod.started or now, now)), f"pod {pod.name} is starting"
    attempt = status.attempts[-1].model_copy(update={"admitted_time": at})
    update = {"phase": Phase.STARTING, "reason": "Starting", "message": text, "start_time": status.start_time or at}
    status = status.model_copy(update={**update, "attempts": [*status.attempts[:-1], attempt]})
    return _with_condition(status, ConditionType.STARTED, "False", "Starting", text, job, now)


def running(status: JobStatus, pod: PodView, live: LiveReport | None, job: JobView, now: datetime) -> JobStatus:
    """The runner runs."""
    attempt = status.attempts[-1].model_copy(update={"node_name": pod.node})
    if attempt.attempt > 1 and live and live.resumed is not None:  # of the first it goes without saying, and a write
        attempt = attempt.model_copy(update={"resumed": live.resumed})
    step = live.step if live and live.step else "the agent is at work"
    status = status.model_copy(
        update={
            "phase": Phase.RUNNING,
            "reason": "Running",
            "message": step,
            "attempts": [*status.attempts[:-1], attempt],
            "progress": max(status.progress, min(live.progress, 99) if live else 0),
        }
    )
    return _with_condition(
        status, ConditionType.STARTED, "True", "Running", f"runs on {pod.node}{_history(attempt)}", job, now
    )


def attempt_ended(
    status: JobStatus,
    ending: Ending,
    now: datetime,
    pod: PodView | None,
    outcome: Literal["completed", "failed", "cancelled", "suspended"] = "failed",
) -> JobStatus:
    """Close the open attempt, if there is one, and add what it cost."""
    attempt = status.open_attempt
    if attempt is None:
        return status
    result = ending.result
    closed = attempt.model_copy(
        update={
            "end_time": _seconds((pod and pod.finished) or now),
            "outcome": outcome,
            "category": ending.category,
            "message": ending.message[:2000],
            "exit_code": ending.exit_code,
            "session_id": (result and result.session_id) or attempt.session_id,
            "node_name": (pod and pod.node) or attempt.node_name,
            "resumed": result.resumed if result and result.resumed is not None else attempt.resumed,
            "cost_usd": round(result.cost_usd, 6) if result else 0.0,
        }
    )
    attempts = [*status.attempts[:-1], closed]
    cost = round(status.cost_usd + closed.cost_usd, 6)
    return status.model_copy(update={"attempts": attempts, "cost_usd": cost})


def backoff(status: JobStatus, ending: Ending, until: datetime, job: JobView) -> JobStatus:
    """Another attempt will be made."""
    text = f"attempt {status.attempt} ended: {ending.message}"[:2000]
    status = waiting(status, Phase.BACKOFF, str(ending.category), text)
    return status.model_copy(update={"next_attempt_time": _seconds(until), "observed_generation": job.generation})


def suspended(status: JobStatus, ending: Ending, now: datetime, pod: PodView | None) -> JobStatus:
    """The attempt was stopped by ``spec.suspend``; it does not count."""
    ended = Ending(None, "suspended by spec.suspend", ending.result, ending.exit_code)
    status = attempt_ended(status, ended, now, pod, "suspended")
    return waiting(status, Phase.SUSPENDED, "Suspended", "suspended by spec.suspend")


def finished(
    status: JobStatus,
    phase: Phase,
    ending: Ending,
    job: JobView,
    now: datetime,
    pod: PodView | None = None,
    tail: Sequence[str] = (),
) -> JobStatus:
    """The job is at its end. ``tail`` is the last that the agent did and printed, kept after a failure."""
    outcome: Any = {Phase.COMPLETED: "completed", Phase.CANCELLED: "cancelled"}.get(phase, "failed")
    status = attempt_ended(status, ending, now, pod, outcome)
    reason = str(ending.category) if ending.category else "Completed"
    message = ending.message or f"the agent has finished{_history(status.attempts[-1])}"
    status = status.model_copy(
        update={
            "observed_generation": job.generation,
            "phase": phase,
            "reason": reason,
            "message": message[:2000],
            "next_attempt_time": None,
            "progress": 100 if phase is Phase.COMPLETED else status.progress,
            "log_tail": list(tail) if phase is Phase.FAILED else [],
            "result": _result(ending.result) or status.result,
            "completion_time": _seconds(now),
        }
    )
    word = {Phase.COMPLETED: "Completed", Phase.CANCELLED: "Cancelled"}.get(phase, _camel(reason))
    status = _with_condition(status, ConditionType.FINISHED, "True", word, message, job, now)
    succeeded: Literal["True", "False"] = "True" if phase is Phase.COMPLETED else "False"
    return _with_condition(status, ConditionType.SUCCEEDED, succeeded, word, message, job, now)


def rerun(status: JobStatus, job: JobView) -> JobStatus:
    """A failed job is to run again: what was, stays on record, and counts no more."""
    ended = (ConditionType.FINISHED, ConditionType.SUCCEEDED)
    return status.model_copy(
        update={
            "observed_generation": job.generation,
            "phase": Phase.PENDING,
            "reason": "Rerun",
            "message": "runs again, as spec.rerun asks",
            "conditions": [c for c in status.conditions if c.type not in ended],
            "rerun": job.spec.rerun,
            "attempts_forgiven": status.attempt,
            "next_attempt_time": None,
            "pod_name": None,
            "progress": 0,
            "result": None,
            "log_tail": [],
            "start_time": None,
            "completion_time": None,
        }
    )


def fields_ignored(status: JobStatus, fields: list[str], job: JobView, now: datetime) -> JobStatus:
    """Say which fields of the spec this operator does not act on."""
    if not fields:
        return status
    text = f"not acted on: {', '.join(fields)}"
    return _with_condition(status, ConditionType.FIELDS_IGNORED, "True", "NotActedOn", text, job, now)


def _result(result: RunnerResult | None) -> ResultStatus | None:
    if result is None:
        return None
    text = result.text
    return ResultStatus(
        text=text[:MAX_RESULT_TEXT] if text else text,
        structured_output=result.structured_output,
        num_turns=result.num_turns,
        cost_usd=round(result.cost_usd, 6),
        usage=UsageStatus(**result.usage.model_dump()),
        truncated=result.truncated or len(text or "") > MAX_RESULT_TEXT,
    )


def _condition(status: JobStatus, kind: ConditionType) -> Condition | None:
    return next((c for c in status.conditions if c.type == kind), None)


def _with_condition(
    status: JobStatus,
    kind: ConditionType,
    value: Literal["True", "False", "Unknown"],
    reason: str,
    message: str,
    job: JobView,
    now: datetime,
) -> JobStatus:
    conditions = with_condition(status.conditions, kind, value, reason, message, job.generation, now)
    return status.model_copy(update={"conditions": conditions})


def _history(attempt: AttemptStatus) -> str:
    """What a later attempt made of the ones before it, for people."""
    if attempt.attempt == 1 or attempt.resumed is None:
        return ""
    if attempt.resumed:
        return f"; attempt {attempt.attempt} resumed the session of the attempt before it"
    return f"; attempt {attempt.attempt} began anew, as its workspace had no session to resume"


def _seconds(time: datetime) -> datetime:
    """Kubernetes timestamps have whole seconds."""
    return time.replace(microsecond=0)


def _camel(reason: str) -> str:
    """A condition's reason is CamelCase: ``rate_limited`` becomes ``RateLimited``."""
    return "".join(part.capitalize() for part in reason.split("_"))
