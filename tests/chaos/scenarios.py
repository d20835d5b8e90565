"""Lives of a job, each as the test plays it: the job's author, and the kubelet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from claudejobs.api.base import API_VERSION
from claudejobs.api.categories import Category
from claudejobs.api.events import RunnerResult
from claudejobs.api.pool import POOL_KIND
from claudejobs.kube.client import ApiError, jobs_path, pools_path
from tests.support.kube import job

from .api import Api, View, eventually
from .kubelet import Kubelet, cancelled, completed, failed, placement

_TERMINAL = ("Completed", "Failed", "Cancelled")


Rows = Callable[[], list[dict[str, Any]]]
"""Reads the ProcessState rows."""


class Stage:
    """One job in one namespace, and what its author and its node can do."""

    def __init__(self, api: Api, view: View, namespace: str, node: str, name: str, rows: Rows) -> None:
        self.api, self.view, self.name = api, view, name
        self._rows = rows
        self._namespace, self._node = namespace, node
        self._kubelet = Kubelet(api, namespace)
        self._old_pods: set[str] = set()

    async def create(self, **spec: Any) -> None:
        """Make the job."""
        await self.api.request(
            "POST", jobs_path(self._namespace), job(self.name, podTemplate=placement(self._node), **spec)
        )

    async def make_pool(self) -> None:
        """Make a pool for such jobs, and wait until a pod of it waits; the kubelet must be there."""
        template = {"podTemplate": placement(self._node)}
        body = {
            "apiVersion": API_VERSION,
            "kind": POOL_KIND,
            "metadata": {"name": self.name},
            "spec": {"size": 1, "template": template},
        }
        await self.api.request("POST", pools_path(self._namespace), body)
        while not (await self._pool()).get("status", {}).get("ready"):  # noqa: ASYNC110 - nobody watches pools here
            await asyncio.sleep(0.05)

    async def _pool(self) -> dict[str, Any]:
        return await self.api.get(pools_path(self._namespace, self.name)) or {}

    @asynccontextmanager
    async def kubelet(self) -> AsyncIterator[None]:
        """Meanwhile every pod runs as soon as it is scheduled, and is gone as soon as it is deleted."""
        done: set[tuple[str, bool]] = set()

        def next_one() -> tuple[str, str, bool] | None:
            for name, pod in self.view.pods.items():
                deleted = "deletionTimestamp" in pod["metadata"]
                if (deleted or "nodeName" in pod["spec"]) and (pod["metadata"]["uid"], deleted) not in done:
                    return name, pod["metadata"]["uid"], deleted
            return None

        async def work() -> None:
            while True:
                name, uid, deleted = await self.view.until(next_one, "a pod to look after")
                done.add((uid, deleted))
                with suppress(ApiError):  # it is gone by now
                    await (self._kubelet.remove(name) if deleted else self._kubelet.run(name))

        task = asyncio.create_task(work())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def change(self, **spec: Any) -> None:
        """Change the job's spec."""
        await self.api.merge(jobs_path(self._namespace, self.name), {"spec": spec})

    async def delete(self) -> None:
        """Delete the job, and know its pods for those of the past."""
        self._old_pods |= {pod["metadata"]["uid"] for pod in self.view.pods_of(self.name)}
        body = {"propagationPolicy": "Background"}
        await self.api.request("DELETE", jobs_path(self._namespace, self.name), body)

    async def run_attempt(self, number: int) -> None:
        """The kubelet starts the pod as soon as it is scheduled; the operator takes notice."""
        await self.view.until(lambda: self._scheduled(number), f"pod {number} is scheduled")
        await self._kubelet.run(f"{self.name}-{number}")
        await self.view.until(lambda: self._runs(number), f"the status says that attempt {number} runs")

    async def end_attempt(self, number: int, result: RunnerResult) -> None:
        """The container ends."""
        await self._kubelet.end(f"{self.name}-{number}", result)

    async def end_running(self) -> None:
        """The container of the pod that the status names ends."""
        await self.view.until(lambda: self._runs(1), "the status says that attempt 1 runs")
        await self._kubelet.end(self.view.status(self.name)["podName"], completed())

    async def obey_deletion(self, number: int) -> None:
        """The pod is told to stop, and does."""
        pod = f"{self.name}-{number}"
        await self.view.until(
            lambda: "deletionTimestamp" in self.view.pods[pod]["metadata"], f"pod {number} is told to stop"
        )
        await self._kubelet.end(pod, cancelled())
        await self.view.until(
            lambda: self.name not in self.view.jobs or self.view.status(self.name).get("phase") in _TERMINAL,
            "the end of the job",
        )
        await self._kubelet.remove(pod)

    async def until_phase(self, phase: str) -> None:
        """Wait for a phase."""
        await self.view.until(lambda: self.view.status(self.name).get("phase") == phase, f"phase {phase}")

    async def until_row(self, status: str) -> None:
        """Wait until a row says this: what nobody has written down of a job, its deletion may take along."""
        await eventually(lambda: any(row["status"] == status for row in self._rows()), 30)

    async def until_gone(self) -> None:
        """Wait until nothing is left of the job."""
        await self.view.until(
            lambda: self.name not in self.view.jobs and not self.view.pods_of(self.name), "job and pods are gone"
        )

    async def remove_old_pod(self, number: int) -> None:
        """The kubelet lets go of a pod of the deleted job."""
        await self._kubelet.remove(f"{self.name}-{number}")

    def _scheduled(self, number: int) -> bool:
        pod = self.view.pods.get(f"{self.name}-{number}")
        return pod is not None and "nodeName" in pod["spec"] and pod["metadata"]["uid"] not in self._old_pods

    def _runs(self, number: int) -> bool:
        status = self.view.status(self.name)
        return (status.get("phase"), status.get("attempt")) == ("Running", number)


