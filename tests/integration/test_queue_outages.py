"""Redis goes away, hangs, refuses, loses its data or its master: running jobs go on, and nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from redis.exceptions import ReadOnlyError

from claudejobs.api.queue_job import QUEUE_JOB_LOST_ANNOTATION
from claudejobs.intake.connection import connect
from localcluster import Cluster
from tests.integration.queues import Bench, Queue, bench, data
from tests.support.kube import wait_for
from tests.support.operator import REPOSITORY, run_command
from tests.support.pods import Json
from tests.support.redis import RedisServer, SentinelSet

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def intake(cluster: Cluster, server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(cluster, server, tmp_path_factory.mktemp("operator")) as made:
        yield made


def wait_away(queue: Queue, told: str) -> None:
    """Wait until everything that tells of an outage does, with these words."""
    intake = queue.bench
    queue.wait_condition("Connected", "False", "RedisAway")
    wait_for(lambda: told in queue.status.get("lastError", ""), lambda: f"the status says {told}: {queue.status}")
    assert queue.status["connected"] is False
    events = intake.events(queue, "RedisAway")
    assert len(events) == 1
    assert events[0].endswith("; running jobs go on, no new ones are fetched")
    readiness = intake.readiness()
    assert (readiness["state"], readiness["redis"]["state"]) == ("degraded", "degraded")
    assert f"{intake.namespace.name}/{queue.resource}" in readiness["redis"]["away"]


def wait_back(queue: Queue) -> None:
    """Wait until everything tells that Redis is back."""
    queue.wait_condition("Connected", "True", "Connected")
    wait_for(lambda: queue.bench.readiness()["state"] == "ok", "ready again")


@contextmanager
def running_jobs(queue: Queue, master: RedisServer) -> Iterator[Callable[[], None]]:
    """Two jobs run, and their locks expire just when the outage begins, which the block is.

    What is given ends one of them. After the block, the results are with the producer, and nothing ran twice.
    """
    for job_id in ("ends", "stays"):
        queue.add(job_id, "hold")
    ends, stays = queue.running("ends"), queue.running("stays")
    queue.wait_condition("Connected", "True", "Connected")
    locks = [f"{queue.prefix}:{queue.name}:{job_id}:lock" for job_id in ("ends", "stays")]
    with master.client() as client:
        for lock in locks:
            assert client.pexpire(lock, 1)

    def end_one() -> None:
        queue.bench.pods.release(ends)
        queue.bench.pods.wait_phase(queue.resource, "ends", "Completed")

    yield end_one
    value = queue.wait_state("ends", "completed")["returnvalue"]
    assert (value["status"], value["attempts"]) == ("completed", 1)
    queue.add("after")
    queue.wait_state("after", "completed")
    assert queue.state("stays") == "active"
    queue.bench.pods.release(stays)
    queue.wait_state("stays", "completed")
    queue.check_once("ends", "stays", "after")
    # The locks were taken again: nobody gave the jobs back to the queue, from which they would be fetched again.
    assert [(queue.job(job_id) or {})["attemptsStarted"] for job_id in ("ends", "stays")] == [1, 1]


def _read_only(server: RedisServer, on: bool) -> None:
    with server.client() as client:
        client.execute_command("REPLICAOF", *(("127.0.0.1", "1") if on else ("NO", "ONE")))  # type: ignore[no-untyped-call]


def _memory(server: RedisServer, most: int) -> None:
    with server.client() as client:
        client.config_set("maxmemory", most)


OUTAGES: dict[str, tuple[Callable[[RedisServer], None], Callable[[RedisServer], object], str]] = {
    "killed": (RedisServer.kill, RedisServer.start, "Redis: "),
    "frozen": (RedisServer.freeze, RedisServer.thaw, "Timeout"),
    "read only": (
        lambda one: _read_only(one, True),
        lambda one: _read_only(one, False),
        "to the master, not to a replica",
    ),
    "out of memory": (lambda one: _memory(one, 1), lambda one: _memory(one, 0), "raise maxmemory"),
}


@pytest.mark.parametrize("outage", OUTAGES)
def test_jobs_go_on_while_redis_is(intake: Bench, server: RedisServer, outage: str) -> None:
    begin, end, told = OUTAGES[outage]
    queue = intake.queue()
    try:
        with running_jobs(queue, server) as end_one:
            begin(server)
            wait_away(queue, told)
            end_one()
            end(server)
            wait_back(queue)
            wait_for(lambda: intake.events(queue, "RedisBack") == ["Redis answers again"], "an Event that says so")
    finally:
        end(server)
        queue.delete()


def test_jobs_go_on_when_redis_has_lost_its_data(intake: Bench, server: RedisServer) -> None:
    queue = intake.queue()
    for job_id in ("ends", "again"):
        queue.add(job_id, "hold")
    ends, again = queue.running("ends"), queue.running("again")
    server.restart(keep_data=False)
    for job in (ends, again):
        wait_for(
            lambda job=job: intake.namespace.get("ccj", job["metadata"]["name"])["metadata"]["annotations"].get(  # type: ignore[index, misc]
                QUEUE_JOB_LOST_ANNOTATION
            ),
            "the resource says that its queue job is lost",
        )
    wait_back(queue)
    queue.add("again")  # as its producer may, who knows that it is gone
    queue.wait_state("again", "completed")
    intake.pods.release(ends, again)
    for job in (ends, again):
        status = intake.namespace.wait_phase(job["metadata"]["name"], "Completed")
        assert status["result"]["text"]
    assert queue.state("ends") == "unknown"
    assert len(queue.resources()) == 3
    assert {intake.pods.pods_of(job) for job in queue.resources()} == {1}
    queue.delete()


def test_a_server_that_became_a_replica_is_left(server: RedisServer) -> None:
    async def connections() -> tuple[int, int]:
        client = connect(server.url())
        try:
            before = await client.client_id()
            _read_only(server, True)
            with pytest.raises(ReadOnlyError):
                await client.set("key", "value")
            return before, await client.client_id()
        finally:
            _read_only(server, False)
            await client.aclose()

    before, after = asyncio.run(connections())
    assert before != after


@pytest.fixture(scope="module")
def sentinel(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bench, SentinelSet]]:
    with (
        SentinelSet(tmp_path_factory.mktemp("sentinel"), password="s3cret") as servers,
        bench(cluster, servers, tmp_path_factory.mktemp("operator")) as made,
    ):
        yield made, servers


@pytest.mark.parametrize("kill", [False, True], ids=["by order", "because it dies"])
def test_jobs_go_on_at_the_next_master(sentinel: tuple[Bench, SentinelSet], kill: bool) -> None:
    intake, servers = sentinel
    queue = intake.queue()
    former = servers.master
    with running_jobs(queue, former) as end_one:
        with former.client() as client:
            assert client.wait(1, 10_000) == 1
        servers.failover(kill=kill)
        end_one()
    wait_back(queue)
    with servers.master.client() as client:
        assert client.zscore(f"bull:{queue.name}:completed", "ends")


_MORE_FOR_A_CLUSTER = ("+cluster|slots", "+cluster|shards", "+command")


def acl_of_the_docs(password: str) -> list[str]:
    """The words of the ACL line that docs/queue.md gives to paste."""
    text = (REPOSITORY / "docs" / "queue.md").read_text()
    (line,) = (line.strip() for line in text.splitlines() if line.strip().startswith("ACL SETUSER"))
    assert f"`{' '.join(_MORE_FOR_A_CLUSTER)}`" in text
    return line.replace("PASSWORD", password).split()


def test_a_queue_in_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    for folder in ("redis", "operator"):
        (tmp_path / folder).mkdir()
    with (
        RedisServer(tmp_path / "redis", cluster=True) as server,
        server.client() as client,
    ):
        client.execute_command(*acl_of_the_docs("s3cret"), "~{bull}:*", *_MORE_FOR_A_CLUSTER)  # type: ignore[no-untyped-call]
        client.config_rewrite()
        _drain_in_a_cluster(cluster, server, tmp_path / "operator")


def _drain_in_a_cluster(cluster: Cluster, server: RedisServer, folder: Path) -> None:
    url = server.url().replace("redis+cluster://", "redis+cluster://claudejobs:s3cret@")
    with bench(cluster, server, folder, url) as intake:
        queue = intake.queue(prefix="{bull}")
        with running_jobs(queue, server) as end_one:
            server.kill()
            wait_away(queue, "Redis: ")
            end_one()
            server.start()
            wait_back(queue)
        queue.add("dies", "fail", priority=2)
        queue.wait_state("dies", "failed")
        wait_for(lambda: queue.status["counts"]["deadLetter"] == 1, "its data is a dead letter")
        intake.queue().wait_condition("Accepted", "False", "PrefixWithoutBraces")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """TLS, a database number, and for the operator a user who may do no more than the docs say."""
    with RedisServer(tmp_path_factory.mktemp("redis"), tls=True, database=3) as server:
        with server.client() as client:
            client.execute_command(*acl_of_the_docs("s3cret/@"))  # type: ignore[no-untyped-call]
        yield server


def _url_of(server: RedisServer, password: str) -> str:
    return server.url().replace("rediss://", f"rediss://claudejobs:{quote(password, safe='')}@")


@pytest.fixture(scope="module")
def confined(cluster: Cluster, guarded: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("operator")
    with bench(cluster, guarded, folder, _url_of(guarded, "s3cret/@")) as made:
        yield made


def test_the_rules_of_the_docs_are_enough(confined: Bench, guarded: RedisServer) -> None:
    queue = confined.queue()
    producer = confined.producer
    with guarded.client() as client:
        client.acl_log_reset()
    queue.add("plain", keepLogs=2, removeOnComplete={"age": 3600, "count": 100})
    queue.add("urgent", priority=1, delay=50)
    queue.add("gone", removeOnComplete=True)
    queue.add("dies", "fail", removeOnFail={"age": 3600, "count": 10})
    queue.add("dies-too", "fail", removeOnFail=True, priority=3)
    queue.add("single", deduplication={"id": "only-one"})
    queue.add("cancelled", "hold")
    queue.running("cancelled")
    producer.command("publishCancel", **queue.at, jobId="cancelled")
    every = {"every": 500, "limit": 2}
    template: Json = {"name": "run", "data": data()}
    producer.command("upsertJobScheduler", **queue.at, schedulerId="tick", repeat=every, template=template)
    queue.wait_state("cancelled", "failed")
    queue.wait_state("dies", "failed")
    wait_for(lambda: queue.status["counts"]["deadLetter"] == 2, "both are dead letters")
    for job_id in ("plain", "urgent", "single"):
        queue.wait_state(job_id, "completed")
    queue.wait_state("gone", "unknown")
    wait_for(
        lambda: sum(job["spec"]["taskId"] == template["data"]["taskId"] for job in queue.resources()) == 2, "ticks"
    )
    before = len(queue.resources())
    url = _url_of(guarded, "s3cret/@")
    sent = run_command("replay", queue.name, REDIS_URL=url)
    assert sent.returncode == 0, sent.stderr
    wait_for(lambda: len(queue.resources()) == before + 2, "the dead letters are run again")
    queue.wait_state("dies", "failed")
    with guarded.client() as client:
        assert client.acl_log() == []
        assert client.info("keyspace").keys() == {"db3"}
    assert queue.condition("Connected") == ("True", "Connected")


def test_jobs_go_on_while_redis_refuses_the_password(confined: Bench, guarded: RedisServer) -> None:
    queue = confined.queue()

    def password(old: str, new: str) -> None:
        with guarded.client() as client:
            client.acl_setuser("claudejobs", enabled=True, passwords=[f"-{old}", f"+{new}"])
            client.execute_command("CLIENT KILL USER claudejobs")  # type: ignore[no-untyped-call]

    with running_jobs(queue, guarded) as end_one:
        password("s3cret/@", "another")
        wait_away(queue, "check the user and the password")
        assert "s3cret" not in json.dumps(queue.status)
        end_one()
        password("another", "s3cret/@")
        wait_back(queue)


def test_jobs_go_on_while_the_rules_of_redis_are_too_narrow(confined: Bench, guarded: RedisServer) -> None:
    queue = confined.queue()
    with running_jobs(queue, guarded) as end_one:
        with guarded.client() as client:
            client.acl_setuser("claudejobs", enabled=True, commands=["-hset"])
        wait_away(queue, "docs/queue.md has the ACL rules")
        end_one()
        with guarded.client() as client:
            client.acl_setuser("claudejobs", enabled=True, commands=["+hset"])
        wait_back(queue)
