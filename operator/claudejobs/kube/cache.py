"""What is known of jobs and pods: fed by the watch, by full listings and by the answers to our own writes."""

from __future__ import annotations

import logging
from typing import Any

from pydantic import ValidationError

from claudejobs.api.status import Phase
from claudejobs.reconcile.dependencies import find_cycle
from claudejobs.reconcile.views import JobView, Key, PodView, is_newer

logger = logging.getLogger(__name__)


class Cache:
    """Trimmed views by job. An older version of an object never takes the place of a newer one, so that the answer
    to a write is not undone by a watch event that was on its way."""

    def __init__(self) -> None:
        self.jobs: dict[Key, JobView] = {}
        self._pods: dict[Key, dict[str, PodView]] = {}
        self._dependents: dict[Key, set[Key]] = {}

    def put_job(self, obj: dict[str, Any]) -> JobView | None:
        """Take a job in; returns what is now held of it.

        A job whose status cannot be read was written by a newer operator, or by hand. It is left alone: acting on it
        could start again what has ended.
        """
        try:
            new = JobView.parse(obj)
        except ValidationError as error:
            meta = obj["metadata"]
            logger.error(
                "job %s/%s is left alone: its status cannot be read: %s", meta["namespace"], meta["name"], error
            )
            self.jobs.pop((meta["namespace"], meta["name"]), None)
            return None
        old = self.jobs.get(new.key)
        if old is None or old.uid != new.uid or is_newer(new.resource_version, old.resource_version):
            self.jobs[new.key] = new
            for name in new.spec.depends_on:
                self._dependents.setdefault((new.namespace, name), set()).add(new.key)
        return self.jobs[new.key]

    def dependents_of(self, key: Key) -> set[Key]:
        """Jobs that wait, or waited, for this one."""
        return self._dependents.get(key, set())

    def dependencies_of(self, job: JobView) -> dict[str, Phase | None]:
        """The phases of the jobs that a job waits for; ``None`` where there is no such job."""
        held = {name: self.jobs.get((job.namespace, name)) for name in job.spec.depends_on}
        return {name: other.status.phase if other else None for name, other in held.items()}

    def cycle_of(self, job: JobView) -> list[str]:
        """The circle of dependencies that a job is part of, if it is."""

        def depends_on(name: str) -> list[str]:
            other = self.jobs.get((job.namespace, name))
            return other.spec.depends_on if other else []

        return find_cycle(job.name, depends_on) if job.spec.depends_on else []

    def drop_job(self, key: Key, uid: str) -> JobView | None:
        """The job is gone; returns what was held, unless another job of that name has taken its place."""
        held = self.jobs.get(key)
        if held is None or held.uid != uid:
            return None
        for name in held.spec.depends_on:
            others = self._dependents.get((held.namespace, name), set())
            others.discard(key)
            if not others:
                self._dependents.pop((held.namespace, name), None)
        return self.jobs.pop(key)

    def put_pod(self, obj: dict[str, Any]) -> PodView | None:
        """Take a pod in; ``None`` when it is not an attempt of a job."""
        new = PodView.parse(obj)
        if new is None:
            return None
        pods = self._pods.setdefault(new.job, {})
        old = pods.get(new.name)
        if old is None or old.uid != new.uid or is_newer(new.resource_version, old.resource_version):
            pods[new.name] = new
        return pods[new.name]

    def drop_pod(self, job: Key, name: str, uid: str) -> PodView | None:
        """The pod is gone; returns what was held."""
        pods = self._pods.get(job, {})
        held = pods.get(name)
        if held is None or held.uid != uid:
            return None
        del pods[name]
        if not pods:
            self._pods.pop(job, None)
        return held

    def pods_of(self, job: JobView) -> list[PodView]:
        """The pods whose owner is this very job, not one of the same name that was there before it."""
        return [pod for pod in self._pods.get(job.key, {}).values() if pod.job_uid == job.uid]

    def all_pods(self) -> list[PodView]:
        """Every pod held."""
        return [pod for pods in self._pods.values() for pod in pods.values()]
