"""Two hundred jobs on nodes that a real Karpenter makes: it adds nodes, moves no running job, and removes nodes."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import CoreV1Api, CustomObjectsApi

import localcluster
from claudejobs.api.base import GROUP, PLURAL, VERSION
from localcluster import Autoscaler, Cluster
from localcluster.autoscaler import POOL_LABEL
from tests.support.kube import Namespace, T, client_of, job, wait_for
from tests.support.kwok import attempt_stages
from tests.support.operator import REPOSITORY, OperatorProcess

from .field import NOTES

pytestmark = pytest.mark.e2e

JOBS = 200
LASTING = 8
"""So many of these jobs run until they are told to end. They stand far apart, so that a node has one or two."""

SECONDS = 20.0
"""The others take between this and twice as long: nodes empty bit by bit."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """The cluster at one moment."""

    seconds: float
    nodes: int
    running: int
    pending: int
    ended: int


class Scene:
    """The jobs, their pods and the nodes, as the API server has them."""

    def __init__(self, namespace: Namespace, autoscaler: Autoscaler) -> None:
        self.namespace, self.autoscaler = namespace, autoscaler
        client = client_of(namespace.cluster.kubeconfig)
        self._core, self._custom = CoreV1Api(client), CustomObjectsApi(client)
        self._began = time.monotonic()
        self.samples: list[Sample] = []
        self.lasting = [f"lasting-{n}" for n in range(LASTING)]
        self.short = [f"short-{n}" for n in range(JOBS - LASTING)]

    def make_jobs(self) -> None:
        """All of them before the operator sees the first, so that they run at the same time."""
        each = len(self.short) // len(self.lasting)
        jobs = [self._job("giant", "complete", cpu="5000")]
        for n, name in enumerate(self.lasting):
            others = self.short[n * each : (n + 1) * each]
            jobs += [self._job(name, "hang"), *(self._job(other, "complete") for other in others)]
        self.namespace.kubectl("create", "-f", "-", stdin=yaml.safe_dump_all(jobs))

    def _job(self, name: str, prompt: str, cpu: str = "1") -> Json:
        template = self.autoscaler.placement | {"resources": {"requests": {"cpu": cpu}}}
        return job(name, prompt, podTemplate=template)

    def jobs(self) -> dict[str, Json]:
        """The status of each job."""
        found = self._custom.list_namespaced_custom_object(GROUP, VERSION, self.namespace.name, PLURAL)
        return {item["metadata"]["name"]: item.get("status") or {} for item in found["items"]}

    def pods(self) -> list[Json]:
        found = self._core.list_namespaced_pod(self.namespace.name, _preload_content=False)
        items: list[Json] = json.loads(found.data)["items"]
        return items

    def nodes(self) -> set[str]:
        """Names of Karpenter's nodes."""
        selector = f"{POOL_LABEL}={self.autoscaler.pool}"
        found = json.loads(self._core.list_node(label_selector=selector, _preload_content=False).data)
        return {item["metadata"]["name"] for item in found["items"]}

    def occupied(self) -> set[str]:
        """Names of the nodes on which a job runs."""
        return {pod["spec"]["nodeName"] for pod in self.pods() if pod["status"]["phase"] == "Running"}

    def held(self) -> set[str]:
        """Names of the nodes that Karpenter says it would have disrupted, but for the mark of a job's pod."""
        selector = "reason=DisruptionBlocked,involvedObject.kind=Node"
        found = self._core.list_event_for_all_namespaces(field_selector=selector, _preload_content=False)
        words = ("karpenter.sh/do-not-disrupt", f"{self.namespace.name}/")
        events: list[Json] = json.loads(found.data)["items"]
        return {e["involvedObject"]["name"] for e in events if all(word in e["message"] for word in words)}

    def disrupted(self) -> set[str]:
        """Pods that Karpenter has evicted or deleted."""
        assert self.namespace.cluster.audit_log
        names = set()
        for line in self.namespace.cluster.audit_log.read_text().splitlines():
            event = json.loads(line)
            reference = event.get("objectRef", {})
            of_ours = (reference.get("resource"), reference.get("namespace")) == ("pods", self.namespace.name)
            if of_ours and event.get("userAgent", "").startswith("karpenter/"):
                names.add(reference["name"])
        return names

    def sample(self) -> Sample:
        phases = Counter(pod["status"]["phase"] for pod in self.pods())
        ended = phases["Succeeded"] + phases["Failed"]
        seconds = time.monotonic() - self._began
        sample = Sample(seconds, len(self.nodes()), phases["Running"], phases["Pending"], ended)
        self.samples.append(sample)
        return sample

    def table(self) -> Iterator[str]:
        """The nodes over time, a line for each ten seconds."""
        yield "    t  nodes  running  pending  ended"
        due = 0.0
        for one in self.samples:
            if one.seconds >= due:
                due = one.seconds + 10
                yield f"{one.seconds:4.0f}s {one.nodes:6} {one.running:8} {one.pending:8} {one.ended:6}"


