"""The controller: whatever is seen of a job leads to one reconciliation of it, which sees, decides and acts."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import Any, Protocol

from claudejobs.api.process_state import process_id
from claudejobs.api.status import Phase
from claudejobs.metrics import Metrics, Reconcile
from claudejobs.reconcile.admission import Admission, Claim, Limits, Room
from claudejobs.reconcile.decide import Seen, decide
from claudejobs.reconcile.rows import closed_row, row_of, rows_of
from claudejobs.reconcile.views import JobView, Key, LiveReport
from claudejobs.settings import Settings
from claudejobs.store import Store, StoreUnavailableError

from .apply import Applier, Stale
from .cache import Cache
from .client import POD_SELECTOR, ApiError, KubeClient, jobs_path, pods_path
from .logs import LogFollowers
from .pools import Pools
from .workqueue import QueueClosed, WorkQueue

logger = logging.getLogger(__name__)

ROW_PATIENCE = 0.5
"""Seconds after which a job whose time to live is over is looked at again, when its row was not written yet."""


class JobListener(Protocol):
    """Who wants to know what becomes of jobs: the queue intake."""

    def job_changed(self, job: JobView, live: LiveReport | None) -> None:
        """A job was looked at, and may have changed."""

    def job_gone(self, job: JobView) -> None:
        """A job was deleted."""

    def job_said(self, key: Key, text: str) -> None:
        """The agent did or printed something; each line comes once, as long as the database answers."""

    def waits(self, job: JobView) -> bool:
        """Whether a finished job must be kept, because its end was not told yet."""


class Controller:
    """Holds the views, the work queue and the workers. For one event loop."""

    def __init__(self, client: KubeClient, store: Store, settings: Settings, metrics: Metrics) -> None:
        self._client = client
        self._metrics = metrics
        self._store = store
        self._settings = settings
        self._queue: WorkQueue[Key] = WorkQueue()
        self._cache = Cache()
        self.pools = Pools(client, settings)
        self._applier = Applier(client, self._cache, self.pools, settings, metrics)
        self._admission = Admission(
            Limits(settings.max_concurrent_jobs, settings.max_jobs_per_namespace, settings.max_jobs_per_user)
        )
        self._logs = LogFollowers(client, store, self._queue.add, self._said)
        self._starting: set[Key] = set()  # their pods are being made, and no view has them yet
        self.listener: JobListener | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._resync_task: asyncio.Task[None] | None = None
        self.last_resync: float | None = None
        """When the last full listing ended (``time.monotonic``); ``None`` before the first."""

    async def start(self) -> None:
        """List everything, then start the workers and the periodic listing.

        Raises:
            ApiError: the first listing failed.
        """
        await self.resync()
        self._workers = [asyncio.create_task(self._work(), name=f"worker {n}") for n in range(self._settings.workers)]
        self._resync_task = asyncio.create_task(self._resync_periodically(), name="resync")
        self.pools.start()

    async def stop(self, timeout: float = 10.0) -> None:
        """Let running reconciliations end, at most ``timeout`` seconds, and stop."""
        self._queue.close()
        if self._resync_task:
            self._resync_task.cancel()
        await self.pools.stop()
        if self._workers:
            _, late = await asyncio.wait(self._workers, timeout=timeout)
            for task in late:
                task.cancel()
        await self._logs.stop()

    def on_job(self, event: str | None, obj: dict[str, Any]) -> None:
        """An event of a job: remember it and look at the job."""
        key = (obj["metadata"]["namespace"], obj["metadata"]["name"])
        if event == "DELETED":
            self._job_gone(key, obj["metadata"]["uid"])
        else:
            self._cache.put_job(obj)
        self._queue.add(key)

    def on_pod(self, event: str | None, obj: dict[str, Any]) -> None:
        """An event of a pod: remember it and look at its job."""
        self.pools.on_pod(event, obj)
        pod = self._cache.put_pod(obj)
        if pod is None:
            return
        if event == "DELETED":
            self._cache.drop_pod(pod.job, pod.name, pod.uid)
        self._queue.add(pod.job)

    def job(self, key: Key) -> JobView | None:
        """A job as last seen."""
        return self._cache.jobs.get(key)

    def jobs(self) -> list[JobView]:
        """All jobs as last seen."""
        return list(self._cache.jobs.values())

    def take_in(self, obj: dict[str, Any]) -> None:
        """A job that this process has just made or read: known at once, without waiting for the watch."""
        job = self._cache.put_job(obj)
        if job:
            self._account(job)
            self._queue.add(job.key)

    def room(self, namespace: str) -> Room:
        """Slots that are free for jobs of a namespace, and jobs of it that wait for one."""
        return self._admission.room(namespace)

    def workload(self) -> dict[str, int]:
        """How many jobs are to be looked at, by the state of their keys in the work queue."""
        return self._queue.sizes()

    async def resync(self) -> None:
        """List all jobs and pods, and mend what the watch missed: also deletions, which it can miss for ever.

        Jobs are listed before pods, so that a pod that a job's status speaks of is never missing from the list.
        """
        namespaces: list[str | None] = list(self._settings.watch_namespaces) or [None]
        before_jobs = dict(self._cache.jobs)
        jobs, pods = set(), set()
        for namespace in namespaces:
            async for obj in self._client.list(jobs_path(namespace)):
                self._cache.put_job(obj)
                jobs.add((obj["metadata"]["namespace"], obj["metadata"]["name"]))
        before_pods = self._cache.all_pods()
        waiting = self.pools.pods
        there = set()
        for namespace in namespaces:
            async for obj in self._client.list(pods_path(namespace), POD_SELECTOR):
                self.pools.on_pod(None, obj)
                there.add(obj["metadata"]["uid"])
                pod = self._cache.put_pod(obj)
                if pod:
                    pods.add(pod.uid)
        await self.pools.resync(namespaces, [pod for pod in waiting if pod.uid not in there])
        for key, job in before_jobs.items():
            if key not in jobs:
                self._job_gone(key, job.uid)
        for pod in before_pods:
            if pod.uid not in pods and self._cache.drop_pod(pod.job, pod.name, pod.uid):
                self._queue.add(pod.job)
        for job in list(self._cache.jobs.values()):
            self._account(job)
            for row in rows_of(job):
                self._store.put(row)
            self._queue.add(job.key)
        self.last_resync = time.monotonic()

    async def close_orphans(self) -> int:
        """Close the rows of attempts whose job is gone, which happens when it was deleted while no operator ran.

        Returns:
            How many rows were closed.
        """
        closed = 0
        for row in await self._store.open_attempts():
            job = await self._client.get(jobs_path(row.job_namespace, row.job_name))
            if job is None or job["metadata"]["uid"] != row.job_uid:
                now = datetime.now(UTC)
                self._store.put(closed_row(row.job_uid, row.job_namespace, row.job_name, row.attempt, now))
                closed += 1
        return closed

    async def _resync_periodically(self) -> None:
        while True:
            try:
                closed = await self.close_orphans()
                if closed:
                    logger.info("closed rows of deleted jobs", extra={"rows": closed})
            except (StoreUnavailableError, ApiError) as error:
                logger.info("rows of deleted jobs are looked for later: %s", error)
            await asyncio.sleep(self._settings.resync_seconds)
            try:
                await self.resync()
            except ApiError as error:
                logger.warning("the full listing failed and is made later: %s", error)

    async def _work(self) -> None:
        while True:
            try:
                key = await self._queue.get()
            except QueueClosed:
                return
            with self._metrics.reconcile() as look:
                try:
                    await self._look_at(key, look)
                finally:
                    self._queue.done(key)

    async def _look_at(self, key: Key, look: Reconcile) -> None:
        """Reconcile; what goes wrong is tried again."""
        try:
            await self._reconcile(key)
            self._queue.succeeded(key)
        except Stale as stale:
            look.result = "stale"
            delay = self._queue.retry(key)
            logger.debug("job %s/%s: %s; again in %.1f s", *key, stale, delay)
        except ApiError as error:
            look.result = "api_error"
            delay = self._queue.retry(key, error.retry_after or 0.0)
            self._stand_aside(key)
            logger.warning("job %s/%s: %s; again in %.1f s", *key, error, delay)
        except Exception:
            look.result = "defect"
            delay = self._queue.retry(key)
            self._stand_aside(key)
            logger.exception("job %s/%s: a defect; again in %.1f s", *key, delay)

    async def _reconcile(self, key: Key) -> None:
        """See, decide, act, mirror."""
        job = self._cache.jobs.get(key)
        if job is None:
            self._forget(key)
            return
        pods = self._cache.pods_of(job)
        self._account(job)
        newest = max(pods, key=lambda pod: pod.attempt, default=None)
        process = process_id(job.uid, max(newest.attempt if newest else 0, job.status.attempt))
        live = self._logs.report(process)
        if not job.status.phase.terminal:
            if newest:
                self._logs.follow(newest)
        elif live is None or live.drained:
            self._logs.forget_job(job.uid)
        admitted = self._admission.admits(key)
        seen = Seen(
            job=job,
            pods=pods,
            live=live,
            admitted=admitted,
            waiting_message="" if admitted else self._admission.waiting_message(key),
            now=datetime.now(UTC),
            dependencies=self._cache.dependencies_of(job),
            cycle=self._cache.cycle_of(job),
            warm=self.pools.offer(job),
        )
        decision = decide(seen, self._settings)
        self.pools.hold(key, decision.reserve or decision.hand_over or decision.take_back)
        if decision.delete_job and self._untold(job):
            # Once the job is gone, only its row tells how it ended: a crash now would make that "the job was deleted".
            self._queue.add_after(key, ROW_PATIENCE)
            return
        if decision.create is not None or decision.reserve is not None:
            self._admission.hold(_claim(job))  # before the first await, so that no other worker takes the slot
            self._starting.add(key)
        try:
            after = await self._applier.apply(job, decision)
        finally:
            self._starting.discard(key)
            self._mirror(key, live)
        if after is not None:
            self._queue.add_after(key, after)

    def _mirror(self, key: Key, live: LiveReport | None) -> None:
        """Bring the row and the slots in line with what is now known of the job."""
        job = self._cache.jobs.get(key)
        if job is None:
            return
        row = row_of(job, job.status, live)
        if row:
            self._store.put(row)
        self._account(job)
        if self.listener:
            self.listener.job_changed(job, live)
        if job.status.phase.terminal:
            self._wake_dependents(key)

    def _untold(self, job: JobView) -> bool:
        """Whether the database or a queue's producer does not know yet how the job ended."""
        row = self._store.waits(process_id(job.uid, job.status.attempt))
        return row or (self.listener is not None and self.listener.waits(job))

    def _said(self, key: Key, text: str) -> None:
        if self.listener:
            self.listener.job_said(key, text)

    def _wake_dependents(self, key: Key) -> None:
        for dependent in self._cache.dependents_of(key):
            other = self._cache.jobs.get(dependent)
            if other and not other.status.phase.terminal:
                self._queue.wake(dependent)

    def _account(self, job: JobView) -> None:
        """Tell the admission what the job holds or wants, and wake whoever may go now."""
        status, key = job.status, job.key
        live_pod = any(not pod.terminated for pod in self._cache.pods_of(job))
        resting = job.spec.suspend or job.spec.cancel or job.deleting or job.invalid is not None
        if live_pod or key in self._starting or (status.open_attempt and not status.phase.terminal):
            self._admission.hold(_claim(job))
            return
        backing_off = status.next_attempt_time is not None and status.next_attempt_time > datetime.now(UTC)
        phases = self._cache.dependencies_of(job).values()
        depending = not status.attempts and any(phase is not Phase.COMPLETED for phase in phases)
        if status.phase.terminal or resting or backing_off or depending:
            freed = self._admission.release(key)
        else:
            freed = self._admission.wait(_claim(job))
        if freed:
            self._wake_waiting()

    def _stand_aside(self, key: Key) -> None:
        """A job that cannot have its pod now (a quota, an outage) must not keep the slot from those behind it."""
        job = self._cache.jobs.get(key)
        if job and not job.status.open_attempt and not self._cache.pods_of(job) and self._admission.stand_aside(key):
            self._wake_waiting()

    def _wake_waiting(self) -> None:
        for key in self._admission.next_up():
            self._queue.wake(key)

    def _job_gone(self, key: Key, uid: str) -> None:
        """Close the row of a job that was deleted while an attempt was open. Its pod goes with it."""
        job = self._cache.drop_job(key, uid)
        self._logs.forget_job(uid)
        if job and self.listener:
            self.listener.job_gone(job)
        if job and job.status.open_attempt:
            row = row_of(job, job.status, None)
            assert row is not None
            closed = closed_row(job.uid, *key, job.status.attempt, datetime.now(UTC))
            told = closed.model_dump(include={"status", "end_time", "error", "error_category"})
            self._store.put(row.model_copy(update=told))
        self._queue.add(key)

    def _forget(self, key: Key) -> None:
        self._applier.forget(key)
        self.pools.hold(key, None)
        self._queue.forget(key)
        if self._admission.release(key):
            self._wake_waiting()


def _claim(job: JobView) -> Claim:
    return Claim(job.key, job.spec.user_id, job.spec.priority, job.created)
