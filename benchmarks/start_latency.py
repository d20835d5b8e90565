"""How long a job waits for its agent: cold, and with a pool of warm pods, beside pods without an operator.

Time runs from just before the POST of the resource until the runner takes the job up (its first line in the container's
log, by containerd's clock, which is this machine's), and until the agent's session has begun (the CLI answers). Jobs
come one at a time, cold and warm in turn, with the same operator; before a warm one the pool is full.

Floors, in the same turns: the very pod of a cold job, made by one POST; and a waiting pod that is given a job by one
PATCH. What these take is the scheduler's, the kubelet's, containerd's and the runner's; the rest is the operator's.

    python -m localcluster run -- python benchmarks/start_latency.py [JOBS]
"""

from __future__ import annotations

import asyncio
import math
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import localcluster
from claudejobs.api.base import API_VERSION
from claudejobs.api.events import Session, Started, parse_event
from claudejobs.api.pool import PoolSpec, PoolStatus
from claudejobs.kube.client import MERGE_PATCH, ApiError, KubeClient, jobs_path, pods_path, pools_path
from claudejobs.reconcile.pod import build_pod
from claudejobs.reconcile.pool import PoolView, WarmPod, build_warm_pod, hand_over
from claudejobs.settings import Settings
from tests.conftest import make_namespace
from tests.support.kube import Namespace, job, unique
from tests.support.model import scripted_model
from tests.support.operator import OperatorProcess

T = TypeVar("T")
Json = dict[str, Any]
Measured = dict[str, list[tuple[float, float]]]
POLL = 0.02
RIPE = 15
"""Seconds after which a pod that waits has loaded what it needs, also on a busy machine."""

COLD = {"labels": {"start": "cold"}}
"""A podTemplate that no pool has."""


async def main(count: int) -> None:
    """Start jobs and bare pods in turn, print medians and tails."""
    cluster = localcluster.ensure()
    assert cluster.gateway, "this benchmark needs a cluster whose pods reach this machine"
    image = localcluster.build_and_load_images("claudejobs-runner")["claudejobs-runner"]
    measured: Measured = {"warm floor": [], "warm": [], "cold floor": [], "cold": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        scripted_model(cluster.gateway, Path(folder) / "model") as model,
        contextmanager(make_namespace)(cluster) as namespace,
    ):
        given = {"runner_image": image, "model_base_url": model, "default_cpu_request": "10m"}
        database = f"sqlite:///{folder}/state.db"
        process = OperatorProcess(namespace, Path(folder) / "log", database, warm_pools=True, **given).start()
        try:
            async with KubeClient.connect("benchmark") as client:
                one = Bench(client, namespace, Settings(**given), measured)
                await client.request("POST", pools_path(namespace.name), pool_resource(namespace.name))
                for _ in range(count):
                    await one.turn()
        finally:
            process.stop()
    report(measured)


