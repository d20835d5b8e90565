"""The cluster's side of a queue: makes and cancels the ClaudeCodeJobs of queue jobs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from claudejobs.api.queue import QueueSpec
from claudejobs.api.queue_job import QUEUE_JOB_ANNOTATION, QUEUE_JOB_LOST_ANNOTATION, QueueJob
from claudejobs.kube.client import MERGE_PATCH, ApiError, KubeClient, jobs_path
from claudejobs.kube.controller import Controller
from claudejobs.reconcile.views import JobView

from .bull import Loaded
from .mapping import Mapped, map_job


class Refused(Exception):
    """The queue job can never become a resource. The message is for its producer."""


@dataclass(frozen=True)
class QueueView:
    """A ClaudeCodeQueue as last seen. ``labels`` are those that its jobs get."""

    namespace: str
    name: str
    uid: str
    generation: int
    created: str
    spec: QueueSpec
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return (self.namespace, self.name)

    @property
    def qualified(self) -> str:
        """BullMQ's name of the queue, prefix included."""
        return f"{self.spec.prefix}:{self.spec.queue_name}"

    @property
    def target(self) -> str:
        """The namespace of its jobs."""
        return self.spec.target_namespace or self.namespace


class Resources:
    """The ClaudeCodeJobs of one queue."""

    def __init__(self, client: KubeClient, controller: Controller) -> None:
        self._client = client
        self._controller = controller

    def find(self, view: QueueView, identity: QueueJob) -> JobView | None:
        """The resource of this very run of a queue job."""
        job = self._controller.job((view.target, identity.resource_name))
        return job if job and job.queue_job == identity else None

    def of_queue(self, view: QueueView) -> list[JobView]:
        """All resources that were made for jobs of the queue."""
        return [
            job
            for job in self._controller.jobs()
            if job.queue_job and job.queue_job.queue == view.qualified and job.namespace == view.target
        ]

    async def create(self, view: QueueView, loaded: Loaded) -> tuple[dict[str, Any], Mapped]:
        """Make the resource, or find the one that was made before a crash or by a lost reply.

        Raises:
            PayloadError: the data can never be run.
            Refused: the API server will never take it.
            ApiError: it cannot be made now.
        """
        mapped = map_job(loaded.identity, loaded.data, loaded.opts, view.spec, view.name, view.target)
        mapped.manifest["metadata"]["labels"].update(view.labels)
        try:
            made = await self._client.request("POST", jobs_path(view.target), mapped.manifest)
        except ApiError as error:
            if error.status == 409 and error.reason == "AlreadyExists":
                made = await self._adopt(view, loaded.identity)
            elif error.status in (400, 413, 422):
                raise Refused(f"the API server refuses the job: {error.message}") from error
            else:
                raise
        self._controller.take_in(made)
        return made, mapped

    async def _adopt(self, view: QueueView, identity: QueueJob) -> dict[str, Any]:
        found = await self._client.get(jobs_path(view.target, identity.resource_name))
        if found is None:
            raise ApiError(409, "Conflict", f"job {identity.resource_name} is being deleted")
        held = QueueJob.parse((found["metadata"].get("annotations") or {}).get(QUEUE_JOB_ANNOTATION))
        if held != identity:
            raise Refused(f"a job {identity.resource_name} that is not this queue job's is in the way")
        return found

    async def read(self, job: JobView) -> dict[str, Any] | None:
        """The whole resource, with the answer that views do not hold; ``None`` when it is gone."""
        found = await self._client.get(jobs_path(job.namespace, job.name))
        return found if found and found["metadata"]["uid"] == job.uid else None

    async def exists(self, view: QueueView, identity: QueueJob) -> bool:
        """Whether the API server has the resource of this run."""
        return await self._client.get(jobs_path(view.target, identity.resource_name)) is not None

    async def cancel(self, job: JobView) -> None:
        """Ask for the end of a job."""
        await self._patch(job, {"spec": {"cancel": True}})

    async def mark_lost(self, job: JobView) -> None:
        """Note that Redis lost the queue job, so that the job is never taken for one that was removed."""
        await self._patch(job, {"metadata": {"annotations": {QUEUE_JOB_LOST_ANNOTATION: "true"}}})

    async def _patch(self, job: JobView, change: dict[str, Any]) -> None:
        body = {**change, "metadata": {"uid": job.uid, **change.get("metadata", {})}}
        try:
            changed = await self._client.request(
                "PATCH", jobs_path(job.namespace, job.name), body, content_type=MERGE_PATCH
            )
        except ApiError as error:
            if error.status not in (404, 409):  # gone, or another job of that name by now
                raise
            return
        self._controller.take_in(changed)
