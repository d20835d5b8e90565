"""That the Node programs of the tests work with a worker of BullMQ's own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from claudejobs.api.job_data import ClaudeCodeJobData, parse_job_data
from tests.support.kube import wait_for
from tests.support.node import REPOSITORY, NodeError, NodeProcess, node_command
from tests.support.redis import RedisServer, SentinelSet


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), user="app", password="s3cret", tls=True, database=2) as server:
        yield server


@pytest.mark.parametrize("version", [5, 6])
def test_a_producer_and_a_listener_see_what_a_worker_does(server: RedisServer, version: int) -> None:
    queue: dict[str, Any] = {"queue": f"tasks-{version}", "prefix": "own"}
    with (
        NodeProcess("producer.js", server, version) as producer,
        NodeProcess("listener.js", server, version, queues=[queue]) as listener,
        NodeProcess("worker.js", server, version, **queue) as worker,
    ):
        producer.command("add", **queue, name="run", data={"taskId": "t-1"}, opts={"jobId": "one"})
        waited = producer.send("waitUntilFinished", **queue, jobId="one", ttl=60_000)
        assert waited.result(60) == {"echo": {"taskId": "t-1"}}
        listener.wait_for_event("completed", jobId="one", returnvalue={"echo": {"taskId": "t-1"}})
        kinds = [event["event"] for event in listener.events if event.get("jobId") == "one"]
        assert kinds == ["added", "waiting", "active", "progress", "completed"]
        job = producer.command("getJob", **queue, jobId="one")
        assert job["state"] == "completed"
        assert job["logs"] == ["attempt 1"]
        assert job["progress"] == {"percent": 50, "message": "half of it"}
        assert (job["attemptsMade"], job["attemptsStarted"]) == (1, 1)

        added = [
            {"name": "run", "data": {"fail": "no luck"}, "opts": {"jobId": f"f-{n}", "attempts": n}} for n in (1, 2)
        ]
        assert producer.command("addBulk", **queue, jobs=added) == ["f-1", "f-2"]
        listener.wait_for_event("retries-exhausted", jobId="f-2")
        listener.wait_for_event("failed", jobId="f-2", failedReason="no luck")
        with pytest.raises(NodeError, match="no luck"):
            producer.command("waitUntilFinished", **queue, jobId="f-2", ttl=60_000)
        assert len(producer.command("getJob", **queue, jobId="f-2")["stacktrace"]) == 2
        producer.command("retry", **queue, jobId="f-1", state="failed")
        listener.wait_for_event(lambda _: len(listener.named("failed", jobId="f-1")) == 2)

        producer.command("add", **queue, name="run", data={"hold": True}, opts={"jobId": "held"})
        worker.wait_for_event("started", jobId="held")
        with pytest.raises(NodeError, match="locked"):
            producer.command("remove", **queue, jobId="held")
        producer.command("publishCancel", **queue, jobId="held")
        listener.wait_for_event("cancel", jobId="held")
        worker.command("release")
        listener.wait_for_event("completed", jobId="held")

        producer.command("pause", **queue)
        for name in ("late", "later"):
            producer.command("add", **queue, name="run", data={}, opts={"jobId": name, "delay": 60_000})
        assert producer.command("getState", **queue, jobId="late") == "delayed"
        producer.command("remove", **queue, jobId="late")
        listener.wait_for_event("removed", jobId="late")
        assert producer.command("getJob", **queue, jobId="late") is None
        counts = producer.command("getJobCounts", **queue)
        assert (counts["completed"], counts["failed"], counts["delayed"]) == (2, 2, 1)
        producer.command("drain", **queue, delayed=True)
        assert producer.command("getJobCounts", **queue)["delayed"] == 0
        producer.command("resume", **queue)
        producer.command("obliterate", **queue, force=True)
        assert producer.command("getJobCounts", **queue)["completed"] == 0


def test_an_application_of_nestjs_produces_and_listens(server: RedisServer) -> None:
    with (
        NodeProcess("nest-app.js", server, queue="nest") as app,
        NodeProcess("spawn-worker.js", server, queue="nest", concurrency=2, command=["/bin/true"]) as worker,
        NodeProcess("spawn-worker.js", server, queue="nest-bad", concurrency=1, command=["/bin/false"]),
        NodeProcess("producer.js", server) as producer,
    ):
        job = app.command("add", name="run", data={"taskId": "t-1"}, opts={"attempts": 2})
        assert app.command("waitUntilFinished", jobId=job, ttl=60_000) == {"exitCode": 0}
        app.wait_for_event("active", jobId=job)
        app.wait_for_event("completed", jobId=job)
        worker.wait_for_event("spawned", jobId=job)
        failing = producer.command("add", queue="nest-bad", name="run", data={})
        with pytest.raises(NodeError, match="/bin/false ended with 1"):
            producer.command("waitUntilFinished", queue="nest-bad", jobId=failing, ttl=60_000)


def test_a_program_that_ends_says_why(server: RedisServer) -> None:
    with NodeProcess("producer.js", server) as producer:
        with pytest.raises(NodeError, match="no command fly"):
            producer.command("fly")
        waited = producer.send("waitUntilFinished", queue="none", jobId="none")
        with pytest.raises(NodeError, match="no job none in queue none"):
            waited.result(60)
        producer.kill()
        with pytest.raises(NodeError, match=r"producer\.js ended"):
            producer.command("getJobCounts", queue="none")


def test_programs_reach_a_cluster_of_redis(tmp_path: Path) -> None:
    queue: dict[str, Any] = {"queue": "tasks", "prefix": "{bull}"}
    with (
        RedisServer(tmp_path, cluster=True) as cluster,
        NodeProcess("producer.js", cluster) as producer,
        NodeProcess("worker.js", cluster, **queue),
    ):
        job = producer.command("add", **queue, name="run", data={})
        assert producer.command("waitUntilFinished", **queue, jobId=job, ttl=60_000) == {"echo": {}}


def test_programs_outlive_an_outage(tmp_path: Path) -> None:
    queue: dict[str, Any] = {"queue": "tasks"}
    with (
        RedisServer(tmp_path) as server,
        NodeProcess("producer.js", server) as producer,
        NodeProcess("listener.js", server, queues=[queue]) as listener,
        NodeProcess("worker.js", server, **queue),
    ):
        first = producer.command("add", **queue, name="run", data={})
        listener.wait_for_event("completed", jobId=first)
        server.kill()
        added = producer.send("add", **queue, name="run", data={"taskId": "t-2"})
        wait_for(lambda: "ECONNREFUSED" in producer.stderr(), "the producer notices")
        server.start()
        second = added.result(60)
        assert producer.command("waitUntilFinished", **queue, jobId=second, ttl=60_000) == {"echo": {"taskId": "t-2"}}
        listener.wait_for_event("completed", jobId=second)


def test_programs_follow_sentinel_to_the_new_master(tmp_path: Path) -> None:
    queue: dict[str, Any] = {"queue": "tasks"}
    with (
        SentinelSet(tmp_path) as servers,
        NodeProcess("producer.js", servers) as producer,
        NodeProcess("worker.js", servers, **queue),
    ):
        before = producer.command("add", **queue, name="run", data={"number": 1})
        assert producer.command("waitUntilFinished", **queue, jobId=before, ttl=60_000) == {"echo": {"number": 1}}
        servers.failover(kill=True)
        after = producer.command("add", **queue, name="run", data={"number": 2})
        assert producer.command("waitUntilFinished", **queue, jobId=after, ttl=60_000) == {"echo": {"number": 2}}


def test_the_example_of_a_producer_prints_the_result(server: RedisServer) -> None:
    example = REPOSITORY / "examples" / "queue" / "enqueue.js"
    url = f"rediss://app:s3cret@127.0.0.1:{server.port}/2"
    with subprocess.Popen(
        [*node_command(example), "Count the files."],
        env=os.environ | {"REDIS_URL": url, "NODE_EXTRA_CA_CERTS": str(server.ca_file)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        if "added to claude-tasks" not in first:
            pytest.fail(f"{first}{process.communicate(timeout=60)}")
        with NodeProcess("worker.js", server, queue="claude-tasks"):
            output, events = process.communicate(timeout=60)
    assert process.returncode == 0, events
    echo = json.loads(output)["echo"]
    assert parse_job_data(echo).command == "Count the files."
    assert set(echo) == {field.alias for field in ClaudeCodeJobData.model_fields.values()}
    assert ": active" in events
    assert ": progress" in events