class Bench:
    """One namespace, and what was measured in it."""

    def __init__(self, client: KubeClient, namespace: Namespace, settings: Settings, measured: Measured) -> None:
        self.client, self.namespace, self.settings, self.measured = client, namespace.name, settings, measured

    async def turn(self) -> None:
        """One of each kind."""
        waiting = await self.waiting_pod()
        await until(self.pool_is_full)
        name, body = self.resource("floor")
        patch = hand_over(waiting, body, 1, str(uuid.uuid4()), 0.0, self.settings, datetime.now(UTC))
        del patch["metadata"]["ownerReferences"]
        path = pods_path(self.namespace, waiting.name)
        await self.measure("warm floor", waiting.name, "PATCH", path, patch)
        await self.gone(path)

        name, body = self.resource("warm")
        await self.measure("warm", name, "POST", jobs_path(self.namespace), body)
        await self.ended(name)

        name, body = self.resource("floor")
        pod = build_pod(body, 1, str(uuid.uuid4()), 0.0, self.settings)
        del pod["metadata"]["ownerReferences"]
        await self.measure("cold floor", f"{name}-1", "POST", pods_path(self.namespace), pod)
        await self.gone(pods_path(self.namespace, f"{name}-1"))

        name, body = self.resource("cold", podTemplate=COLD)
        await self.measure("cold", name, "POST", jobs_path(self.namespace), body)
        await self.ended(name)

    def resource(self, stem: str, **spec: Any) -> tuple[str, Json]:
        """A job's name and the job."""
        made = job(unique(stem), "script: hello", **spec)
        made["metadata"] |= {"namespace": self.namespace, "uid": str(uuid.uuid4())}
        return made["metadata"]["name"], made

    async def measure(self, kind: str, name: str, method: str, path: str, body: Json) -> None:
        """Send what starts a job's agent; the pod is ``name``, or that of the job of this name."""
        begin = time.time()
        content = MERGE_PATCH if method == "PATCH" else "application/json"
        await self.client.request(method, path, body, content_type=content)
        pod = name
        if path == jobs_path(self.namespace):
            pod = await until(lambda: self.pod_of(name))
            assert ("-warm-" in pod) == (kind == "warm"), f"{kind} job {name} has pod {pod}"
        times = await until(lambda: self.said(pod))
        self.measured[kind].append((times[0] - begin, times[1] - begin))

    async def said(self, pod: str) -> tuple[float, float] | None:
        """When a pod's runner took its job up, and when its session began; ``None`` before both."""
        started = session = None
        try:
            async with self.client.follow_log(self.namespace, pod, "runner", None) as stream:
                async for line in stream:
                    stamp, _, text = line.decode().partition(" ")
                    event = parse_event(text)
                    if isinstance(event, Started):
                        started = datetime.fromisoformat(stamp).timestamp()
                    if isinstance(event, Session):
                        session = datetime.fromisoformat(stamp).timestamp()
                        break
        except ApiError:
            return None  # its container has not started
        return (started, session) if started and session else None

    async def pod_of(self, name: str) -> str | None:
        """The pod of a job, once it runs."""
        status = (await self.client.get(jobs_path(self.namespace, name)) or {}).get("status", {})
        return status.get("podName") if status.get("phase") in ("Running", "Completed") else None

    async def ended(self, name: str) -> None:
        """Wait for a job's end and delete it, its pod with it."""

        async def completed() -> bool:
            obj = await self.client.get(jobs_path(self.namespace, name)) or {}
            return bool(obj["status"]["phase"] == "Completed")

        await until(completed)
        await self.gone(jobs_path(self.namespace, name))

    async def gone(self, path: str) -> None:
        """Delete an object, and wait until it is gone: what ends would slow down what starts."""
        await self.client.request("DELETE", path)

        async def absent() -> bool:
            return await self.client.get(path) is None

        await until(absent)

    async def pool_is_full(self) -> bool:
        """Whether a pod has waited for some time, with its runner ready."""
        pods = [WarmPod.parse(obj) async for obj in self.client.list(pods_path(self.namespace))]
        old = [p for p in pods if p and p.free and p.started and (datetime.now(UTC) - p.started).total_seconds() > RIPE]
        return bool([p for p in old if p.pool[1] == "ready"])

    async def waiting_pod(self) -> WarmPod:
        """A pod as a pool makes it, without a pool."""
        spec, status = PoolSpec(size=1), PoolStatus()
        view = PoolView(self.namespace, "floor", "none", "1", 1, deleting=False, spec=spec, status=status)
        body = build_warm_pod(view, self.settings)
        owner = body["metadata"].pop("ownerReferences")
        made = await self.client.request("POST", pods_path(self.namespace), body)

        async def ready() -> WarmPod | None:
            obj = await self.client.get(pods_path(self.namespace, made["metadata"]["name"])) or {}
            obj["metadata"]["ownerReferences"] = owner
            pod = WarmPod.parse(obj)
            young = pod is None or pod.started is None or (datetime.now(UTC) - pod.started).total_seconds() < RIPE
            return pod if pod and pod.free and not young else None

        return await until(ready)


async def until(probe: Callable[[], Awaitable[T | None]]) -> T:
    """The first truthy answer."""
    while not (answer := await probe()):  # noqa: ASYNC110 - the API server sets no event
        await asyncio.sleep(POLL)
    return answer


def pool_resource(namespace: str) -> Json:
    """A pool of one pod."""
    meta = {"name": "ready", "namespace": namespace}
    return {"apiVersion": API_VERSION, "kind": "ClaudeCodePool", "metadata": meta, "spec": {"size": 1}}


def report(measured: Measured) -> None:
    """Print median and 99th percentile (with few jobs, the slowest)."""
    for index, what in enumerate(("job taken up", "session begun")):
        for kind, times in measured.items():
            row = sorted(pair[index] for pair in times)
            p99 = row[math.ceil(0.99 * len(row)) - 1]
            print(f"{kind:<11} -> {what:<13} median {statistics.median(row):.2f} s, p99 {p99:.2f} s ({len(row)} times)")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
