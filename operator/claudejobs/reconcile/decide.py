"""What a job needs next. Read from ``decide`` downwards: it is all that the operator does.

Every decision is made from what is seen now, never from an event: losing any event, or the operator at any
instruction, costs time only. A decision that was half carried out is made again, with the same outcome: pods
are named by job and attempt, and a status is written only over the version that it was decided from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from claudejobs.api.categories import Category
from claudejobs.api.status import JobStatus, Phase
from claudejobs.settings import Settings

from . import report
from .endings import Ending, ending_of, lost
from .pod import ignored_fields
from .retry import Verdict, verdict_on
from .starting import hindrance_of
from .views import JobView, LiveReport, PodView

KILL_MARGIN = 20
"""Seconds beyond its grace period after which a pod that does not go is removed by force, when its job is to stop."""

HINDRANCE_PATIENCE = 5
"""Seconds for which nothing is said of what keeps a new pod from starting: most of it passes by itself."""

DRAIN_SECONDS = 10
"""How long the end of a log is waited for when only the log has the whole result."""


@dataclass(frozen=True)
class Seen:
    """Everything a decision may depend on.

    Attributes:
        pods: the pods whose owner is this very job (by UID).
        live: what the newest attempt's events told.
        admitted: whether the concurrency limits let the job have a pod.
    """

    job: JobView
    pods: Sequence[PodView]
    live: LiveReport | None
    admitted: bool
    waiting_message: str
    now: datetime


@dataclass(frozen=True)
class PodDeletion:
    """A pod to delete. ``grace`` in seconds; ``None`` is what the pod says itself, 0 is by force."""

    name: str
    uid: str
    grace: int | None = None


@dataclass(frozen=True)
class Decision:
    """What to do, in this order: delete pods, create the pod, write the status, delete the job.

    Attributes:
        status: the status that should be there; ``None`` leaves it.
        create: number of the attempt whose pod is to be made.
        confirm_gone: a pod that must be asked for at the API server before this decision is carried out; if it
            exists after all, the decision is void, because the view was behind.
        after: look again after this many seconds, whatever happens.
    """

    status: JobStatus | None = None
    create: int | None = None
    delete_pods: tuple[PodDeletion, ...] = ()
    confirm_gone: str | None = None
    delete_job: bool = False
    after: float | None = None


def decide(seen: Seen, settings: Settings) -> Decision:
    """Decide what a job needs next."""
    job = seen.job
    if job.deleting:
        return Decision()  # the garbage collector stops the pods; rows are closed when the job is gone
    if job.status.phase.terminal:
        return _after_the_end(seen)
    if job.invalid:
        ending = Ending(Category.INVALID_REQUEST, f"the spec cannot be run: {job.invalid}")
        return Decision(status=report.finished(_base(seen), Phase.FAILED, ending, job, seen.now))
    status = _base(seen)
    attempt = status.open_attempt
    if attempt is None:
        return replace(_between_attempts(seen, status, settings), delete_pods=_leftovers(seen))
    pod = next((p for p in seen.pods if p.attempt == attempt.attempt), None)
    if pod is None:
        decision = _ended(seen, status, lost(seen.live, attempt.pod_name), settings)
        return replace(decision, confirm_gone=attempt.pod_name)
    if pod.terminated:
        return _terminated(seen, status, pod, settings)
    if job.spec.cancel or job.spec.suspend:
        return _stop(seen, status, pod)
    if pod.deleting_since is not None:
        text = f"pod {pod.name} is being deleted by someone else"
        return Decision(status=report.with_message(status, "PodDeleting", text))
    if pod.running:
        return Decision(status=report.running(status, pod, seen.live, job, seen.now))
    if pod.started or status.phase is Phase.RUNNING:
        return Decision(status=status)  # the container has ended, or its node starts anew: the pod will tell
    return _starting(seen, status, pod, settings)


def _base(seen: Seen) -> JobStatus:
    """The status, with the attempt of a pod that was made just before the operator died, and not recorded."""
    status = seen.job.status
    newest = max(seen.pods, key=lambda p: p.attempt, default=None)
    if newest and newest.attempt > status.attempt:
        status = report.attempt_started(status, newest.attempt, seen.job, newest.created)
    return status.model_copy(update={"observed_generation": seen.job.generation})


def _after_the_end(seen: Seen) -> Decision:
    """A finished job: no pod of it may be left running, and it goes when its time to live is over."""
    leftovers = _leftovers(seen)
    ttl, ended = seen.job.spec.ttl_seconds_after_finished, seen.job.status.completion_time
    if ttl is None or ended is None:
        return Decision(delete_pods=leftovers)
    left = (ended + timedelta(seconds=ttl) - seen.now).total_seconds()
    return Decision(delete_pods=leftovers, delete_job=left <= 0, after=left if left > 0 else None)


def _leftovers(seen: Seen) -> tuple[PodDeletion, ...]:
    """The pods of closed attempts that may still run and were not asked to go."""
    return tuple(PodDeletion(p.name, p.uid) for p in seen.pods if not p.terminated and p.deleting_since is None)


def _between_attempts(seen: Seen, status: JobStatus, settings: Settings) -> Decision:
    """No attempt is open: start the next one, unless something says to wait or to stop."""
    job, now = seen.job, seen.now
    if job.spec.cancel:
        ending = Ending(Category.CANCELLED, "cancelled before it ran" if not status.attempt else "cancelled")
        return Decision(status=report.finished(status, Phase.CANCELLED, ending, job, now))
    if job.spec.suspend:
        return Decision(status=report.waiting(status, Phase.SUSPENDED, "Suspended", "suspended by spec.suspend"))
    if status.next_attempt_time and now < status.next_attempt_time:
        wait = (status.next_attempt_time - now).total_seconds()
        last = status.attempts[-1]
        text = f"attempt {last.attempt} ended: {last.message}"
        reason = str(last.category or "Backoff")
        return Decision(status=report.waiting(status, Phase.BACKOFF, reason, text), after=wait)
    spent = status.cost_usd
    if job.spec.claude.max_budget_usd is not None and spent >= job.spec.claude.max_budget_usd:
        ending = Ending(Category.BUDGET_EXCEEDED, f"the attempts so far cost {spent:.2f} USD, all of maxBudgetUSD")
        return Decision(status=report.finished(status, Phase.FAILED, ending, job, now))
    alive = next((p for p in seen.pods if not p.terminated), None)
    if alive:  # its attempt was given up; two attempts never meet
        text = f"waits for pod {alive.name} of attempt {alive.attempt} to go"
        return Decision(status=report.waiting(status, Phase.BACKOFF, "PodDeleting", text))
    if not seen.admitted:
        queued = report.waiting(status, Phase.QUEUED, "ConcurrencyLimit", seen.waiting_message)
        return Decision(status=queued, after=float(settings.progress_interval))  # its position changes meanwhile
    number = status.attempt + 1
    status = report.fields_ignored(status, ignored_fields(job.spec, settings), job, now)
    status = report.attempt_started(status, number, job, now)
    return Decision(create=number, status=status, after=float(settings.start_timeout))


def _starting(seen: Seen, status: JobStatus, pod: PodView, settings: Settings) -> Decision:
    """The pod is there and its runner is not: say why, and give up when it takes too long."""
    hindrance = hindrance_of(pod)
    young = (pod.created + timedelta(seconds=HINDRANCE_PATIENCE) - seen.now).total_seconds()
    if young > 0:
        return Decision(status=status, after=young)
    left = (pod.created + timedelta(seconds=settings.start_timeout) - seen.now).total_seconds()
    if left > 0:
        return Decision(status=report.starting(status, hindrance, seen.job, seen.now), after=left)
    if hindrance:
        ending = Ending(hindrance.category, f"{hindrance.message} (after {settings.start_timeout} s)")
    else:
        text = f"pod {pod.name} did not start within {settings.start_timeout} s; its events say why"
        ending = Ending(Category.UNSCHEDULABLE if pod.node is None else Category.WORKSPACE, text)
    # Why it ended is written before the pod is deleted: should the operator die in between, a pod that is gone tells
    # nothing. The next decision deletes it, and no successor is made before it is gone.
    return replace(_ended(seen, status, ending, settings), after=0.0)


def _stop(seen: Seen, status: JobStatus, pod: PodView) -> Decision:
    """Cancelled or suspended while a pod is there: ask it to stop, and insist when it does not."""
    grace = seen.job.spec.termination_grace_period_seconds
    verb = "cancelled" if seen.job.spec.cancel else "suspended"
    stopping = report.with_message(status, "Stopping", f"{verb}: pod {pod.name} is stopping")
    if pod.deleting_since is None:
        deletion = PodDeletion(pod.name, pod.uid, grace)
        return Decision(status=stopping, delete_pods=(deletion,), after=grace + KILL_MARGIN)
    # metadata.deletionTimestamp is when the grace period ends, not when the deletion was asked for.
    left = (pod.deleting_since + timedelta(seconds=KILL_MARGIN) - seen.now).total_seconds()
    if left > 0:
        return Decision(status=stopping, after=left)
    return Decision(status=stopping, delete_pods=(PodDeletion(pod.name, pod.uid, 0),), after=5.0)


def _terminated(seen: Seen, status: JobStatus, pod: PodView, settings: Settings) -> Decision:
    """The runner has ended. Its answer may be longer than the termination message: then the log has it."""
    live = seen.live
    if pod.result and pod.result.truncated and not (live and (live.result or live.drained)):
        ended = pod.finished or seen.now
        left = (ended + timedelta(seconds=DRAIN_SECONDS) - seen.now).total_seconds()
        if left > 0:
            return Decision(status=status, after=left)
    return _ended(seen, status, ending_of(pod, live), settings, pod)


def _ended(seen: Seen, status: JobStatus, ending: Ending, settings: Settings, pod: PodView | None = None) -> Decision:
    """An attempt has ended: is it the job's end, and if not, when does the next one start?"""
    job, now = seen.job, seen.now
    if ending.category is None:
        return Decision(status=report.finished(status, Phase.COMPLETED, ending, job, now, pod))
    if job.spec.cancel:
        cancelled = Ending(Category.CANCELLED, "cancelled", ending.result, ending.exit_code)
        return Decision(status=report.finished(status, Phase.CANCELLED, cancelled, job, now, pod))
    if job.spec.suspend and ending.category in (Category.POD_LOST, Category.CANCELLED):
        return Decision(status=report.suspended(status, ending, now, pod))
    status = report.attempt_ended(status, ending, now, pod)
    verdict = verdict_on(status.attempts, ending, job, settings)
    if isinstance(verdict, Verdict):
        final = Ending(ending.category, verdict.message, ending.result, ending.exit_code)
        return Decision(status=report.finished(status, Phase.FAILED, final, job, now, pod))
    return Decision(status=report.backoff(status, ending, now + verdict, job), after=verdict.total_seconds())
