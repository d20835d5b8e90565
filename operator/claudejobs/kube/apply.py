"""Carries a decision out. The order is what makes a crash between any two steps harmless: see each step."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import Any, Literal, NoReturn

from pydantic import ValidationError

from claudejobs.api.categories import Category
from claudejobs.api.status import JobStatus, Phase
from claudejobs.metrics import Metrics
from claudejobs.reconcile import report
from claudejobs.reconcile.claim import build_claim, claim_hindrance
from claudejobs.reconcile.decide import Decision, PodDeletion
from claudejobs.reconcile.endings import Ending
from claudejobs.reconcile.pod import PodBuildError, build_pod, pod_name
from claudejobs.reconcile.pool import WarmPod, hand_over
from claudejobs.reconcile.views import JobView, Key
from claudejobs.settings import Settings

from .cache import Cache
from .client import MERGE_PATCH, ApiError, KubeClient, claims_path, jobs_path, pods_path
from .pools import Pools

logger = logging.getLogger(__name__)


class Stale(Exception):
    """The API server knows better than the view that the decision was made from."""


class Applier:
    """Turns decisions into API calls."""

    def __init__(
        self, client: KubeClient, cache: Cache, pools: Pools, settings: Settings, metrics: Metrics | None = None
    ) -> None:
        self._client = client
        self._pools = pools
        self._cache = cache
        self._settings = settings
        self._metrics = metrics
        self._progress_written: dict[Key, float] = {}

    async def apply(self, job: JobView, decision: Decision) -> float | None:
        """Carry the decision out; returns after how many seconds to look again, if at all.

        Raises:
            ApiError: the API server refused or was away; the key is to be tried again.
            Stale: the decision is void.
        """
        after = decision.after
        status = decision.status
        if decision.confirm_gone:
            await self._confirm_gone(job, decision.confirm_gone)
        for deletion in decision.delete_pods:
            await self._delete_pod(job, deletion)
        if decision.create is not None:
            # The pod comes first: a status that speaks of a pod that was never made would look like a lost one,
            # while a pod that no status speaks of yet is found by its owner reference.
            assert status is not None
            status = await self._create_pod(job, decision.create, decision.claim, status)
        if decision.hand_over is not None:
            status = await self._hand_over(job, decision.hand_over)
        if decision.take_back is not None:
            status = await self._take_back(job, decision.take_back)
        if status is not None:
            wait = await self._write_status(job, status)
            after = wait if after is None else min(after, wait or after)
        if decision.delete_job:
            await self._delete_job(job)
        return after

    def forget(self, key: Key) -> None:
        """The job is no more."""
        self._progress_written.pop(key, None)

    async def _confirm_gone(self, job: JobView, name: str) -> None:
        pod = await self._client.get(pods_path(job.namespace, name))
        if pod is None:
            return
        view = self._cache.put_pod(pod)
        if view is not None and view.job_uid == job.uid:
            raise Stale(f"pod {name} exists")

    async def _delete_pod(self, job: JobView, deletion: PodDeletion) -> None:
        """Delete the very pod that was judged: the UID keeps a successor of the same name safe."""
        body: dict[str, Any] = {"preconditions": {"uid": deletion.uid}}
        if deletion.grace is not None:
            body["gracePeriodSeconds"] = deletion.grace
        try:
            answer = await self._client.request("DELETE", pods_path(job.namespace, deletion.name), body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            return
        if answer.get("kind") == "Pod":
            self._cache.put_pod(answer)

    async def _create_pod(self, job: JobView, attempt: int, claim: str | None, status: JobStatus) -> JobStatus:
        """Make the pod, and before it the claim that it needs; returns the status to write, which is another one when
        the job can never have a pod."""
        fresh = await self._fresh(job)
        try:
            body = build_pod(fresh, attempt, status.session_id or "", job.status.cost_usd, self._settings)
            if claim:
                await self._ensure_claim(job, claim)
        except (PodBuildError, ValidationError) as error:
            return self._unbuildable(job, str(error))
        try:
            self._cache.put_pod(await self._client.request("POST", pods_path(job.namespace), body))
        except ApiError as error:
            if error.status == 409 and error.reason == "AlreadyExists":
                await self._adopt(job, attempt)
            elif error.status in (400, 422):
                return self._unbuildable(job, f"the API server rejects the pod: {error.message}")
            elif error.status == 403:
                await self._refused(job, "Pod", error)
            else:
                raise
        return status

    async def _fresh(self, job: JobView) -> dict[str, Any]:
        """The job as it is now, prompt included.

        Raises:
            Stale: it is not the one that the decision was made from.
        """
        fresh = await self._client.get(jobs_path(job.namespace, job.name))
        if fresh is None or fresh["metadata"]["uid"] != job.uid:
            self._cache.drop_job(job.key, job.uid)
            raise Stale("the job is gone")
        if fresh["metadata"]["resourceVersion"] != job.resource_version:
            self._cache.put_job(fresh)
            raise Stale("the job has changed")
        return fresh

    async def _hand_over(self, job: JobView, name: str) -> JobStatus | None:
        """Give the job the warm pod that its status names; the status to write when the pod is not to be had.

        It is not, for good, when it is gone, has ended or has another owner: whatever is still under way then meets
        a version of the pod that is no more. As long as it waits, it is this job's or nobody's.
        """
        fresh = await self._fresh(job)
        pod = await self._reserved(job, name)
        if pod is None or not pod.free:
            return report.unreserved(job.status)
        status, now = job.status, datetime.now(UTC)
        try:
            body = hand_over(pod, fresh, status.attempt, status.session_id or "", status.cost_usd, self._settings, now)
        except (PodBuildError, ValidationError) as error:
            return self._unbuildable(job, str(error))
        try:
            answer = await self._client.request("PATCH", pods_path(job.namespace, name), body, content_type=MERGE_PATCH)
        except ApiError as error:
            if error.status in (404, 409):
                raise Stale(f"pod {name} has changed") from error
            if error.status == 403:
                self._pools.forbidden(error)
                return report.unreserved(job.status)
            if error.status in (400, 422):
                return self._unbuildable(job, f"the API server rejects the pod: {error.message}")
            raise
        self._pools.saw(job.namespace, name, answer)
        self._cache.put_pod(answer)
        return None

    async def _take_back(self, job: JobView, name: str) -> JobStatus:
        """End a reservation; the status to write. A patch whose answer was lost may still come: only a pod that goes is
        surely not the job's."""
        pod = await self._reserved(job, name)
        if pod is not None and not await self._pools.delete(pod):
            raise Stale(f"pod {name} has changed")
        return report.unreserved(job.status)

    async def _reserved(self, job: JobView, name: str) -> WarmPod | None:
        """The reserved pod as it is now; ``None`` when it is gone, or another job's.

        Raises:
            Stale: it is this job's already: it was given to it before a crash, or by another operator.
        """
        obj = await self._client.get(pods_path(job.namespace, name))
        self._pools.saw(job.namespace, name, obj)
        view = self._cache.put_pod(obj) if obj else None
        if view is not None and view.job_uid == job.uid:
            raise Stale(f"pod {name} is the job's already")
        return WarmPod.parse(obj) if obj else None

    async def _ensure_claim(self, job: JobView, name: str) -> None:
        """Make the job's claim, unless it was made by an earlier attempt, or before a crash.

        Raises:
            PodBuildError: there can be no such claim.
        """
        try:
            claim = await self._client.get(claims_path(job.namespace, name))
            if claim is None:
                claim = await self._client.request("POST", claims_path(job.namespace), build_claim(job))
        except ApiError as error:
            if error.status == 409 and error.reason == "AlreadyExists":
                raise Stale(f"claim {name} has just been made") from error
            if error.status in (400, 422):
                text = f"spec.workspace.volumeClaimTemplate: the API server rejects the claim: {error.message}"
                raise PodBuildError(text) from error
            if error.status == 403:
                await self._refused(job, "Claim", error)
            raise
        if hindrance := claim_hindrance(claim, job):
            await self._hindered(job, *hindrance)

    async def _adopt(self, job: JobView, attempt: int) -> None:
        """A pod of that name exists: this attempt's, made before a crash or by another operator, or one in the way."""
        name = pod_name(job.name, attempt)
        pod = await self._client.get(pods_path(job.namespace, name))
        view = self._cache.put_pod(pod) if pod else None
        if view is None or view.job_uid != job.uid:
            text = f"a pod called {name} that is not this job's is in the way; it is waited for"
            await self._hindered(job, "PodNameTaken", text)

    async def _hindered(self, job: JobView, reason: str, text: str) -> NoReturn:
        """Something is in the way that will go, or that somebody has to remove: say so, and try again."""
        await self._write_status(job, report.waiting(job.status, Phase.PENDING, reason, text))
        raise ApiError(409, reason, text, retry_after=2.0)

    async def _refused(self, job: JobView, kind: Literal["Pod", "Claim"], error: ApiError) -> NoReturn:
        """A quota or an admission policy says no: say so, and try again."""
        reason = "QuotaExceeded" if "exceeded quota" in error.message else f"{kind}Forbidden"
        text = f"the API server refuses the {kind.lower()}: {error.message}"
        await self._write_status(job, report.waiting(job.status, Phase.PENDING, reason, text[:2000]))
        raise ApiError(403, reason, text, retry_after=10.0)

    def _unbuildable(self, job: JobView, message: str) -> JobStatus:
        ending = Ending(Category.INVALID_REQUEST, message[:2000])
        return report.finished(job.status, Phase.FAILED, ending, job, datetime.now(UTC))

    async def _write_status(self, job: JobView, status: JobStatus) -> float | None:
        """Write the status if it differs; a change of progress alone waits for its interval.

        Returns:
            Seconds until a progress that was held back may be written, or ``None``.
        """
        current = self._cache.jobs.get(job.key, job).status
        if status == current:
            return None
        now = time.monotonic()
        if _only_progress_differs(current, status):
            due = self._progress_written.get(job.key, now - 1e9) + self._settings.progress_interval
            if now < due:
                return due - now
        self._progress_written[job.key] = now
        new = status.model_dump(by_alias=True, mode="json", exclude_none=True)
        try:
            answer = await self._client.patch_status(job.namespace, job.name, job.resource_version, new)
        except ApiError as error:
            if error.status == 409:
                await self._refresh(job)
                raise Stale("the job has changed") from error
            if error.status == 404:
                raise Stale("the job is gone") from error
            raise
        if self._metrics:
            self._metrics.status_written(job.namespace, job.created, current, status, datetime.now(UTC))
        self._cache.put_job(answer)
        return None

    async def _refresh(self, job: JobView) -> None:
        fresh = await self._client.get(jobs_path(job.namespace, job.name))
        if fresh is not None:
            self._cache.put_job(fresh)

    async def _delete_job(self, job: JobView) -> None:
        body = {"preconditions": {"uid": job.uid}, "propagationPolicy": "Background"}
        try:
            await self._client.request("DELETE", jobs_path(job.namespace, job.name), body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise


def _only_progress_differs(old: JobStatus, new: JobStatus) -> bool:
    """Whether all that changed is how far the agent is, or how far back in the line the job is."""
    volatile = {"progress": 0, "message": ""}
    steady = old.phase in (Phase.RUNNING, Phase.QUEUED)
    return steady and old.model_copy(update=volatile) == new.model_copy(update=volatile)
