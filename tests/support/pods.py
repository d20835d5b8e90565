"""Pods without a kubelet: a thread plays its part for the jobs of one namespace, as their prompts say."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from claudejobs.api.categories import Category
from claudejobs.kube.client import ApiError
from tests.chaos.api import Api, View
from tests.chaos.kubelet import Kubelet, cancelled, completed, failed, fake_node, placement

from .kube import Namespace, wait_for

Json = dict[str, Any]


class PlayedPods:
    """What became of the jobs of a namespace, and a word in how their pods get on.

    A pod runs as soon as it is scheduled. Its job's prompt says what then: ``hold`` waits for ``release``, ``fail``
    fails as billing does, anything else completes. A pod that is deleted ends as cancelled.

    Attributes:
        placement: the podTemplate with which pods come here.
        most: most jobs that were not at their end at a time.
    """

    def __init__(self, node: str, api: Api, view: View, kubelet: Kubelet, loop: asyncio.AbstractEventLoop) -> None:
        self.placement = placement(node)
        self.most = 0
        self._api, self._view, self._kubelet, self._loop = api, view, kubelet, loop
        self._released: set[str] = set()
        self._ran: set[str] = set()
        self._ended: set[str] = set()

    def jobs(self, queue: str) -> list[Json]:
        """The resources of a ClaudeCodeQueue, the oldest first."""
        found = [
            job
            for job in list(self._view.jobs.values())
            if job["metadata"].get("labels", {}).get("claudecode.dev/queue") == queue
        ]
        return sorted(found, key=lambda job: (job["metadata"]["creationTimestamp"], job["metadata"]["name"]))

    def job(self, queue: str, job_id: str) -> Json | None:
        """The newest resource of a queue job."""
        found = [job for job in self.jobs(queue) if identity_of(job)["id"] == job_id]
        return max(found, key=lambda job: int(job["metadata"]["resourceVersion"]), default=None)

    def wait_phase(self, queue: str, job_id: str, phase: str, timeout: float = 60.0) -> Json:
        """Wait until the newest resource of a queue job is in a phase."""

        def reached() -> Json | None:
            job = self.job(queue, job_id)
            return job if job and job.get("status", {}).get("phase") == phase else None

        return wait_for(
            reached, lambda: f"queue job {job_id} of {queue} in {phase}: {self.job(queue, job_id)}", timeout
        )

    def pods_of(self, job: Json) -> int:
        """How many pods were ever made for a job."""
        name = job["metadata"]["name"]
        return sum(len(uids) for (owner, _), uids in list(self._view.attempts.items()) if owner == name)

    def release(self, *jobs: Json) -> None:
        """Let jobs that hold complete."""
        self._released |= {job["metadata"]["name"] for job in jobs}

    async def play(self) -> None:
        """Do what is to be done, again and again."""
        while True:
            live = [job for job in self._view.jobs.values() if not _terminal(job)]
            self.most = max(self.most, len(live))
            for name, pod in list(self._view.pods.items()):
                with contextlib.suppress(ApiError):  # gone, or changed this moment: looked at again
                    await self._look_at(name, pod)
            await asyncio.sleep(0.03)

    async def _look_at(self, name: str, pod: Json) -> None:
        uid = pod["metadata"]["uid"]
        if "deletionTimestamp" in pod["metadata"]:
            if uid not in self._ended:
                self._ended.add(uid)
                await self._kubelet.end(name, cancelled())
            await self._kubelet.remove(name)
            return
        if "nodeName" not in pod["spec"] or uid in self._ended:
            return
        job = self._view.jobs.get(name.rpartition("-")[0])
        if job is None:
            return
        if uid not in self._ran:
            await self._kubelet.run(name)
            self._ran.add(uid)
        prompt = job["spec"]["prompt"]
        if prompt == "hold" and job["metadata"]["name"] not in self._released:
            return
        await self._kubelet.end(name, failed(Category.BILLING) if prompt == "fail" else completed())
        self._ended.add(uid)


def identity_of(job: Json) -> Json:
    """The identity of the queue job that a resource was made for."""
    identity: Json = json.loads(job["metadata"]["annotations"]["claudecode.dev/queue-job"])
    return identity


def _terminal(job: Json) -> bool:
    return job.get("status", {}).get("phase") in ("Completed", "Failed", "Cancelled")


@contextmanager
def played_pods(namespace: Namespace) -> Iterator[PlayedPods]:
    """Play the pods of a namespace until the end of the block."""
    ready: threading.Event = threading.Event()
    made: list[PlayedPods] = []
    failure: list[BaseException] = []
    stop: list[Callable[[], object]] = []

    async def run() -> None:
        async with Api.to(namespace.cluster) as api, fake_node(api) as node:
            view = View(api, namespace.name)
            loop = asyncio.get_running_loop()
            pods = PlayedPods(node, api, view, Kubelet(api, namespace.name), loop)
            playing = asyncio.create_task(pods.play())
            stop.append(lambda: loop.call_soon_threadsafe(playing.cancel))
            made.append(pods)
            ready.set()
            try:
                with contextlib.suppress(asyncio.CancelledError):
                    await playing
            finally:
                await view.stop()

    def thread() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            failure.append(error)
        finally:
            ready.set()

    worker = threading.Thread(target=thread, name="kubelet", daemon=True)
    worker.start()
    ready.wait()
    try:
        if made:
            yield made[0]
    finally:
        for end in stop:
            end()
        worker.join(30)
    assert not failure, failure
