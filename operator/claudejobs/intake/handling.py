"""Does what ``plan`` says with one queue job: makes its resource, or finishes it with the resource's end."""

from __future__ import annotations

import logging
from typing import Any

from claudejobs.api.job_data import PayloadError
from claudejobs.api.queue_job import QueueJob
from claudejobs.api.status import JobStatus, Phase
from claudejobs.reconcile.views import JobView

from .bull import BullQueue, Fetched, NotHeld
from .dead_letter import bury
from .mapping import failed_reason, history, return_value
from .plan import Step
from .reports import Reports
from .resources import QueueView, Refused, Resources

logger = logging.getLogger(__name__)


class Handler:
    """Carries steps out. They may raise what Redis and the API server raise, and are then planned again.

    Attributes:
        view: the queue's resource as last seen.
        settled: UIDs of resources of which no queue job's producer will hear any more.
    """

    def __init__(self, view: QueueView, bull: BullQueue, reports: Reports, resources: Resources) -> None:
        self.view = view
        self.settled: set[str] = set()
        self._bull = bull
        self._reports = reports
        self._resources = resources

    @property
    def lock_ms(self) -> int:
        """How long a lock lasts, milliseconds."""
        return self.view.spec.lock_seconds * 1000

    async def do(self, step: Step, identity: QueueJob, job: JobView | None) -> None:
        """Carry one step out; ``job`` is the resource of this run, for the steps that are about one."""
        match step:
            case Step.CREATE:
                fetched = await self._bull.load(identity.id)
                if fetched and fetched.identity == identity:
                    await self.begin(fetched)
            case Step.REVIVE | Step.TAKE_OVER:
                await self._bull.take_lock(identity.id, self.lock_ms, former=step is Step.TAKE_OVER)
            case Step.FAIL_CANCELLED:
                await self._bull.fail(identity, "cancelled: before it ran")
            case Step.FAIL_DELETED:
                # The view of things may lack a job whose status it cannot read: only the API server knows.
                if not await self._resources.exists(self.view, identity):
                    await self._bull.fail(identity, "cancelled: its ClaudeCodeJob was deleted")
            case _:
                assert job is not None
                await self._do_with(step, identity, job)

    async def _do_with(self, step: Step, identity: QueueJob, job: JobView) -> None:
        match step:
            case Step.NOTE_UID:
                await self._bull.note_uid(identity, job.uid)
            case Step.CANCEL_RESOURCE:
                await self._resources.cancel(job)
            case Step.MARK_LOST:
                logger.warning("Redis has lost queue job %s; its job %s/%s goes on", identity.id, *job.key)
                await self._resources.mark_lost(job)
            case Step.SETTLE:
                self._settle(identity, job)
            case Step.DELIVER:
                await self._deliver(identity, job)

    async def begin(self, fetched: Fetched) -> None:
        """Give a queue job that is held its resource."""
        identity = fetched.identity
        keep = fetched.opts.get("keepLogs", fetched.opts.get("kl"))
        self._reports.keep_logs(identity, keep if isinstance(keep, int) and keep > 0 else 0)
        job = self._resources.find(self.view, identity)
        if job and job.status.phase.terminal:
            await self._deliver(identity, job)
        elif job:
            return  # fetched again after its lock was lost
        elif fetched.uid:
            await self.do(Step.FAIL_DELETED, identity, None)
        elif fetched.cancel:
            await self.do(Step.FAIL_CANCELLED, identity, None)
        elif fetched.deferred_failure:
            await self._fail(fetched, f"stalled: {fetched.deferred_failure}")
        else:
            await self._create(fetched)

    async def _create(self, fetched: Fetched) -> None:
        try:
            made, mapped = await self._resources.create(self.view, fetched)
        except (PayloadError, Refused) as error:
            await self._fail(fetched, f"invalid_request: {error}")
            return
        if mapped.notes:
            self._reports.say(fetched.identity, *mapped.notes)
        await self._bull.note_uid(fetched.identity, made["metadata"]["uid"])

    async def _fail(self, fetched: Fetched, reason: str, trace: tuple[str, ...] = ()) -> None:
        """Fail a queue job for good, its data kept in the dead-letter queue."""
        if self.view.spec.dead_letter:
            await bury(self._bull, fetched, reason, trace)
        await self._bull.fail(fetched.identity, reason, trace)

    async def _deliver(self, identity: QueueJob, job: JobView) -> None:
        """Finish a queue job with the end of its resource."""
        resource = await self._resources.read(job)
        if resource is None:
            return  # deleted meanwhile; the next sweep sees that
        status = JobStatus.model_validate(resource["status"])
        if not status.phase.terminal:
            return  # it was run again
        await self._reports.flush_job(identity)
        await self._finish(identity, resource, status)
        self._settle(identity, job)

    async def _finish(self, identity: QueueJob, resource: dict[str, Any], status: JobStatus) -> None:
        if status.phase is Phase.COMPLETED:
            await self._bull.complete(identity, return_value(resource, status))
            return
        reason, trace = failed_reason(status), (*history(status), *status.log_tail)
        if status.phase is Phase.CANCELLED:
            await self._bull.fail(identity, reason, trace)
            return
        fetched = await self._bull.load(identity.id)
        if fetched is None or fetched.identity != identity:
            raise NotHeld(f"queue job {identity.id} is gone, or was finished before")
        await self._fail(fetched, reason, trace)

    def _settle(self, identity: QueueJob, job: JobView) -> None:
        self.settled.add(job.uid)
        self._reports.forget(identity)
