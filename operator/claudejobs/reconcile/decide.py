"""What a job needs next. Read from ``decide`` downwards: it is all that the operator does.

Every decision is made from what is seen now, never from an event: losing any event, or the operator at any
instruction, costs time only. A decision that was half carried out is made again, with the same outcome: pods
are named by job and attempt, and a status is written only over the version that it was decided from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from math import inf

from claudejobs.api.categories import Category
from claudejobs.api.status import MAX_ATTEMPTS, AttemptStatus, JobStatus, Phase
from claudejobs.settings import Settings

from . import kueue, report
from .claim import own_claim
from .endings import Ending, ending_of, lost
from .pod import ignored_fields, pod_name
from .retry import Verdict, verdict_on
from .starting import hindrance_of
from .views import JobView, LiveReport, PodView

KILL_MARGIN = 20
"""Seconds beyond its grace period after which a pod that does not go is removed by force, when its job is cancelled."""

HINDRANCE_PATIENCE = 5
"""Seconds for which nothing is said of what keeps a new pod from starting: most of it passes by itself."""

DRAIN_SECONDS = 10
"""How long the end of a log is waited for when only the log has the whole result."""


STOPPING = "Stopping"
"""Reason of a status whose pod the operator itself has asked to go."""


@dataclass(frozen=True)
class Seen:
    """Everything a decision may depend on.

    Attributes:
        pods: the pods whose owner is this very job (by UID).
        live: what the newest attempt's events told.
        dependencies: the phase of each job of ``spec.dependsOn``; ``None`` where there is no such job.
        cycle: jobs that depend on one another in a circle, this one among them; empty when there is none.
        admitted: whether the concurrency limits let the job have a pod.
        warm: name of a pod that waits for a job like this one.
    """

    job: JobView
    pods: Sequence[PodView]
    live: LiveReport | None
    admitted: bool
    waiting_message: str
    now: datetime
    dependencies: Mapping[str, Phase | None] = field(default_factory=dict)
    cycle: Sequence[str] = ()
    warm: str | None = None


@dataclass(frozen=True)
class PodDeletion:
    """A pod to delete. ``grace`` in seconds; ``None`` is what the pod says itself, 0 is by force."""

    name: str
    uid: str
    grace: int | None = None


@dataclass(frozen=True)
class Decision:
    """What to do, in this order: delete pods, make the claim, create the pod, write the status, delete the job.

    Attributes:
        status: the status that should be there; ``None`` leaves it.
        create: number of the attempt whose pod is to be made.
        reserve: name of the warm pod that the status speaks of from now on; it is handed over by the next decision.
        hand_over: name of the warm pod that is to become the open attempt's.
        take_back: name of the warm pod whose reservation is to end, the pod with it.
        claim: the job's own PersistentVolumeClaim, which the pod needs; it is made when it is not there.
        confirm_gone: a pod that must be asked for at the API server before this decision is carried out; if it
            exists after all, the decision is void, because the view was behind.
        after: look again after this many seconds, whatever happens.
    """

    status: JobStatus | None = None
    create: int | None = None
    reserve: str | None = None
    hand_over: str | None = None
    take_back: str | None = None
    claim: str | None = None
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
        return _without_pod(seen, status, attempt, settings)
    return _with_pod(seen, status, pod, settings)


def _with_pod(seen: Seen, status: JobStatus, pod: PodView, settings: Settings) -> Decision:
    """The open attempt has its pod."""
    job = seen.job
    if status.phase is Phase.PENDING and not pod.held:
        status = report.let_go(status, pod, job, seen.now)
    if pod.terminated:
        return _terminated(seen, status, pod, settings)
    if pod.held:
        return _held_back(seen, status, pod)
    left = _time_left(seen, status)
    if job.spec.cancel or job.spec.suspend or left <= 0:
        return _stop(seen, status, pod)
    if pod.deleting_since is not None and status.reason == STOPPING:
        return Decision(status=status)  # resumed while it was being suspended
    if pod.deleting_since is not None:
        who = f"Kueue ({pod.kueue_stop})" if pod.kueue_stop else "someone else"
        text = f"pod {pod.name} is being deleted by {who}"
        return Decision(status=report.with_message(status, "PodDeleting", text))
    if pod.running:
        running = report.running(status, pod, seen.live, job, seen.now)
        return Decision(status=running, after=left if left < inf else None)
    if pod.started or status.phase is Phase.RUNNING:
        return Decision(status=status)  # the container has ended, or its node starts anew: the pod will tell
    return _starting(seen, status, pod, settings)


def _base(seen: Seen) -> JobStatus:
    """The status, with the attempt of a pod that was made just before the operator died, and not recorded."""
    status = seen.job.status
    made = next((p for p in seen.pods if p.attempt == status.attempt + 1), None)
    if made and not status.open_attempt:
        status = report.attempt_started(status, made.attempt, made.name, seen.job, made.created)
    return status.model_copy(update={"observed_generation": seen.job.generation})


def _after_the_end(seen: Seen) -> Decision:
    """A finished job: no pod of it may be left running, it may be asked to run again, and it goes when its time to
    live is over."""
    leftovers, job = _leftovers(seen), seen.job
    if job.status.phase is Phase.FAILED and job.spec.rerun > job.status.rerun:
        return Decision(status=report.rerun(job.status, job), delete_pods=leftovers)
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
    if status.next_attempt_time and now < status.next_attempt_time and _time_left(seen, status) > 0:
        wait = (status.next_attempt_time - now).total_seconds()
        last = status.attempts[-1]
        text = f"attempt {last.attempt} ended: {last.message}"[:2000]
        reason = str(last.category or "Backoff")
        wait = min(wait, _time_left(seen, status))
        return Decision(status=report.waiting(status, Phase.BACKOFF, reason, text), after=wait)
    hopeless = _overdue(seen, status) or _budget_spent(status, job) or _too_many_attempts(status)
    hopeless = hopeless or _dependency_failed(seen, status)
    if hopeless:
        return Decision(status=report.finished(status, Phase.FAILED, hopeless, job, now))
    alive = next((p for p in seen.pods if not p.terminated), None)
    if alive:  # its attempt was given up; two attempts never meet
        text = f"waits for pod {alive.name} of attempt {alive.attempt} to go"
        return Decision(status=report.waiting(status, Phase.BACKOFF, "PodDeleting", text))
    unmet = [name for name, phase in seen.dependencies.items() if phase is not Phase.COMPLETED]
    if unmet and not status.attempts:
        text = f"waits for {', '.join(unmet[:5])}{' and others' if len(unmet) > 5 else ''} to complete (spec.dependsOn)"
        return Decision(status=report.waiting(status, Phase.PENDING, "Dependencies", text))
    if not seen.admitted:
        status = status.model_copy(update={"next_attempt_time": None})
        queued = report.waiting(status, Phase.QUEUED, "ConcurrencyLimit", seen.waiting_message)
        return Decision(status=queued, after=float(settings.progress_interval))  # its position changes meanwhile
    number = status.attempt + 1
    previous = status.attempts[-1] if status.attempts else None
    unseen = previous.pod_name if previous and all(p.attempt != previous.attempt for p in seen.pods) else None
    refused = kueue.refused(job.kueue_labels, settings.allowed_priority_classes)
    ignored = [*ignored_fields(job.spec, settings), *(f"metadata.labels[{label}]" for label in refused)]
    status = report.fields_ignored(status, ignored, job, now)
    if seen.warm:
        # Here the status comes first: which pod the attempt has must be settled before any pod learns of the job.
        status = report.reserved(report.attempt_started(status, number, seen.warm, job, now), seen.warm)
        return Decision(status=status, reserve=seen.warm, confirm_gone=unseen, after=0.0)
    status = report.attempt_started(status, number, pod_name(job.name, number), job, now)
    claim = own_claim(job.spec, job.name, job.uid)
    return Decision(create=number, claim=claim, status=status, confirm_gone=unseen, after=float(settings.start_timeout))


def _held_back(seen: Seen, status: JobStatus, pod: PodView) -> Decision:
    """The pod is there, and Kueue says when it may be scheduled. That may take days."""
    held = report.held_back(status, pod, seen.job, seen.now)
    left = _time_left(seen, held)
    if seen.job.spec.cancel or seen.job.spec.suspend or left <= 0:
        return _stop(seen, held, pod)
    young = (pod.created + timedelta(seconds=HINDRANCE_PATIENCE) - seen.now).total_seconds()
    if young > 0:
        return Decision(status=status, after=young)
    return Decision(status=held, after=left if left < inf else None)


def _without_pod(seen: Seen, status: JobStatus, attempt: AttemptStatus, settings: Settings) -> Decision:
    """An attempt is open, and its pod is not seen: it is gone, or a warm pod that has not learned of the job yet."""
    if status.reason != report.RESERVED:
        decision = _ended(seen, status, lost(seen.live, attempt.pod_name), settings)
        return replace(decision, confirm_gone=attempt.pod_name)
    if seen.job.spec.cancel or seen.job.spec.suspend or _time_left(seen, status) <= 0:
        return Decision(take_back=attempt.pod_name, after=0.0)
    return Decision(hand_over=attempt.pod_name, after=0.0)


def _starting(seen: Seen, status: JobStatus, pod: PodView, settings: Settings) -> Decision:
    """The pod is there and its runner is not: say why, and give up when it takes too long."""
    hindrance = hindrance_of(pod)
    begun = status.attempts[-1].admitted_time or pod.created
    young = (begun + timedelta(seconds=HINDRANCE_PATIENCE) - seen.now).total_seconds()
    if young > 0:
        return Decision(status=status, after=young)
    left = (begun + timedelta(seconds=settings.start_timeout) - seen.now).total_seconds()
    if left > 0:
        return Decision(status=report.starting(status, hindrance, seen.job, seen.now), after=left)
    waited = f" (waited {settings.start_timeout} s, the operator's START_TIMEOUT)"
    if hindrance:
        ending = Ending(hindrance.category, f"{hindrance.message}{waited}")
    else:
        missed = "got no node" if pod.node is None else f"started no container on node {pod.node}"
        how = f"kubectl -n {pod.namespace} events --for pod/{pod.name} says why"
        text = f"pod {pod.name} {missed}{waited}; {how}; where it only needs longer, raise START_TIMEOUT"
        ending = Ending(Category.UNSCHEDULABLE if pod.node is None else Category.WORKSPACE, text)
    # Why it ended is written before the pod is deleted: should the operator die in between, a pod that is gone tells
    # nothing. The next decision deletes it, and no successor is made before it is gone.
    return replace(_ended(seen, status, ending, settings), after=0.0)


def _stop(seen: Seen, status: JobStatus, pod: PodView) -> Decision:
    """Cancelled, suspended or out of time while a pod is there: ask it to stop, and insist when it does not."""
    grace = seen.job.spec.termination_grace_period_seconds
    final = seen.job.spec.cancel or _time_left(seen, status) <= 0
    verb = "cancelled" if seen.job.spec.cancel else ("out of time" if final else "suspended")
    stopping = report.with_message(status, STOPPING, f"{verb}: pod {pod.name} is stopping")
    if pod.deleting_since is None:
        deletion = PodDeletion(pod.name, pod.uid, grace)
        return Decision(status=stopping, delete_pods=(deletion,), after=grace + KILL_MARGIN)
    # metadata.deletionTimestamp is when the grace period ends, not when the deletion was asked for.
    left = (pod.deleting_since + timedelta(seconds=KILL_MARGIN) - seen.now).total_seconds()
    if left > 0:
        return Decision(status=stopping, after=left)
    if not final:
        # On a node that is cut off the pod may run on after it was removed, and meet the pod of a resumed job.
        return Decision(status=stopping)
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
    overdue = _overdue(seen, status)
    if overdue:
        final = replace(overdue, result=ending.result, exit_code=ending.exit_code)
        return Decision(status=report.finished(status, Phase.FAILED, final, job, now, pod, _tail(seen)))
    stopped = job.spec.suspend or status.reason == STOPPING
    if stopped and ending.category in (Category.POD_LOST, Category.CANCELLED):
        return Decision(status=report.suspended(status, ending, now, pod))
    status = report.attempt_ended(status, ending, now, pod)
    verdict = verdict_on(_counted(status), ending, job, settings)
    spent = _budget_spent(status, job)
    if spent and not isinstance(verdict, Verdict):
        final = replace(spent, result=ending.result, exit_code=ending.exit_code)
        return Decision(status=report.finished(status, Phase.FAILED, final, job, now, pod, _tail(seen)))
    if isinstance(verdict, Verdict):
        final = Ending(ending.category, verdict.message, ending.result, ending.exit_code)
        return Decision(status=report.finished(status, Phase.FAILED, final, job, now, pod, _tail(seen)))
    return Decision(status=report.backoff(status, ending, now + verdict, job), after=verdict.total_seconds())


def _budget_spent(status: JobStatus, job: JobView) -> Ending | None:
    """The end of a job that has no money left for another attempt."""
    budget, spent = job.spec.claude.max_budget_usd, status.cost_usd
    if budget is None or spent < budget:
        return None
    return Ending(Category.BUDGET_EXCEEDED, f"the attempts so far cost {spent:.2f} USD, all of maxBudgetUSD")


def _too_many_attempts(status: JobStatus) -> Ending | None:
    """The end of a job that was suspended and resumed so often that its status cannot tell of another attempt."""
    if len(status.attempts) < MAX_ATTEMPTS:
        return None
    return Ending(Category.INVALID_REQUEST, f"the job was started {MAX_ATTEMPTS} times, the most that is recorded")


def _counted(status: JobStatus) -> list[AttemptStatus]:
    """The attempts that count against the bounds: those since the last rerun."""
    return [attempt for attempt in status.attempts if attempt.attempt > status.attempts_forgiven]


def _tail(seen: Seen) -> tuple[str, ...]:
    return seen.live.tail if seen.live else ()


def _time_left(seen: Seen, status: JobStatus) -> float:
    """Seconds of ``spec.activeDeadlineSeconds`` that are left; infinite when there is none, or nothing has run."""
    deadline = seen.job.spec.active_deadline_seconds
    if deadline is None or status.start_time is None:
        return inf
    return (status.start_time + timedelta(seconds=deadline) - seen.now).total_seconds()


def _overdue(seen: Seen, status: JobStatus) -> Ending | None:
    """The end of a job whose time as a whole is over."""
    if _time_left(seen, status) > 0:
        return None
    text = f"the job did not complete within {seen.job.spec.active_deadline_seconds} s (spec.activeDeadlineSeconds)"
    return Ending(Category.TIMEOUT, text)


def _dependency_failed(seen: Seen, status: JobStatus) -> Ending | None:
    """The end of a job that can never start, because one that it depends on did not complete, or depends on it."""
    if status.attempts:
        return None  # all had completed when it first ran; since then they may have been deleted, or made anew
    if seen.cycle:
        return Ending(Category.DEPENDENCY, f"spec.dependsOn goes round in a circle: {' -> '.join(seen.cycle)}")
    for name, phase in seen.dependencies.items():
        if phase in (Phase.FAILED, Phase.CANCELLED):
            return Ending(Category.DEPENDENCY, f"job {name} of spec.dependsOn has ended as {phase}")
    return None
