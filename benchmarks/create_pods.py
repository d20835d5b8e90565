"""How fast jobs become pods: this operator, the Job controller, and the bare API server, in one run.

Nothing is scheduled (no node has the pods' label), so the API server's writes are all that counts. Every arm makes the
same number of pods in a namespace of its own; time runs from the first object posted to the last pod seen.

    python -m localcluster run -- python benchmarks/create_pods.py [JOBS] [ROUNDS]
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import localcluster
from claudejobs.kube.client import KubeClient, jobs_path, pods_path
from claudejobs.reconcile.pod import build_pod
from claudejobs.reconcile.views import MANAGED_BY_LABEL
from claudejobs.settings import Settings
from tests.support.kube import Namespace, job, unique
from tests.support.operator import OperatorProcess

NOWHERE = {"benchmark": "nowhere"}
CONNECTIONS = 50


async def main(jobs: int, rounds: int) -> None:
    """Run all arms in turn, print medians and ratios."""
    cluster = localcluster.ensure()
    namespaces = {arm: Namespace(cluster, unique(f"bench-{arm}")) for arm in ("operator", "job", "floor")}
    Namespace(cluster, "default").apply(
        *({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": n.name}} for n in namespaces.values())
    )
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        database = f"sqlite:///{folder}/state.db"
        operator = OperatorProcess(namespaces["operator"], log, database, max_concurrent_jobs=100000).start()
        times: dict[str, list[float]] = {arm: [] for arm in namespaces}
        try:
            async with KubeClient.connect("benchmark") as client:
                for number in range(rounds):
                    arms = list(namespaces)
                    for arm in arms[number % 3 :] + arms[: number % 3]:
                        times[arm].append(await measure(client, arm, namespaces[arm].name, jobs))
        finally:
            operator.stop()
            for namespace in namespaces.values():
                namespace.run("delete", "namespace", namespace.name, "--wait=false")
    report(times, jobs)


async def measure(client: KubeClient, arm: str, namespace: str, jobs: int) -> float:
    """Seconds from the first object posted to the last pod seen; the objects are removed afterwards."""
    path, make = ARMS[arm](namespace)
    begin = time.perf_counter()
    await in_parallel([lambda n=n: client.request("POST", path, make(n)) for n in range(jobs)])  # type: ignore[misc]
    while await count(client, namespace) < jobs:  # noqa: ASYNC110 - the API server sets no event
        await asyncio.sleep(0.02)
    seconds = time.perf_counter() - begin
    for collection in (path, pods_path(namespace)):
        await client.request("DELETE", collection, {"propagationPolicy": "Background", "gracePeriodSeconds": 0})
    while await count(client, namespace):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return seconds


async def count(client: KubeClient, namespace: str) -> int:
    """Pods in a namespace, by one page of metadata."""
    page = await client.request("GET", pods_path(namespace), params={"limit": "1"})
    return len(page["items"]) + page["metadata"].get("remainingItemCount", 0)


async def in_parallel(calls: list[Callable[[], Awaitable[Any]]]) -> None:
    """Make all calls over a bounded number of connections."""
    gate = asyncio.Semaphore(CONNECTIONS)

    async def one(call: Callable[[], Awaitable[Any]]) -> None:
        async with gate:
            await call()

    await asyncio.gather(*(one(call) for call in calls))


def resource(number: int) -> dict[str, Any]:
    """A ClaudeCodeJob whose pod goes nowhere."""
    return job(f"job-{number}", "do nothing", podTemplate={"nodeSelector": NOWHERE})


def pod(namespace: str, number: int) -> dict[str, Any]:
    """The pod that the operator makes, without its owner, and without the label by which the operator watches it."""
    owner = resource(number)
    owner["metadata"] |= {"namespace": namespace, "uid": "00000000-0000-0000-0000-000000000000"}
    built = build_pod(owner, 1, "00000000-0000-0000-0000-000000000000", 0.0, Settings())
    del built["metadata"]["ownerReferences"], built["metadata"]["labels"][MANAGED_BY_LABEL]
    return built


def batch_job(namespace: str, number: int) -> dict[str, Any]:
    """A Job of Kubernetes with that pod."""
    built = pod(namespace, number)
    template = {"metadata": {"annotations": built["metadata"]["annotations"]}, "spec": built["spec"]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"job-{number}"},
        "spec": {"backoffLimit": 0, "template": template},
    }


ARMS: dict[str, Callable[[str], tuple[str, Callable[[int], dict[str, Any]]]]] = {
    "operator": lambda namespace: (jobs_path(namespace), resource),
    "job": lambda namespace: (f"/apis/batch/v1/namespaces/{namespace}/jobs", lambda n: batch_job(namespace, n)),
    "floor": lambda namespace: (pods_path(namespace), lambda n: pod(namespace, n)),
}


def report(times: dict[str, list[float]], jobs: int) -> None:
    """Print rates and ratios."""
    rates = {arm: jobs / statistics.median(seconds) for arm, seconds in times.items()}
    for arm, seconds in times.items():
        spread = f"{min(seconds):.2f}-{max(seconds):.2f} s"
        print(f"{arm:<10} {rates[arm]:8.1f} pods/s  ({spread}, {len(seconds)} rounds of {jobs})")
    print(f"operator / Job controller (its default client limits): {rates['operator'] / rates['job']:.2f}")
    print(f"operator / floor (pods only, no resource, no status):  {rates['operator'] / rates['floor']:.2f}")


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    asyncio.run(main(*(numbers + [200, 3][len(numbers) :])))
