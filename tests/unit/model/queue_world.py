"""A queue in Redis, its resources in the cluster, other workers, and an intake that does what ``plan`` says.

Every write of the intake goes through ``_write``, at which it may die: then the writes before it were made, and those
from it on were not.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

from claudejobs.api.queue_job import QueueJob
from claudejobs.api.status import Phase
from claudejobs.intake.plan import Absent, Active, Lock, Step, plan_absent, plan_held
from claudejobs.reconcile.views import JobView

from .objects import job_view

OURS = "claudejobs:"
QUEUE = "bull:tasks"
WORKER = "worker"
"""The lock of a BullMQ worker."""
ELSEWHERE = f"{OURS}elsewhere"
"""The lock of an operator in another cluster that drains the same queue."""
MAX_STALLS = 1


class Crash(Exception):
    """The intake is dead."""


class NotHeld(Exception):
    """As the intake's own: the next sweep tells what to do instead."""


@dataclass
class QueuedJob:
    """A job's hash, lock and place in Redis."""

    id: str
    timestamp: int
    state: str = "wait"
    finishes: int = 0
    deliveries: int = 0
    lock: str = ""
    uid: str = ""
    cancel: QueueJob | None = None
    deferred: str = ""
    stalls: int = 0
    marked: bool = False
    scheduled: bool = False
    end: str = ""

    @property
    def identity(self) -> QueueJob:
        return QueueJob(QUEUE, self.id, self.timestamp, self.finishes, self.deliveries)


