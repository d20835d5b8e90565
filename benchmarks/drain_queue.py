"""How fast queue jobs become ClaudeCodeJobs: this operator, a Node worker that spawns processes, the API server alone.

All arms may run every job at the same time, so that nothing but handing over is measured: time runs from the
producer's addBulk to the last resource made, or the last process spawned. The operator makes the jobs' pods meanwhile,
as it always does (no node takes them). The floor posts the same resources by the operator's own client; "writes" makes
what the operator writes for each job: the resource, its pod, and its first status.

Also: how soon after Redis came back a job that was added then is a resource.

    python -m localcluster run -- python benchmarks/drain_queue.py [JOBS] [ROUNDS]
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bullmq import Queue

import localcluster
from claudejobs.api.base import API_VERSION
from claudejobs.api.queue import QUEUE_KIND, QueueSpec
from claudejobs.api.queue_job import QueueJob
from claudejobs.intake.connection import connect
from claudejobs.intake.consumer import IN_FLIGHT
from claudejobs.intake.mapping import map_job
from claudejobs.kube.client import KubeClient, jobs_path, pods_path, queues_path
from claudejobs.reconcile.pod import build_pod
from claudejobs.settings import Settings
from tests.support.kube import Namespace, unique
from tests.support.node import NodeProcess
from tests.support.operator import REPOSITORY, OperatorProcess
from tests.support.redis import RedisServer

AWAY_SECONDS = 5.0
TEMPLATE = {"podTemplate": {"nodeSelector": {"benchmark": "nowhere"}}}
ARMS = ("operator", "worker", "writes", "floor")


async def main(jobs: int, rounds: int) -> None:
    """Run all arms in turn, print medians and ratios."""
    cluster = localcluster.ensure()
    crds = str(REPOSITORY / "crds")
    Namespace(cluster, "default").kubectl("apply", "--server-side", "--force-conflicts", "-f", crds)
    names = [unique("bench-drain"), unique("bench-floor")]
    namespace = Namespace(cluster, names[0])
    namespace.apply(*({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in names))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "redis").mkdir()
        with RedisServer(folder / "redis") as server, NodeProcess("producer.js", server) as producer:
            operator = OperatorProcess(
                namespace,
                folder / "log",
                f"sqlite:///{folder}/state.db",
                redis_url=server.url(),
                max_concurrent_jobs=100000,
            )
            try:
                operator.start()
                async with KubeClient.connect("benchmark") as client:
                    bench = Bench(client, names, server, producer, jobs)
                    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
                    for number in range(rounds):
                        turn = number % len(ARMS)
                        for arm in ARMS[turn:] + ARMS[:turn]:
                            times[arm].append(await bench.measure(arm))
                    back = [await bench.measure_return() for _ in range(rounds)]
            finally:
                operator.stop()
                namespace.run("delete", "namespace", *names, "--wait=false")
    report(times, back, jobs)


class Bench:
    """The servers, and what is done with them."""

    def __init__(
        self, client: KubeClient, namespaces: list[str], server: RedisServer, producer: NodeProcess, jobs: int
    ) -> None:
        """``namespaces``: the one that the operator watches, and one that it does not."""
        self._namespace, self._elsewhere = namespaces
        self._client, self._server, self._producer = client, server, producer
        self._jobs = jobs

    async def measure(self, arm: str) -> float:
        """Seconds that all jobs take; what was made is removed afterwards."""
        if arm in ("floor", "writes"):
            return await self._measure_writes(with_pods=arm == "writes")
        name = unique(arm)
        if arm == "worker":
            return await asyncio.to_thread(self._measure_worker, name)
        await self._make_queue(name)
        begin = time.perf_counter()
        await asyncio.to_thread(self._add, name)
        seconds = await self._until_all_are_made(begin)
        await self._remove_queue(name)
        return seconds

    async def measure_return(self) -> float:
        """Seconds from Redis back to a resource of a job that is added at that moment."""
        name = unique("back")
        await self._make_queue(name)
        await asyncio.to_thread(self._server.kill)
        await asyncio.sleep(AWAY_SECONDS)
        await asyncio.to_thread(self._server.start)
        begin = time.perf_counter()
        connection = connect(self._server.url())
        await Queue(name, {"connection": connection}).add("run", data(0), {"jobId": "first"})
        seconds = await self._until_all_are_made(begin, 1)
        await connection.aclose()
        await self._remove_queue(name)
        return seconds

    def _add(self, name: str) -> None:
        jobs = [{"name": "run", "data": data(n), "opts": {"jobId": f"job-{n}"}} for n in range(self._jobs)]
        self._producer.command("addBulk", queue=name, jobs=jobs)

    def _measure_worker(self, name: str) -> float:
        settings = {"queue": name, "concurrency": self._jobs, "command": ["sleep", "30"]}
        with NodeProcess("spawn-worker.js", self._server, **settings) as worker:
            begin = time.perf_counter()
            self._add(name)
            while len(worker.named("spawned")) < self._jobs:
                time.sleep(0.02)
            return time.perf_counter() - begin

    async def _measure_writes(self, *, with_pods: bool) -> float:
        spec = QueueSpec.model_validate({"queueName": "floor", "template": TEMPLATE})
        gate, status, namespace = asyncio.Semaphore(IN_FLIGHT), {"phase": "Starting", "attempt": 1}, self._elsewhere

        async def post(number: int) -> None:
            identity = QueueJob("bull:floor", f"job-{number}", 1)
            manifest = map_job(identity, data(number), {}, spec, "floor", namespace).manifest
            async with gate:
                made = await self._client.request("POST", jobs_path(namespace), manifest)
                if with_pods:
                    meta = made["metadata"]
                    pod = build_pod(made, 1, meta["uid"], 0.0, Settings())
                    await self._client.request("POST", pods_path(namespace), pod)
                    await self._client.patch_status(namespace, meta["name"], meta["resourceVersion"], status)

        begin = time.perf_counter()
        await asyncio.gather(*(post(number) for number in range(self._jobs)))
        seconds = time.perf_counter() - begin
        await self._clear(namespace)
        return seconds

    async def _make_queue(self, name: str) -> None:
        body = {
            "apiVersion": API_VERSION,
            "kind": QUEUE_KIND,
            "metadata": {"name": name},
            "spec": {"queueName": name, "template": TEMPLATE, "deadLetter": False},
        }
        await self._client.request("POST", queues_path(self._namespace), body)
        while not (await self._queue(name) or {}).get("status", {}).get("connected"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    async def _queue(self, name: str) -> dict[str, Any] | None:
        return await self._client.get(queues_path(self._namespace, name))

    async def _remove_queue(self, name: str) -> None:
        await self._clear(self._namespace)
        await self._client.request("DELETE", queues_path(self._namespace, name))

    async def _until_all_are_made(self, begin: float, wanted: int | None = None) -> float:
        while await self._count(jobs_path(self._namespace)) < (wanted or self._jobs):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return time.perf_counter() - begin

    async def _count(self, path: str) -> int:
        page = await self._client.request("GET", path, params={"limit": "1"})
        return len(page["items"]) + page["metadata"].get("remainingItemCount", 0)

    async def _clear(self, namespace: str) -> None:
        for path in (jobs_path(namespace), pods_path(namespace)):
            options = {"propagationPolicy": "Background", "gracePeriodSeconds": 0}
            await self._client.request("DELETE", path, options, timeout=120.0)
            while await self._count(path):  # noqa: ASYNC110
                await asyncio.sleep(0.1)


def data(number: int) -> dict[str, Any]:
    """What a producer puts into a job."""
    return {"taskId": f"task-{number}", "userId": "ada", "command": "do nothing"}


def report(times: dict[str, list[float]], back: list[float], jobs: int) -> None:
    """Print rates and ratios."""
    rates = {arm: jobs / statistics.median(seconds) for arm, seconds in times.items()}
    for arm, seconds in times.items():
        spread = f"{min(seconds):.2f}-{max(seconds):.2f} s"
        print(f"{arm:<10} {rates[arm]:8.1f} jobs/s  ({spread}, {len(seconds)} rounds of {jobs})")
    print(f"operator / Node worker that spawns a process per job: {rates['operator'] / rates['worker']:.2f}")
    print(f"operator / the same writes alone:                     {rates['operator'] / rates['writes']:.2f}")
    print(f"operator / floor (posting the resources alone):       {rates['operator'] / rates['floor']:.2f}")
    spread = f"{min(back):.2f}-{max(back):.2f} s"
    print(f"first job after Redis was away for {AWAY_SECONDS:.0f} s: {statistics.median(back):.2f} s ({spread})")


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    asyncio.run(main(*(numbers + [500, 3][len(numbers) :])))
