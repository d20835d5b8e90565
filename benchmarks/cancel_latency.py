"""How long a cancelled job's agent goes on, beside pods of the same kind that are deleted.

All are in the middle of a tool. A job is cancelled by one PATCH, as kubectl sends it; time runs from just before the
call until the container is seen to have ended, and until the job is seen to be Cancelled. The floor is a pod with the
same runner, deleted by one DELETE with the same grace period; jobs and pods take turns. What the floor takes is the
runner's, the kubelet's and containerd's; the difference is the operator's.

    python -m localcluster run -- python benchmarks/cancel_latency.py [JOBS]
"""

from __future__ import annotations

import asyncio
import math
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import localcluster
from claudejobs.kube.client import MERGE_PATCH, KubeClient, jobs_path, pods_path
from claudejobs.reconcile.pod import build_pod
from claudejobs.settings import Settings
from tests.conftest import make_namespace
from tests.support.kube import Namespace, job, unique, wait_for
from tests.support.model import scripted_model
from tests.support.operator import OperatorProcess
from tests.support.processes import sleeper_of

Json = dict[str, Any]
GRACE = 30
AT_A_TIME = 5
"""Pairs that are started together: enough to keep the run short, few enough to leave the machine quiet."""

POLL = 0.01
"""Seconds between two looks."""


async def main(count: int) -> None:
    """Cancel jobs and delete pods in turn, print medians and tails."""
    cluster = localcluster.ensure()
    assert cluster.gateway, "this benchmark needs a cluster whose pods reach this machine"
    image = localcluster.build_and_load_images("claudejobs-runner")["claudejobs-runner"]
    measured: dict[str, list[float]] = {"ended": [], "cancelled": [], "floor": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        scripted_model(cluster.gateway, Path(folder) / "model") as model,
        contextmanager(make_namespace)(cluster) as namespace,
    ):
        given = {"runner_image": image, "model_base_url": model, "default_cpu_request": "10m"}
        with operator(namespace, folder, given):
            async with KubeClient.connect("benchmark") as client:
                for begin in range(0, count, AT_A_TIME):
                    await measure(client, namespace, Settings(**given), min(AT_A_TIME, count - begin), measured)
    report(measured)


@contextmanager
def operator(namespace: Namespace, folder: str, settings: dict[str, str]) -> Iterator[None]:
    """An operator for the namespace."""
    process = OperatorProcess(namespace, Path(folder) / "log", f"sqlite:///{folder}/state.db", **settings).start()
    try:
        yield
    finally:
        process.stop()


async def measure(
    client: KubeClient, namespace: Namespace, settings: Settings, pairs: int, measured: dict[str, list[float]]
) -> None:
    """Start pairs of a job and a bare pod, wait until all are in their tool, and stop one after the other."""
    jobs = [resource(unique("cancel")) for _ in range(pairs)]
    bare = [pod(namespace.name, unique("floor"), settings) for _ in range(pairs)]
    namespace.apply(*jobs, *bare)
    names = [(j["metadata"]["name"], p["metadata"]["name"]) for j, p in zip(jobs, bare, strict=True)]
    for owner, alone in names:
        for name in (f"{owner}-1", alone):
            wait_for(lambda name=name: in_its_tool(namespace, name), f"the tool of {name} runs", 180)  # type: ignore[misc]
    for owner, alone in names:
        begin = time.perf_counter()
        path = jobs_path(namespace.name, owner)
        await client.request("PATCH", path, {"spec": {"cancel": True}}, content_type=MERGE_PATCH)
        ended, cancelled = await asyncio.gather(
            until(client, pods_path(namespace.name, f"{owner}-1"), has_ended), until(client, path, is_cancelled)
        )
        measured["ended"].append(ended - begin)
        measured["cancelled"].append(cancelled - begin)
        begin = time.perf_counter()
        path = pods_path(namespace.name, alone)
        await client.request("DELETE", path, {"gracePeriodSeconds": GRACE})
        measured["floor"].append(await until(client, path, has_ended) - begin)


async def until(client: KubeClient, path: str, reached: Callable[[Json | None], bool]) -> float:
    """When an object was first seen to have reached a state, on ``time.perf_counter``."""
    while not reached(await client.get(path)):  # noqa: ASYNC110 - the API server sets no event
        await asyncio.sleep(POLL)
    return time.perf_counter()


def has_ended(pod: Json | None) -> bool:
    """Whether the pod's container has ended, or the pod is gone with it."""
    statuses = pod["status"].get("containerStatuses", []) if pod else []
    return pod is None or any("terminated" in status["state"] for status in statuses)


def is_cancelled(resource: Json | None) -> bool:
    """Whether the job says so."""
    assert resource is not None, "the job is gone"
    return bool(resource["status"]["phase"] == "Cancelled")


def in_its_tool(namespace: Namespace, name: str) -> bool:
    """Whether the agent of a pod is in the middle of its tool."""
    found = namespace.get("pod", name)
    return found is not None and sleeper_of(found) is not None


def resource(name: str) -> Json:
    """A job whose agent is busy for long."""
    return job(name, "script: slow 600", terminationGracePeriodSeconds=GRACE)


def pod(namespace: str, name: str, settings: Settings) -> Json:
    """The very pod that the operator makes, without its owner."""
    owner = resource(name)
    owner["metadata"] |= {"namespace": namespace, "uid": str(uuid.uuid4())}
    built = build_pod(owner, 1, str(uuid.uuid4()), 0.0, settings)
    del built["metadata"]["ownerReferences"]
    built["metadata"]["name"] = name
    return built


def report(measured: dict[str, list[float]]) -> None:
    """Print median, 99th percentile (with few jobs, the slowest) and the ratio of the medians."""
    labels = {
        "ended": "cancel -> container ended",
        "cancelled": "cancel -> status Cancelled",
        "floor": "floor: delete pod -> container ended",
    }
    for name, label in labels.items():
        times = sorted(measured[name])
        p99 = times[math.ceil(0.99 * len(times)) - 1]
        print(f"{label:<38} median {statistics.median(times):.2f} s, p99 {p99:.2f} s ({len(times)} times)")
    ratio = statistics.median(measured["ended"]) / statistics.median(measured["floor"])
    print(f"container ended / floor, medians: {ratio:.2f}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