@dataclass
class World:
    """Attributes:
    queue: what Redis has; ``successors`` is part of it: how many jobs each scheduled one has led to.
    api: resources by name; ``seen`` is what the watch has told of them.
    excuses: why a run may end as cancelled: what a user or another worker did to it.
    noted: runs whose resource's UID stood in Redis once.
    made: how often a resource was made for a run.
    delivered: how often each run was finished by the intake.
    """

    queue: dict[str, QueuedJob] = field(default_factory=dict)
    successors: dict[str, int] = field(default_factory=dict)
    api: dict[str, JobView] = field(default_factory=dict)
    seen: dict[str, JobView] = field(default_factory=dict)
    excuses: dict[QueueJob, set[str]] = field(default_factory=dict)
    noted: set[QueueJob] = field(default_factory=set)
    made: dict[QueueJob, int] = field(default_factory=dict)
    delivered: dict[QueueJob, int] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    token: str = f"{OURS}1"
    process: int = 1
    remembered: int = 1
    clock: int = 0
    fuse: int | None = None
    rolled_back: bool = False

    # What the intake does.

    def crash(self) -> None:
        """Die, and start again."""
        self.fuse = None
        self.settled.clear()
        self.hear()

    def _write(self) -> None:
        if self.fuse is not None:
            if self.fuse == 0:
                raise Crash
            self.fuse -= 1

    def fetch(self) -> None:
        job = next((job for job in self.queue.values() if job.state == "wait"), None)
        if job is None:
            return
        self._write()
        job.state, job.lock = "active", self.token
        active = Active(
            job.identity, Lock.OURS, self._uid(job), job.cancel == job.identity, job.deferred, job.scheduled
        )
        self._carry_out(plan_held(active, self._find(job.identity)), job.identity)

    def sweep(self) -> None:
        here = [job for job in self.queue.values() if job.state == "active"]
        for job in here:
            if job.lock == self.token:
                job.marked = False
        actives = [
            Active(
                job.identity, self._lock(job), self._uid(job), job.cancel == job.identity, job.deferred, self._due(job)
            )
            for job in here
        ]
        held = {active.identity for active in actives}
        absent = [view for view in self.seen.values() if view.queue_job not in held and view.uid not in self.settled]
        lost = self.remembered != self.process
        work = [(plan_held(active, self._find(active.identity)), active.identity) for active in actives]
        for view in absent:
            identity = view.queue_job
            assert identity is not None
            there = self.queue.get(identity.id)
            found = Absent(there.identity, there.state in ("completed", "failed")) if there else Absent(None)
            work.append((plan_absent(view, identity, found, lost), identity))
        for steps, identity in work:
            self._carry_out(steps, identity)
        self._write()
        self.remembered = self.process
        self.check_stalled()

    def _carry_out(self, steps: list[Step], identity: QueueJob) -> None:
        try:
            for step in steps:
                self._do(step, identity)
        except NotHeld:
            return

    def _do(self, step: Step, identity: QueueJob) -> None:
        match step:
            case Step.REVIVE | Step.TAKE_OVER:
                self._take_lock(identity, former=step is Step.TAKE_OVER)
            case Step.SCHEDULE_NEXT:
                job = self._load(identity)
                self._write()
                self.successors[job.id] = 1  # as BullMQ's script does it: once
            case Step.CREATE:
                self._create(identity)
            case Step.FAIL_CANCELLED | Step.FAIL_STALLED:
                self._finish(identity, "failed", "stalled" if step is Step.FAIL_STALLED else "cancelled")
            case Step.FAIL_DELETED:
                if identity.resource_name not in self.api:
                    self._finish(identity, "failed", "cancelled")
            case _:
                view = self._find(identity)
                assert view
                self._do_with(step, identity, view)

    def _do_with(self, step: Step, identity: QueueJob, view: JobView) -> None:
        match step:
            case Step.NOTE_UID:
                self._note(identity, view.uid)
            case Step.SETTLE:
                self.settled.add(view.uid)
            case Step.CANCEL_RESOURCE:
                job = self.queue.get(identity.id)
                superseded = job and (job.identity != identity or job.state in ("completed", "failed"))
                assert superseded or self.excuses.get(identity), f"{identity} is cancelled, and nobody wanted that"
                self._patch(view, spec=view.spec.model_copy(update={"cancel": True}))
            case Step.MARK_LOST:
                self._patch(view, queue_job_lost=True)
            case Step.DELIVER:
                self._deliver(identity, view)

    def _take_lock(self, identity: QueueJob, former: bool) -> None:
        job = self.queue.get(identity.id)
        free = job and (not job.lock or (former and job.lock.startswith(OURS)))
        if job and free and job.state == "active":
            assert job.lock != ELSEWHERE, "a lock is taken from another cluster"
            assert self._find(identity), "a job is taken over that may be anybody's"
            self._write()
            job.lock, job.marked = self.token, False

    def _deliver(self, identity: QueueJob, view: JobView) -> None:
        resource = self.api.get(view.name)
        if resource is None or resource.uid != view.uid:
            return
        how = {Phase.COMPLETED: ("completed", "answer"), Phase.CANCELLED: ("failed", "cancelled")}
        self._finish(identity, *how.get(resource.status.phase, ("failed", "failed")))
        self.settled.add(view.uid)

    def _create(self, identity: QueueJob) -> None:
        self._load(identity)
        resource = self.api.get(identity.resource_name)
        if resource is None:
            assert not self.queue[identity.id].deferred, "BullMQ wants this job to fail"
            assert identity not in self.noted or self.rolled_back, f"a second resource for {identity}"
            self._write()
            self.made[identity] = self.made.get(identity, 0) + 1
            self.clock += 1
            resource = replace(
                job_view(name=identity.resource_name, uid=f"uid-{self.clock}"),
                queue_job=identity,
            )
            self.api[resource.name] = resource
        self.seen[resource.name] = resource
        self._note(identity, resource.uid)

    def _note(self, identity: QueueJob, uid: str) -> None:
        job = self.queue.get(identity.id)
        if job:
            self._write()
            job.uid = f"{identity.resource_name}/{uid}"
            self.noted.add(identity)

    def _finish(self, identity: QueueJob, state: str, end: str) -> None:
        job = self._load(identity)
        if job.lock != self.token:
            raise NotHeld
        self._write()
        self.delivered[identity] = self.delivered.get(identity, 0) + 1
        job.state, job.end, job.lock = state, end, ""
        job.finishes, job.deliveries = job.finishes + 1, job.deliveries + 1
        job.uid, job.cancel, job.marked = "", None, False
        if end == "cancelled":
            assert self.excuses.get(identity), f"{identity} ends as cancelled, and nobody wanted that"

    def _load(self, identity: QueueJob) -> QueuedJob:
        job = self.queue.get(identity.id)
        if job is None or job.identity != identity:
            raise NotHeld
        return job

    def _patch(self, view: JobView, **change: Any) -> None:
        resource = self.api.get(view.name)
        if resource is None or resource.uid != view.uid:
            return
        self._write()
        self.api[view.name] = self.seen[view.name] = replace(resource, **change)

    def _find(self, identity: QueueJob) -> JobView | None:
        view = self.seen.get(identity.resource_name)
        return view if view and view.queue_job == identity else None

    def _lock(self, job: QueuedJob) -> Lock:
        if job.lock == self.token:
            return Lock.OURS
        if not job.lock:
            return Lock.ABSENT
        return Lock.FORMER if job.lock.startswith(OURS) else Lock.FOREIGN

    def _uid(self, job: QueuedJob) -> str | None:
        name, _, uid = job.uid.partition("/")
        return uid if name == job.identity.resource_name else None

    def _due(self, job: QueuedJob) -> bool:
        return job.scheduled and not self.successors.get(job.id)

    def check_swept(self) -> None:
        """What a whole sweep has seen to, of what the watch had told."""
        for job in self.queue.values():
            view = self._find(job.identity)
            if job.state != "active" or view is None:
                continue
            ours, noted = job.lock == self.token, self._uid(job) == view.uid
            former = job.lock.startswith(OURS) and job.lock != ELSEWHERE
            assert ours or not (job.lock == "" or (former and noted)), f"{job} has lost its lock"
            if ours:
                assert noted, f"{job} does not know its resource"
                assert view.spec.cancel or job.cancel != job.identity, f"{job} is not cancelled"
                assert not view.status.phase.terminal, f"{job} was not finished"
        for view in self.seen.values():
            identity = view.queue_job
            assert identity
            now = self.queue.get(identity.id)
            if view.status.phase.terminal or view.spec.cancel:
                continue
            theirs = now and (now.lock == WORKER or (now.lock == ELSEWHERE and now.uid))
            assert not theirs, f"{identity} runs here, and another worker has it"
            assert view.queue_job_lost or (now and now.identity == identity), f"nobody waits for {identity}"

    # What happens around it.

    def hear(self) -> None:
        """The watch tells all."""
        self.seen = dict(self.api)

    def excuse(self, identity: QueueJob | None, why: str) -> None:
        if identity:
            self.excuses.setdefault(identity, set()).add(why)

    def add(self, job_id: str, scheduled: bool) -> None:
        if job_id not in self.queue:
            self.clock += 1
            self.queue[job_id] = QueuedJob(job_id, self.clock, scheduled=scheduled)
            self.successors.pop(job_id, None)

    def end_resource(self, name: str, phase: Phase) -> None:
        view = self.api[name]
        if not view.status.phase.terminal:
            phase = Phase.CANCELLED if view.spec.cancel else phase
            self.api[name] = replace(view, status=view.status.model_copy(update={"phase": phase}))

    def check_stalled(self) -> None:
        """BullMQ's stalled check, by whatever worker."""
        for job in self.queue.values():
            if job.marked and job.state == "active" and not job.lock:
                job.stalls += 1
                job.state, job.marked = "wait", False
                if job.stalls > MAX_STALLS and not job.scheduled:
                    job.deferred = "job stalled more than allowable limit"
        for job in self.queue.values():
            job.marked = job.state == "active"

    def snapshot(self) -> Any:
        return copy.deepcopy((self.queue, self.successors, self.remembered))

    def restore(self, snapshot: Any) -> None:
        """Redis is killed and comes back with what it had on its disk."""
        self.queue, self.successors, self.remembered = copy.deepcopy(snapshot)
        self.process += 1
        self.rolled_back = True
