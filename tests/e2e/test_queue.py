"""A BullMQ queue that is drained into real pods, as producers in Node see it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import Serve
from tests.support.kube import Namespace, unique, wait_for
from tests.support.node import NodeError, NodeProcess
from tests.support.operator import REPOSITORY, OperatorProcess, wait_rows
from tests.support.redis import RedisServer

PREFIX = "tm"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), user="jobs", password="s3cret", tls=True, database=3) as server:
        yield server


@pytest.fixture(scope="module")
def operator(module_namespace: Namespace, server: RedisServer, serve: Serve) -> Iterator[OperatorProcess]:
    with serve(module_namespace, redis_url=server.url()) as process:
        yield process


def make_queue(namespace: Namespace, **spec: Any) -> dict[str, Any]:
    """A ClaudeCodeQueue of a BullMQ queue of its own; what the Node programs are told of it."""
    name = unique("tasks")
    namespace.apply(
        {
            "apiVersion": "claudecode.dev/v1alpha1",
            "kind": "ClaudeCodeQueue",
            "metadata": {"name": name, "namespace": namespace.name},
            "spec": {"queueName": name, "prefix": PREFIX, **spec},
        }
    )
    return {"queue": name, "prefix": PREFIX}


def data(command: str = "script: hello", **more: Any) -> dict[str, Any]:
    """What a producer puts into a job."""
    return {"taskId": unique("task"), "userId": "ada", "command": command, **more}


def jobs_of(namespace: Namespace, queue: dict[str, Any]) -> list[dict[str, Any]]:
    """The resources of a queue."""
    selector = f"claudecode.dev/queue={queue['queue']}"
    items: list[dict[str, Any]] = json.loads(namespace.kubectl("get", "ccj", "-l", selector, "-o", "json"))["items"]
    return items


@pytest.mark.parametrize("version", [6, 5])
async def test_a_producer_gets_the_result_of_its_job(
    module_namespace: Namespace, operator: OperatorProcess, server: RedisServer, version: int
) -> None:
    queue = make_queue(module_namespace, template={"claude": {"model": "claude-sonnet-4-5"}})
    payload = data(
        "script: tasks 4",
        arguments={"branch": "main"},
        workingDirectory="/workspace/app",
        timeout=90_500,
        metadata={"team": "blue"},
    )
    with (
        NodeProcess("producer.js", server, version) as producer,
        NodeProcess("listener.js", server, version, queues=[queue]) as listener,
    ):
        opts = {"jobId": "one", "attempts": 4, "backoff": {"type": "exponential", "delay": 1500}, "priority": 7}
        producer.command("add", **queue, name="run", data=payload, opts=opts)
        value = producer.send("waitUntilFinished", **queue, jobId="one", ttl=120_000).result(120)
        assert value["taskId"] == payload["taskId"]
        assert value["status"] == "completed"
        assert value["text"]
        assert value["sessionId"]
        assert value["attempts"] == 1
        job = producer.command("getJob", **queue, jobId="one")
        assert job["state"] == "completed"
        assert job["progress"] == 100
        assert job["logs"]
        events = [event["event"] for event in listener.events if event.get("jobId") == "one"]
        assert [event for event in events if event != "progress"] == ["added", "waiting", "active", "completed"]
        assert len(listener.named("progress", jobId="one")) >= 2
    (resource,) = jobs_of(module_namespace, queue)
    spec = resource["spec"]
    assert spec["prompt"] == payload["command"]
    assert spec["userId"] == "ada"
    assert spec["arguments"] == {"branch": "main"}
    assert spec["workingDirectory"] == "app"
    assert spec["timeoutSeconds"] == 91
    assert spec["metadata"] == {"team": "blue"}
    assert spec["priority"] == -7
    assert spec["retry"]["maxAttempts"] == 4
    assert spec["retry"]["backoff"] == {"type": "exponential", "delaySeconds": 2, "maxDelaySeconds": 600}
    assert spec["claude"]["model"] == "claude-sonnet-4-5"
    (row,) = await wait_rows(operator, resource["metadata"]["name"], "completed")
    assert row["task_id"] == payload["taskId"]


def test_a_job_that_fails_goes_to_the_dead_letters(
    module_namespace: Namespace, operator: OperatorProcess, server: RedisServer
) -> None:
    queue = make_queue(module_namespace)
    dead = {"queue": f"{queue['queue']}-dead-letter", "prefix": PREFIX}
    with (
        NodeProcess("producer.js", server) as producer,
        NodeProcess("listener.js", server, queues=[queue]) as listener,
    ):
        payload = data("script: credit")
        producer.command("add", **queue, name="run", data=payload, opts={"jobId": "poor", "attempts": 3})
        with pytest.raises(NodeError, match="billing"):
            producer.command("waitUntilFinished", **queue, jobId="poor", ttl=120_000, timeout=130)
        listener.wait_for_event("retries-exhausted", jobId="poor")
        job = producer.command("getJob", **queue, jobId="poor")
        assert job["state"] == "failed"
        assert job["stacktrace"][0].startswith("attempt 1: billing")
        (resource,) = jobs_of(module_namespace, queue)
        letter = producer.command("getJob", **dead, jobId=resource["metadata"]["name"])
        assert letter["state"] == "waiting"
        assert letter["data"] == payload
        assert letter["logs"][0].startswith("billing: ")


def test_dead_letters_are_sent_back(
    module_namespace: Namespace, operator: OperatorProcess, server: RedisServer
) -> None:
    queue = make_queue(module_namespace)
    dead = {"queue": f"{queue['queue']}-dead-letter", "prefix": PREFIX}

    def replay(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "claudejobs.cli.main", "replay", queue["queue"], "--prefix", PREFIX, *arguments],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY / "operator"), "REDIS_URL": server.url()},
            capture_output=True,
            text=True,
            check=False,
        )

    with (
        NodeProcess("producer.js", server) as producer,
        NodeProcess("listener.js", server, queues=[queue]) as listener,
    ):
        payloads = {"kept": data("script: credit"), "removed": data("script: credit")}
        for job_id, payload in payloads.items():
            opts = {"jobId": job_id, "removeOnFail": job_id == "removed", "priority": 3}
            producer.command("add", **queue, name="run", data=payload, opts=opts)
        for job_id in payloads:
            listener.wait_for_event("failed", jobId=job_id, timeout=120)
        assert producer.command("getState", **queue, jobId="removed") == "unknown"
        wait_for(lambda: producer.command("getJobCounts", **dead)["waiting"] == 2, "both are dead letters")

        shown = replay("--dry-run")
        assert shown.returncode == 0, shown.stderr
        assert "retried as kept" in shown.stdout
        assert "added again as removed" in shown.stdout
        assert producer.command("getJobCounts", **dead)["waiting"] == 2

        sent = replay()
        assert sent.returncode == 0, sent.stderr
        for job_id, payload in payloads.items():
            listener.wait_for_event(lambda _, job_id=job_id: len(listener.named("failed", jobId=job_id)) == 2, 120)
            again = [job for job in jobs_of(module_namespace, queue) if job["spec"]["taskId"] == payload["taskId"]]
            assert len(again) == 2
            assert [job["spec"]["priority"] for job in again] == [-3, -3]
        unknown = replay("--id", "nobody")
        assert unknown.returncode == 1
        assert "there is no such dead letter" in unknown.stdout


def test_wrong_data_fails_at_once_with_the_field(
    module_namespace: Namespace, operator: OperatorProcess, server: RedisServer
) -> None:
    queue = make_queue(module_namespace)
    wrong: dict[str, tuple[Any, str]] = {
        "no-command": ({"taskId": "t", "userId": "u"}, "data.command"),
        "number": (data(timeout="soon"), "data.timeout"),
        "outside": (data(workingDirectory="/etc"), "data.workingDirectory"),
        "up": (data(workingDirectory="../x"), "data.workingDirectory"),
        "text": ("run this", "data: must be an object"),
        "huge": (data("x" * 131073), "data.command"),
    }
    with NodeProcess("producer.js", server) as producer:
        for job_id, (payload, _) in wrong.items():
            producer.command("add", **queue, name="run", data=payload, opts={"jobId": job_id, "attempts": 5})
        for job_id, (_, told) in wrong.items():
            with pytest.raises(NodeError, match=f"invalid_request: {told}"):
                producer.command("waitUntilFinished", **queue, jobId=job_id, ttl=60_000, timeout=70)
            assert producer.command("getJob", **queue, jobId=job_id)["attemptsMade"] == 1
    assert jobs_of(module_namespace, queue) == []


def test_a_job_is_cancelled_from_either_side(
    module_namespace: Namespace, operator: OperatorProcess, server: RedisServer
) -> None:
    queue = make_queue(module_namespace, lockSeconds=12)  # an obliterated queue tells nobody: the next sweep notices
    with NodeProcess("producer.js", server) as producer:
        for job_id in ("event", "kubectl", "deleted", "obliterated"):
            producer.command("add", **queue, name="run", data=data("script: hang"), opts={"jobId": job_id})
        names = {}

        def all_run() -> bool:
            for resource in jobs_of(module_namespace, queue):
                if resource.get("status", {}).get("phase") == "Running":
                    identity = json.loads(resource["metadata"]["annotations"]["claudecode.dev/queue-job"])
                    names[identity["id"]] = resource["metadata"]["name"]
            return len(names) == 4

        wait_for(all_run, "all four run", 120)
        producer.command("publishCancel", **queue, jobId="event")
        module_namespace.patch(names["kubectl"], cancel=True)
        module_namespace.kubectl("delete", "ccj", names["deleted"], "--wait=false")
        for job_id in ("event", "kubectl", "deleted"):
            with pytest.raises(NodeError, match="cancelled"):
                producer.command("waitUntilFinished", **queue, jobId=job_id, ttl=60_000, timeout=70)
        module_namespace.wait_phase(names["event"], "Cancelled")
        producer.command("obliterate", **queue, force=True)
        module_namespace.wait_phase(names["obliterated"], "Cancelled")


def test_a_nest_application_produces_and_listens(
    module_namespace: Namespace, operator: OperatorProcess, server: RedisServer
) -> None:
    queue = make_queue(module_namespace)
    with NodeProcess("nest-app.js", server, **queue) as app:
        opts = {"jobId": "good", "attempts": 3, "delay": 1500, "priority": 5}
        payload = data("script: tasks 2")
        app.command("add", name="run", data=payload, opts=opts)
        value = app.send("waitUntilFinished", jobId="good", ttl=120_000).result(130)
        assert (value["taskId"], value["status"], value["attempts"]) == (payload["taskId"], "completed", 1)
        app.command("add", name="run", data=data("script: credit"), opts={"jobId": "poor", "attempts": 2})
        with pytest.raises(NodeError, match="billing"):
            app.command("waitUntilFinished", jobId="poor", ttl=120_000, timeout=130)
        for job_id, end in {"good": "completed", "poor": "failed"}.items():
            app.wait_for_event(end, jobId=job_id)
            app.wait_for_event("active", jobId=job_id)
        assert app.wait_for_event("completed", jobId="good")["returnvalue"] == value
        assert app.wait_for_event("failed", jobId="poor")["failedReason"].startswith("billing: ")
        assert app.named("progress", jobId="good")
        assert app.named("delayed", jobId="good")
    specs = {job["spec"]["taskId"]: job["spec"] for job in jobs_of(module_namespace, queue)}
    assert len(specs) == 2
    assert specs[payload["taskId"]]["priority"] == -5
    assert specs[payload["taskId"]]["retry"]["maxAttempts"] == 3