@contextmanager
def sampled(scene: Scene) -> Iterator[None]:
    """Look every two seconds."""
    stopped = threading.Event()

    def look() -> None:
        while not stopped.wait(2):
            scene.sample()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def node_pool() -> Json:
    """The example of the documentation, in a hurry, and with nodes for fifteen jobs each."""
    pool: Json = yaml.safe_load((REPOSITORY / "examples" / "karpenter" / "nodepool.yaml").read_text())
    pool["spec"]["disruption"]["consolidateAfter"] = "1s"
    size = {"key": "karpenter.kwok.sh/instance-cpu", "operator": "In", "values": ["16"]}
    pool["spec"]["template"]["spec"]["requirements"].append(size)
    return pool


def test_nodes_come_and_go_with_the_jobs_and_no_running_job_is_moved(
    cluster: Cluster, own_namespace: Namespace, tmp_path: Path
) -> None:
    with localcluster.karpenter(cluster, node_pool(), attempt_stages(SECONDS, SECONDS)) as autoscaler:
        scene = Scene(own_namespace, autoscaler)
        scene.make_jobs()
        operator = OperatorProcess(
            own_namespace,
            tmp_path / "log",
            f"sqlite:///{tmp_path}/state.db",
            max_concurrent_jobs=JOBS + 1,
            start_timeout=3600,
        ).start()
        try:
            with sampled(scene):
                play(scene)
        finally:
            NOTES.extend(scene.table())
            operator.stop()


def until(probe: Callable[[], T | None], what: str, timeout: float) -> T:
    """Wait; each look at so many objects costs the machine much."""
    return wait_for(probe, what, timeout, pause=2)


def play(scene: Scene) -> None:
    """The whole life of the jobs."""
    namespace = scene.namespace
    lasting, short = scene.lasting, scene.short
    # No node will ever have room for this one: its status has the scheduler's words.
    until(lambda: namespace.status("giant").get("reason") == "Unschedulable", "why the giant waits", 240)
    assert " nodes are available: " in namespace.status("giant")["message"]

    def phases(*names: str) -> Counter[str]:
        jobs = scene.jobs()
        return Counter(jobs[name].get("phase", "new") for name in names)

    until(lambda: phases(*short)["Completed"] == len(short), "the short jobs complete", 600)
    # Whatever nodes have no job now go, and only they.
    until(lambda: scene.nodes() == scene.occupied(), "the empty nodes go", 240)
    assert len(scene.nodes()) > 1, "there is nowhere to move a job to"
    until(lambda: scene.nodes() & scene.held(), "Karpenter would have one of the others go", 240)
    assert phases(*lasting)["Running"] == LASTING
    assert scene.disrupted() == set()
    assert all(len(status["attempts"]) == 1 for status in scene.jobs().values())

    # The same pods on the same nodes without the mark: they are moved, so that it was the mark that held them.
    namespace.kubectl("annotate", "pods", *(f"{name}-1" for name in lasting), "karpenter.sh/do-not-disrupt-")
    moved = until(scene.disrupted, "a pod without the mark is moved", 240)
    victim = moved.pop().removesuffix("-1")
    until(lambda: len(namespace.status(victim)["attempts"]) > 1, "the moved job runs again", 120)
    first = namespace.status(victim)["attempts"][0]
    assert first["category"] in ("evicted", "pod_lost"), first

    for name in ("giant", *lasting):
        namespace.patch(name, cancel=True)
    until(lambda: phases("giant", *lasting)["Cancelled"] == LASTING + 1, "the last jobs end", 120)
    until(lambda: not scene.nodes(), "the last nodes go", 240)
