"""What the tests of the queue intake have in common: a real Redis, a real API server, an operator; pods are played."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcluster import Cluster
from tests.conftest import make_namespace
from tests.support.kube import Namespace, unique, wait_for
from tests.support.node import NodeProcess
from tests.support.operator import OperatorProcess
from tests.support.pods import Json, PlayedPods, played_pods
from tests.support.redis import RedisServer, SentinelSet


def data(command: str = "hello", **more: Any) -> Json:
    """What a producer puts into a job; the command says how its pod is played."""
    return {"taskId": unique("task"), "userId": "ada", "command": command, **more}


@dataclass
class Bench:
    """An operator with its Redis and its namespace."""

    server: RedisServer | SentinelSet
    namespace: Namespace
    pods: PlayedPods
    operator: OperatorProcess
    producer: NodeProcess

    def queue(self, name: str = "", *, resource: str = "", prefix: str = "bull", **spec: Any) -> Queue:
        """Make a ClaudeCodeQueue; by default of a queue of its own, with the shortest locks."""
        queue = Queue(self, name or unique("tasks"), resource, prefix)
        queue.apply(**spec)
        return queue

    def readiness(self) -> Json:
        """What /readyz says."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.operator.port}/readyz", timeout=5) as response:
            answer: Json = json.loads(response.read())
            return answer

    def events(self, queue: Queue, reason: str) -> list[str]:
        """Messages of the Kubernetes Events about a queue with this reason."""
        about = f"involvedObject.name={queue.resource},reason={reason}"
        events = json.loads(self.namespace.kubectl("get", "events", "--field-selector", about, "-o", "json"))["items"]
        return [event["message"] for event in events]


class Queue:
    """One BullMQ queue, its producer's side and its resource."""

    def __init__(self, bench: Bench, name: str, resource: str, prefix: str) -> None:
        self.bench, self.name, self.resource, self.prefix = bench, name, resource or name, prefix
        self.at = {"queue": name, "prefix": prefix}

    def manifest(self, **spec: Any) -> Json:
        """The ClaudeCodeQueue."""
        template = {"podTemplate": self.bench.pods.placement, **spec.pop("template", {})}
        given = {"queueName": self.name, "prefix": self.prefix, "lockSeconds": 10, "template": template}
        return {
            "apiVersion": "claudecode.dev/v1alpha1",
            "kind": "ClaudeCodeQueue",
            "metadata": {"name": self.resource, "namespace": self.bench.namespace.name},
            "spec": given | spec,
        }

    def apply(self, **spec: Any) -> None:
        """Make or change the resource."""
        self.bench.namespace.apply(self.manifest(**spec))

    def delete(self) -> None:
        """Delete the resource."""
        self.bench.namespace.kubectl("delete", "ccq", self.resource)

    @property
    def status(self) -> Json:
        """Status of the resource."""
        found = self.bench.namespace.get("ccq", self.resource) or {}
        status: Json = found.get("status", {})
        return status

    @property
    def uid(self) -> str:
        """UID of the resource, which names the locks of its jobs."""
        found = self.bench.namespace.get("ccq", self.resource)
        assert found is not None
        return str(found["metadata"]["uid"])

    def condition(self, kind: str) -> tuple[str, str]:
        """Status and reason of a condition."""
        found = [c for c in self.status.get("conditions", []) if c["type"] == kind]
        return (found[0]["status"], found[0]["reason"]) if found else ("", "")

    def wait_condition(self, kind: str, status: str, reason: str) -> None:
        """Wait for a condition."""
        wait_for(lambda: self.condition(kind) == (status, reason), lambda: f"{kind} of {self.resource}: {self.status}")

    def add(self, job_id: str, command: str = "hello", payload: Any = None, **opts: Any) -> str:
        """Add a job."""
        given = data(command) if payload is None else payload
        added: str = self.bench.producer.command(
            "add", **self.at, name="run", data=given, opts={"jobId": job_id, **opts}
        )
        return added

    def job(self, job_id: str) -> Json | None:
        """A queue job as BullMQ shows it."""
        job: Json | None = self.bench.producer.command("getJob", **self.at, jobId=job_id)
        return job

    def state(self, job_id: str) -> str:
        """Its state."""
        return str(self.bench.producer.command("getState", **self.at, jobId=job_id))

    def wait_state(self, job_id: str, state: str, timeout: float = 90.0) -> Json:
        """Wait until a queue job is in a state."""
        wait_for(
            lambda: self.state(job_id) == state, lambda: f"queue job {job_id} {state}: {self.job(job_id)}", timeout
        )
        job = self.job(job_id)
        assert job is not None or state == "unknown"
        return job or {}

    def resources(self) -> list[Json]:
        """The ClaudeCodeJobs of the queue."""
        return self.bench.pods.jobs(self.resource)

    def running(self, job_id: str) -> Json:
        """Wait until the newest resource of a queue job runs."""
        return self.bench.pods.wait_phase(self.resource, job_id, "Running")

    def check_once(self, *job_ids: str) -> None:
        """Each of these queue jobs has had one resource, with one pod."""
        resources = self.resources()
        assert len(resources) == len(job_ids), [job["metadata"]["name"] for job in resources]
        for job in resources:
            assert self.bench.pods.pods_of(job) == 1, job["metadata"]["name"]


@contextmanager
def bench(
    cluster: Cluster,
    server: RedisServer | SentinelSet,
    folder: Path,
    url: str | None = None,
    more_namespaces: Sequence[str] = (),
    **settings: object,
) -> Iterator[Bench]:
    """Run an operator for a namespace of its own and those that are named; at the end it must stop cleanly and tell of
    no defect."""
    for namespace in make_namespace(cluster):
        settings = {"watch_namespaces": ",".join((namespace.name, *more_namespaces))} | settings
        operator = OperatorProcess(
            namespace,
            folder / "operator.log",
            f"sqlite:///{folder}/state.db",
            resync_seconds=10,
            **({"redis_url": url or server.url()} | settings),
        )
        with played_pods(namespace) as pods, NodeProcess("producer.js", server) as producer:
            try:
                yield Bench(server, namespace, pods, operator.start(), producer)
                assert operator.stop() == 0
            finally:
                if operator.process and operator.process.poll() is None:
                    operator.kill()
        text = operator.log.read_text()
        assert "a defect" not in text, text[-5000:]
        assert "Traceback" not in text, text[-5000:]
