"""Projects a job to the ProcessState row of its newest attempt."""

from __future__ import annotations

from datetime import datetime

from claudejobs.api.categories import Category
from claudejobs.api.process_state import ProcessState, ProcessStatus, process_id
from claudejobs.api.status import AttemptStatus, JobStatus, Phase

from .report import RESERVED
from .views import JobView, LiveReport

_OUTCOMES = {
    "completed": ProcessStatus.COMPLETED,
    "failed": ProcessStatus.FAILED,
    "cancelled": ProcessStatus.CANCELLED,
    "suspended": ProcessStatus.CANCELLED,
}


def row_of(job: JobView, status: JobStatus, live: LiveReport | None) -> ProcessState | None:
    """The row of the newest attempt; ``None`` before there is anything to tell.

    A job that ends without ever having had an attempt (cancelled while it waited, an invalid spec) gets a row with
    attempt 0, and one that is cancelled between two attempts a row of the attempt that was never made, so that a
    reader who waits for its task sees the end.
    """
    if status.reason == RESERVED:
        return None  # the attempt has no pod yet, and may come to nothing
    attempt = status.attempts[-1] if status.attempts else None
    if attempt is None:
        return _never_ran(job, status, 0) if status.phase.terminal else None
    if status.phase is Phase.CANCELLED and attempt.outcome == "failed":
        return _never_ran(job, status, attempt.attempt + 1)
    return _row(job, status, attempt, live)


def rows_of(job: JobView) -> list[ProcessState]:
    """The rows of all attempts, as the resource tells them; what a restart or a lost database is mended from."""
    status = job.status
    newest = row_of(job, status, None)
    if newest is None:
        return []
    others = [_row(job, status, attempt, None) for attempt in status.attempts if attempt.attempt != newest.attempt]
    return [*others, newest]


def closed_row(job_uid: str, namespace: str, name: str, attempt: int, now: datetime) -> ProcessState:
    """The last state of an attempt whose job was deleted."""
    return ProcessState(
        process_id=process_id(job_uid, attempt),
        job_uid=job_uid,
        job_namespace=namespace,
        job_name=name,
        attempt=attempt,
        status=ProcessStatus.CANCELLED,
        end_time=now,
        error="the job was deleted",
        error_category=Category.CANCELLED,
    )


def _row(job: JobView, status: JobStatus, attempt: AttemptStatus, live: LiveReport | None) -> ProcessState:
    newest = attempt is status.attempts[-1]
    if attempt.outcome:
        state = _OUTCOMES[attempt.outcome]
    else:
        state = ProcessStatus.RUNNING if status.phase is Phase.RUNNING else ProcessStatus.STARTING
    progress = 100 if state is ProcessStatus.COMPLETED else (status.progress if newest else 0)
    result = status.result if newest and state.terminal else None
    return _base(job, attempt.attempt, state).model_copy(
        update={
            "start_time": attempt.start_time,
            "end_time": attempt.end_time,
            "progress": max(progress, min(live.progress, 99)) if live and not state.terminal else progress,
            "error": (attempt.message or None) if state is not ProcessStatus.COMPLETED else None,
            "error_category": attempt.category,
            "pod_name": attempt.pod_name,
            "node_name": attempt.node_name,
            "session_id": attempt.session_id,
            "model": job.spec.claude.model or (live.model if live else None),
            "num_turns": result.num_turns if result else None,
            "cost_usd": attempt.cost_usd if state.terminal else None,
            "input_tokens": result.usage.input_tokens if result else None,
            "output_tokens": result.usage.output_tokens if result else None,
        }
    )


def _never_ran(job: JobView, status: JobStatus, attempt: int) -> ProcessState:
    state = ProcessStatus.CANCELLED if status.phase is Phase.CANCELLED else ProcessStatus.FAILED
    category = Category(status.reason) if status.reason in set(Category) else None
    update = {"end_time": status.completion_time, "error": status.message, "error_category": category}
    return _base(job, attempt, state).model_copy(update=update)


def _base(job: JobView, attempt: int, state: ProcessStatus) -> ProcessState:
    return ProcessState(
        process_id=process_id(job.uid, attempt),
        task_id=job.spec.task_id,
        user_id=job.spec.user_id,
        job_uid=job.uid,
        job_namespace=job.namespace,
        job_name=job.name,
        attempt=attempt,
        status=state,
        metadata=job.spec.metadata,
    )