async def hello(stage: Stage) -> None:
    """A job that completes."""
    await stage.create()
    await stage.run_attempt(1)
    await stage.end_attempt(1, completed())
    await stage.until_phase("Completed")


async def retry(stage: Stage) -> None:
    """The first attempt fails in a way that the second can mend."""
    await stage.create(retry={"maxAttempts": 2, "backoff": {"delaySeconds": 0}})
    await stage.run_attempt(1)
    await stage.end_attempt(1, failed(Category.NETWORK))
    await stage.run_attempt(2)
    await stage.end_attempt(2, completed())
    await stage.until_phase("Completed")


async def cancel(stage: Stage) -> None:
    """Cancelled while it runs."""
    await stage.create()
    await stage.run_attempt(1)
    await stage.change(cancel=True)
    await stage.obey_deletion(1)
    await stage.until_phase("Cancelled")


async def delete(stage: Stage) -> None:
    """Deleted while it runs."""
    await stage.create()
    await stage.run_attempt(1)
    await stage.until_row("running")
    await stage.delete()
    await stage.obey_deletion(1)
    await stage.until_gone()


async def ttl(stage: Stage) -> None:
    """Removed when it has been finished for a second."""
    await stage.create(ttlSecondsAfterFinished=1)
    await stage.run_attempt(1)
    await stage.end_attempt(1, completed())
    await stage.view.until(lambda: stage.name not in stage.view.jobs, "the job is removed")
    await stage.until_gone()


async def ttl_zero(stage: Stage) -> None:
    """Removed as soon as it has finished: by then its row must have been written."""
    await stage.create(ttlSecondsAfterFinished=0)
    await stage.run_attempt(1)
    await stage.end_attempt(1, completed())
    await stage.until_gone()


async def again(stage: Stage) -> None:
    """Deleted and made anew under its name, while the pod of the first is still there."""
    await stage.create()
    await stage.run_attempt(1)
    await stage.until_row("running")
    await stage.delete()
    await stage.create()
    await stage.view.until(
        lambda: stage.view.status(stage.name).get("reason") == "PodNameTaken", "the status names the pod in the way"
    )
    await stage.remove_old_pod(1)
    await stage.run_attempt(1)
    await stage.end_attempt(1, completed())
    await stage.until_phase("Completed")


async def warm(stage: Stage) -> None:
    """A job for which a pod waits. A fault may cost it that pod; it takes another one then, or starts cold."""
    async with stage.kubelet():
        await stage.make_pool()
        await stage.create()
        await stage.end_running()
        await stage.until_phase("Completed")


Scenario = Callable[[Stage], Awaitable[None]]
SCENARIOS: dict[str, Scenario] = {
    s.__name__.replace("_", "-"): s for s in (hello, retry, cancel, delete, ttl, ttl_zero, again, warm)
}
SETTINGS: dict[str, dict[str, object]] = {"warm": {"warm_pools": True}}
"""What the operator needs to be told for a scenario."""
