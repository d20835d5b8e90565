"""What becomes of queue jobs: each has one resource per run, whoever interferes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from claudejobs.intake.bull import BullQueue
from claudejobs.intake.connection import connect
from localcluster import Cluster
from tests.integration.queues import Bench, bench, data
from tests.support.kube import unique, wait_for
from tests.support.node import NodeProcess
from tests.support.pods import identity_of
from tests.support.redis import RedisServer

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def intake(cluster: Cluster, server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(cluster, server, tmp_path_factory.mktemp("operator"), max_concurrent_jobs=20) as made:
        yield made


@pytest.mark.parametrize("options", [{}, {"resetAttemptsMade": True, "resetAttemptsStarted": True}])
def test_a_job_that_is_retried_by_hand_runs_again(intake: Bench, options: dict[str, bool]) -> None:
    queue = intake.queue()
    queue.add("a", "fail")
    queue.wait_state("a", "failed")
    intake.producer.command("retry", **queue.at, jobId="a", state="failed", options=options)
    wait_for(lambda: len(queue.resources()) == 2, "a second resource")
    queue.wait_state("a", "failed")
    first, second = sorted((identity_of(job) for job in queue.resources()), key=lambda one: one["deliveries"])
    assert (first["deliveries"], second["deliveries"]) == (0, 1)
    assert second["finishes"] == (0 if options else 1)


def test_jobs_get_the_labels_for_kueue_of_their_queue_and_no_others(intake: Bench) -> None:
    queue = intake.queue(suspend=True)
    kueue = {"kueue.x-k8s.io/queue-name": "agents", "kueue.x-k8s.io/priority-class": "urgent"}
    labels = [f"{key}={value}" for key, value in {**kueue, "team": "a"}.items()]
    intake.namespace.kubectl("label", "ccq", queue.resource, *labels)
    queue.add("a", "hello")
    queue.apply()
    queue.wait_state("a", "completed")
    (made,) = queue.resources()
    assert made["metadata"]["labels"] == {"claudecode.dev/queue": queue.resource} | kueue


def test_a_job_id_that_is_added_again(intake: Bench, server: RedisServer) -> None:
    queue = intake.queue()
    queue.add("a", "hold")
    first = queue.running("a")
    queue.add("a", "hello")  # BullMQ knows the id, and does nothing
    with server.client() as client:  # as remove() by force: the lock goes, and the job with it
        client.delete(f"bull:{queue.name}:a:lock")
    intake.producer.command("remove", **queue.at, jobId="a")
    queue.add("a", "hello")
    queue.wait_state("a", "completed")
    wait_for(lambda: len(queue.resources()) == 2, "a resource for each")
    wait_for(
        lambda: {job["status"]["phase"] for job in queue.resources()} == {"Completed", "Cancelled"},
        "the removed job's resource is cancelled",
    )
    cancelled = next(job for job in queue.resources() if job["status"]["phase"] == "Cancelled")
    assert cancelled["metadata"]["name"] == first["metadata"]["name"]


def test_locks_that_are_lost_are_taken_again(intake: Bench, server: RedisServer) -> None:
    queue = intake.queue()
    queue.add("a", "hold")
    job = queue.running("a")
    lock = f"bull:{queue.name}:a:lock"
    with server.client() as client:
        client.delete(lock)
        wait_for(lambda: client.exists(lock), "the lock is back")
    intake.pods.release(job)
    queue.wait_state("a", "completed")
    queue.check_once("a")


def test_a_stalled_check_elsewhere_starts_nothing_twice(intake: Bench, server: RedisServer) -> None:
    queue = intake.queue()
    queue.add("a", "hold")
    job = queue.running("a")
    with server.client() as client:
        # What two stalled checks of any worker do with a job without a lock.
        client.delete(f"bull:{queue.name}:a:lock")
        client.lrem(f"bull:{queue.name}:active", 1, "a")
        client.hincrby(f"bull:{queue.name}:a", "stc", 1)
        client.rpush(f"bull:{queue.name}:wait", "a")
        client.zadd(f"bull:{queue.name}:marker", {"0": 0})
        wait_for(lambda: client.lrange(f"bull:{queue.name}:active", 0, -1) == ["a"], "fetched again")
    intake.pods.release(job)
    finished = queue.wait_state("a", "completed")
    assert finished["attemptsStarted"] == 2
    queue.check_once("a")


def test_a_job_that_another_worker_takes_is_left_to_it(intake: Bench, server: RedisServer) -> None:
    queue = intake.queue()
    queue.add("a", "hold")
    queue.running("a")
    with server.client() as client:
        client.set(f"bull:{queue.name}:a:lock", "another-worker", px=600_000)
    intake.pods.wait_phase(queue.resource, "a", "Cancelled")
    assert queue.state("a") == "active"
    with server.client() as client:
        assert client.get(f"bull:{queue.name}:a:lock") == "another-worker"
    queue.check_once("a")


def test_workers_in_node_share_the_queue(intake: Bench, server: RedisServer) -> None:
    queue = intake.queue()
    ids = [f"job-{n}" for n in range(12)]
    options = {"concurrency": 2, "lockDuration": 2000, "stalledInterval": 500}
    with NodeProcess("worker.js", server, **queue.at, worker=options) as worker:
        for job_id in ids:
            queue.add(job_id)
        for job_id in ids:
            queue.wait_state(job_id, "completed")
        theirs = {event["jobId"] for event in worker.named("started")}
    ours = {identity_of(job)["id"] for job in queue.resources()}
    assert ours | theirs == set(ids)
    assert not ours & theirs
    queue.check_once(*ours)


def test_what_is_kept_of_a_finished_job(intake: Bench, server: RedisServer) -> None:
    queue = intake.queue(deadLetter=False)
    queue.add("gone", removeOnComplete=True)
    queue.add("failed-gone", "fail", removeOnFail=True)
    queue.add("few", keepLogs=1)
    queue.add("number", removeOnComplete=5)
    queue.wait_state("few", "completed")
    queue.wait_state("number", "completed")
    queue.wait_state("gone", "unknown")
    queue.wait_state("failed-gone", "unknown")
    with server.client() as client:
        left = set(client.keys(f"bull:{queue.name}:*gone*"))
    assert left == set()
    assert len((queue.job("few") or {})["logs"]) <= 1
    queue.check_once("gone", "failed-gone", "few", "number")


def test_delayed_and_paused_jobs_wait(intake: Bench) -> None:
    queue = intake.queue()
    intake.producer.command("pause", **queue.at)
    queue.add("a")
    queue.add("later", delay=1500)
    wait_for(lambda: queue.status.get("paused"), "the status says paused")
    assert queue.condition("Compatible") == ("True", "Supported")
    wait_for(lambda: queue.status["counts"].get("waiting", 0) >= 1, "the status counts the job")
    assert queue.resources() == []
    intake.producer.command("resume", **queue.at)
    queue.wait_state("a", "completed")
    late = queue.wait_state("later", "completed")
    assert late["processedOn"] - late["timestamp"] >= 1500
    queue.check_once("a", "later")


def test_a_queue_that_bullmq_5_pauses_is_told_of(intake: Bench, server: RedisServer) -> None:
    queue = intake.queue()
    with NodeProcess("producer.js", server, 5) as old:
        old.command("add", **queue.at, name="run", data=data("hold"), opts={"jobId": "runs"})
        queue.wait_condition("Compatible", "False", "OldPause")
        job = queue.running("runs")
        old.command("pause", **queue.at)
        old.command("add", **queue.at, name="run", data=data(), opts={"jobId": "waits"})
        intake.pods.release(job)
        queue.wait_state("runs", "completed")
        assert len(queue.resources()) == 1
        old.command("resume", **queue.at)
        queue.wait_state("waits", "completed")


def test_the_order_of_a_queue_is_bullmqs(intake: Bench, server: RedisServer) -> None:
    queue = intake.queue(lookAhead=0, suspend=True)
    for job_id, opts in {"p9": {"priority": 9}, "p1": {"priority": 1}, "old": {}, "lifo": {"lifo": True}}.items():
        queue.add(job_id, **opts)
    with server.client() as client:
        client.hset(f"bull:{queue.name}:meta", "concurrency", 1)  # what setGlobalConcurrency(1) does
    queue.apply(lookAhead=0)
    jobs = {job_id: queue.wait_state(job_id, "completed") for job_id in ("lifo", "old", "p1", "p9")}
    assert sorted(jobs, key=lambda job_id: jobs[job_id]["processedOn"]) == ["lifo", "old", "p1", "p9"]
    ends = [(job["processedOn"], job["finishedOn"]) for job in jobs.values()]
    assert all(end <= start for (_, end), (start, _) in zip(sorted(ends), sorted(ends)[1:], strict=False))
    by_priority = {identity_of(job)["id"]: job["spec"].get("priority", 0) for job in queue.resources()}
    assert by_priority == {"lifo": 0, "old": 0, "p1": -1, "p9": -9}


def test_a_job_scheduler_goes_on(intake: Bench, server: RedisServer) -> None:
    queue = intake.queue()
    intake.producer.command(
        "upsertJobScheduler",
        **queue.at,
        schedulerId="tick",
        repeat={"every": 1000, "limit": 3},
        template={"name": "run", "data": data()},
    )
    wait_for(lambda: len(queue.resources()) >= 2, "two iterations have a resource each")
    intake.producer.command("removeJobScheduler", **queue.at, schedulerId="tick")
    assert len({identity_of(job)["id"] for job in queue.resources()}) == len(queue.resources())


def test_the_chain_of_a_job_scheduler_survives_a_crash(intake: Bench, server: RedisServer) -> None:
    queue = intake.queue(suspend=True)
    queue.wait_condition("Accepted", "True", "Suspended")
    template = {"name": "run", "data": data()}
    repeat = {"every": 3_600_000}
    intake.producer.command("upsertJobScheduler", **queue.at, schedulerId="tick", repeat=repeat, template=template)

    async def fetch() -> str:
        """All that an operator does that is killed when it has fetched a job."""
        client = connect(server.url())
        try:
            fetched = await BullQueue(client, "bull", queue.name, queue.uid).fetch(60_000)
            assert fetched is not None
            return fetched.identity.id
        finally:
            await client.aclose()

    first = asyncio.run(fetch())
    queue.wait_state(first, "completed")
    with server.client() as client:
        (successor,) = client.zrange(f"bull:{queue.name}:delayed", 0, -1)
        assert successor.startswith("repeat:tick:")
        assert client.hget(f"bull:{queue.name}:repeat:tick", "ic") == "2"
    queue.check_once(first)


def test_jobs_that_bullmq_5_repeats_go_on_with_their_data(intake: Bench, server: RedisServer) -> None:
    queue = intake.queue()
    payload = data()
    with NodeProcess("producer.js", server, 5) as old:
        old.command("add", **queue.at, name="run", data=payload, opts={"repeat": {"every": 700, "limit": 3}})
        wait_for(lambda: len(queue.resources()) == 3, "all three iterations have a resource")
        ids = [identity_of(job)["id"] for job in queue.resources()]
        for job_id in ids:
            queue.wait_state(job_id, "completed")
    assert {job["spec"]["taskId"] for job in queue.resources()} == {payload["taskId"]}
    queue.check_once(*set(ids))


def test_a_job_that_stalled_too_often_fails(intake: Bench, server: RedisServer) -> None:
    queue = intake.queue(suspend=True)
    queue.add("a")
    with server.client() as client:  # as BullMQ's stalled check notes it
        client.hset(f"bull:{queue.name}:a", "defa", "job stalled more than allowable limit")
    queue.apply()
    job = queue.wait_state("a", "failed")
    assert job["failedReason"].startswith("stalled: job stalled more than allowable limit")
    assert queue.resources() == []
    intake.producer.command("retry", **queue.at, jobId="a", state="failed", options={})
    queue.wait_state("a", "completed")


def test_data_that_the_api_server_cannot_take_fails_the_job(intake: Bench) -> None:
    queue = intake.queue()
    queue.add("huge", payload=data(metadata={"blob": "x" * 3_500_000}))
    queue.add("large", payload=data(metadata={"blob": "x" * 1_800_000}))
    for job_id in ("huge", "large"):
        job = queue.wait_state(job_id, "failed")
        assert job["failedReason"].startswith("invalid_request: ")
    assert queue.resources() == []


def test_a_cancellation_counts_whatever_the_producers_clock_says(intake: Bench) -> None:
    queue = intake.queue()
    ahead = 4_102_444_800_000  # a producer whose clock is far ahead
    queue.add("a", "hold", timestamp=ahead)
    queue.running("a")
    intake.producer.command("publishCancel", **queue.at, jobId="a")
    job = queue.wait_state("a", "failed")
    assert job["failedReason"].startswith("cancelled")


def test_more_queues_than_one_resource_is_a_conflict(intake: Bench) -> None:
    queue = intake.queue()
    queue.wait_condition("Accepted", "True", "Accepted")
    second = intake.queue(queue.name, resource=unique("second"))
    second.wait_condition("Accepted", "False", "Conflict")
    queue.add("a")
    queue.wait_state("a", "completed")
    queue.delete()
    second.wait_condition("Accepted", "True", "Accepted")
    second.add("b")
    second.wait_state("b", "completed")


@pytest.mark.parametrize("down", [False, True], ids=["operator up", "operator down"])
def test_a_queue_resource_that_is_made_anew_takes_over(intake: Bench, server: RedisServer, down: bool) -> None:
    queue = intake.queue()
    queue.add("a", "hold")
    job = queue.running("a")
    former = queue.uid
    if down:
        intake.operator.kill()
    queue.delete()
    queue.apply()
    if down:
        intake.operator.start()
    assert queue.uid != former
    with server.client() as client:
        lock = f"bull:{queue.name}:a:lock"
        wait_for(lambda: client.get(lock) == f"claudejobs:{queue.uid}", "the new one holds what the old one held")
    queue.add("b")
    queue.wait_state("b", "completed")
    intake.pods.release(job)
    queue.wait_state("a", "completed")
    queue.check_once("a", "b")
    assert queue.condition("Accepted") == ("True", "Accepted")
