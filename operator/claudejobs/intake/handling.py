"""Does what ``plan`` says with one queue job: makes its resource, or finishes it with the resource's end."""

from __future__ import annotations

import logging
from typing import Any

from claudejobs.api.job_data import PayloadError
from claudejobs.api.queue_job import QueueJob
from claudejobs.api.status import JobStatus, Phase
from claudejobs.reconcile.views import JobView

from .bull import BullQueue, Loaded
from .dead_letter import bury
from .mapping import failed_reason, history, return_value
from .plan import Step, plan_held
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

    async def begin(self, fetched: Loaded) -> None:
        """Do what a queue job needs that was fetched just now: a resource, unless it was fetched before.

        Raises:
            NotHeld: it is not held any more, or it is another run by now.
        """
        identity = fetched.identity
        keep = fetched.opts.get("keepLogs", fetched.opts.get("kl"))
        self._reports.keep_logs(identity, keep if isinstance(keep, int) and keep > 0 else 0)
        job = self._resources.find(self.view, identity)
        for step in plan_held(fetched.active, job):
            await self.do(step, identity, job, fetched)

    async def do(self, step: Step, identity: QueueJob, job: JobView | None, loaded: Loaded | None = None) -> None:
        """Carry one step out.

        Args:
            job: the resource of this run, for the steps that are about one.
            loaded: the queue job, when it was read just now.

        Raises:
            NotHeld: as above.
        """
        match step:
            case Step.REVIVE | Step.TAKE_OVER:
                await self._bull.take_lock(identity.id, self.lock_ms, former=step is Step.TAKE_OVER)
            case Step.FAIL_DELETED if await self._resources.exists(self.view, identity):
                return  # the view of things may lack a job whose status it cannot read: only the API server knows
            case Step.SCHEDULE_NEXT | Step.CREATE | Step.FAIL_CANCELLED | Step.FAIL_DELETED | Step.FAIL_STALLED:
                await self._do_without_resource(step, loaded or await self._bull.load(identity))
            case _:
                assert job is not None
                await self._do_with_resource(step, identity, job)

    async def _do_without_resource(self, step: Step, loaded: Loaded) -> None:
        match step:
            case Step.SCHEDULE_NEXT:
                await self._bull.schedule_next(loaded)
            case Step.CREATE:
                await self._create(loaded)
            case Step.FAIL_CANCELLED:
                await self._bull.fail(loaded, "cancelled: before it ran")
            case Step.FAIL_DELETED:
                await self._bull.fail(loaded, "cancelled: its ClaudeCodeJob was deleted")
            case Step.FAIL_STALLED:
                await self._fail(loaded, f"stalled: {loaded.active.deferred_failure}")

    async def _do_with_resource(self, step: Step, identity: QueueJob, job: JobView) -> None:
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

    async def _create(self, loaded: Loaded) -> None:
        try:
            made, mapped = await self._resources.create(self.view, loaded)
        except (PayloadError, Refused) as error:
            await self._fail(loaded, f"invalid_request: {error}")
            return
        if mapped.notes:
            self._reports.say(loaded.identity, *mapped.notes)
        await self._bull.note_uid(loaded.identity, made["metadata"]["uid"])

    async def _fail(self, loaded: Loaded, reason: str, trace: tuple[str, ...] = ()) -> None:
        """Fail a queue job for good, its data kept in the dead-letter queue."""
        if self.view.spec.dead_letter:
            await bury(self._bull, loaded, reason, trace)
        await self._bull.fail(loaded, reason, trace)

    async def _deliver(self, identity: QueueJob, job: JobView) -> None:
        """Finish a queue job with the end of its resource."""
        resource = await self._resources.read(job)
        if resource is None:
            return  # deleted meanwhile; the next sweep sees that
        status = JobStatus.model_validate(resource["status"])
        if not status.phase.terminal:
            return  # it was run again
        await self._reports.flush_job(identity)
        await self._finish(await self._bull.load(identity), resource, status)
        self._settle(identity, job)

    async def _finish(self, loaded: Loaded, resource: dict[str, Any], status: JobStatus) -> None:
        if status.phase is Phase.COMPLETED:
            await self._bull.complete(loaded, return_value(resource, status))
            return
        reason, trace = failed_reason(status), (*history(status), *status.log_tail)
        if status.phase is Phase.CANCELLED:
            await self._bull.fail(loaded, reason, trace)
        else:
            await self._fail(loaded, reason, trace)

    def _settle(self, identity: QueueJob, job: JobView) -> None:
        self.settled.add(job.uid)
        self._reports.forget(identity)
