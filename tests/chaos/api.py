"""Direct, unfaulted access to the API server, and a live view of one namespace."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import Configuration

from claudejobs.kube.client import ApiError, KubeClient, jobs_path, pods_path
from claudejobs.reconcile.views import ATTEMPT_LABEL, JOB_LABEL
from localcluster import Cluster

JOBS = "jobs"
PODS = "pods"


class Api(KubeClient):
    """The operator's own client, with the administrator's certificate, and with watches."""

    def __init__(self, configuration: Configuration, session: aiohttp.ClientSession) -> None:
        super().__init__(configuration, session)
        self.session = session
        self.base = configuration.host.rstrip("/")

    @classmethod
    @asynccontextmanager
    async def to(cls, cluster: Cluster) -> AsyncIterator[Api]:
        """Connect to the cluster."""
        configuration = Configuration()
        await config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=str(cluster.kubeconfig), client_configuration=configuration
        )
        assert configuration.cert_file, "the tests need an administrator who is known by a certificate"
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            yield cls(configuration, session)

    async def merge(self, path: str, patch: dict[str, Any]) -> Any:
        """A merge patch."""
        return await self.request("PATCH", path, patch, content_type="application/merge-patch+json")

    async def watch(self, path: str, version: str) -> AsyncIterator[dict[str, Any]]:
        """Every event after a version, until the API server ends the stream."""
        params = {"watch": "true", "resourceVersion": version}
        timeout = aiohttp.ClientTimeout(total=None)
        async with self.session.get(self.base + path, params=params, timeout=timeout) as response:
            if response.status == 200:
                async for line in lines_of(response.content):
                    yield json.loads(line)


async def lines_of(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The lines of a stream, of any length, without their line ends."""
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line


async def eventually(probe: Callable[[], bool], timeout: float) -> None:
    """Ask until the answer is yes, or the time is over. For what sends no events, such as rows of a database."""
    deadline = asyncio.get_running_loop().time() + timeout
    while asyncio.get_running_loop().time() < deadline:
        if probe():
            return
        await asyncio.sleep(0.1)


class View:
    """Jobs and pods of one namespace as the API server has them, and every pod there ever was.

    Attributes:
        attempts: UIDs of the pods that a job ever had, by job and number of the attempt.
    """

    def __init__(self, api: Api, namespace: str) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.attempts: dict[tuple[str, str], set[str]] = {}
        self._changed = asyncio.Condition()
        self._tasks = [
            asyncio.create_task(self._follow(api, jobs_path(namespace), self.jobs)),
            asyncio.create_task(self._follow(api, pods_path(namespace), self.pods)),
        ]

    async def stop(self) -> None:
        """Stop following."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def until(self, probe: Callable[[], Any], what: str) -> Any:
        """Wait until ``probe`` answers something true, and return that. Bounded by the caller's timeout."""
        answer = None

        def ask() -> bool:
            nonlocal answer
            self._check()
            answer = probe()
            return bool(answer)

        async with self._changed:
            try:
                await self._changed.wait_for(ask)
            except asyncio.CancelledError as cancelled:
                cancelled.add_note(f"while waiting for: {what}")
                raise
        return answer

    def status(self, name: str) -> dict[str, Any]:
        """A job's status."""
        status: dict[str, Any] = self.jobs.get(name, {}).get("status", {})
        return status

    def pods_of(self, job: str) -> list[dict[str, Any]]:
        """The pods of a job."""
        return [pod for pod in self.pods.values() if _labels(pod).get(JOB_LABEL) == job]

    def _check(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()
                raise AssertionError("the watch of the harness ended")

    async def _follow(self, api: Api, path: str, store: dict[str, dict[str, Any]]) -> None:
        """List, watch, and do so again when the stream ends, as it does when somebody applies the CRD."""
        try:
            while True:
                try:
                    listed = await api.request("GET", path)
                    for name in store.keys() - {obj["metadata"]["name"] for obj in listed["items"]}:
                        await self._take("DELETED", store[name], store)
                    for obj in listed["items"]:
                        await self._take("ADDED", obj, store)
                    async for event in api.watch(path, listed["metadata"]["resourceVersion"]):
                        if event["type"] == "ERROR":
                            break
                        await self._take(event["type"], event["object"], store)
                except (ApiError, aiohttp.ClientError):
                    await asyncio.sleep(0.2)
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                async with self._changed:
                    self._changed.notify_all()

    async def _take(self, kind: str, obj: dict[str, Any], store: dict[str, dict[str, Any]]) -> None:
        name = obj["metadata"]["name"]
        async with self._changed:
            if kind == "DELETED":
                store.pop(name, None)
            else:
                store[name] = obj
            if store is self.pods:
                self._count(obj)
            self._changed.notify_all()

    def _count(self, pod: dict[str, Any]) -> None:
        labels = _labels(pod)
        if job := labels.get(JOB_LABEL):  # empty as long as the pod waits in a pool
            self.attempts.setdefault((job, labels[ATTEMPT_LABEL]), set()).add(pod["metadata"]["uid"])


def _labels(pod: dict[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = pod["metadata"].get("labels", {})
    return labels
