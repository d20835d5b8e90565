"""How much of a queue is fetched, and what comes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from localcluster import Cluster
from tests.integration.queues import Bench, Queue, bench, data
from tests.support.kube import wait_for
from tests.support.pods import Json, identity_of
from tests.support.redis import RedisServer

pytestmark = pytest.mark.e2e

SLOTS = 2


@pytest.fixture(scope="module")
def intake(cluster: Cluster, server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(cluster, server, tmp_path_factory.mktemp("operator"), max_concurrent_jobs=SLOTS) as made:
        yield made


def occupy(intake: Bench) -> Queue:
    """Fill all slots with jobs that hold, so that nothing else is begun until they are released."""
    queue = intake.queue(lookAhead=0)
    for number in range(SLOTS):
        queue.add(f"holds-{number}", "hold")
        queue.running(f"holds-{number}")
    return queue


def started(*queues: Queue) -> list[tuple[str, str]]:
    """The jobs of queues, each with the name of its queue, in the order in which they were fetched."""
    jobs = [(queue, identity_of(job)["id"]) for queue in queues for job in queue.resources()]
    times = {(queue.name, job_id): (queue.job(job_id) or {})["processedOn"] for queue, job_id in jobs}
    return sorted(times, key=lambda one: times[one])


def test_no_more_is_fetched_than_the_slots_and_the_look_ahead(intake: Bench) -> None:
    intake.pods.most = 0
    queue = intake.queue(lookAhead=3)
    ids = [f"job-{number:02}" for number in range(12)]
    for job_id in ids:
        queue.add(job_id, "hold")
    wait_for(lambda: queue.status.get("held") == SLOTS + 3, "the slots and the look-ahead are full")
    wait_for(lambda: queue.status["counts"]["waiting"] == 7, "the others wait in Redis")
    intake.producer.command("remove", **queue.at, jobId="job-11")  # as nobody holds it
    for number, job_id in enumerate(ids[:-1], 1):
        intake.pods.release(queue.running(job_id))
        queue.wait_state(job_id, "completed")
        expected = min(len(ids) - 1, number + SLOTS + 3)
        wait_for(lambda expected=expected: len(queue.resources()) == expected, f"{expected} were fetched")  # type: ignore[misc]
    assert intake.pods.most == SLOTS + 3
    queue.check_once(*ids[:-1])
    queue.delete()


def test_the_most_urgent_job_is_next(intake: Bench) -> None:
    first = occupy(intake)
    queue = intake.queue(lookAhead=0)
    priorities = {"later": 30, "soon": 20, "at-once": 1, "soon-too": 20}
    for job_id, priority in priorities.items():
        queue.add(job_id, priority=priority)
    queue.add("before-all")  # BullMQ takes those without a priority first
    intake.pods.release(*first.resources()[1:])
    for job_id in (*priorities, "before-all"):
        queue.wait_state(job_id, "completed")
    assert [job_id for _, job_id in started(queue)] == ["before-all", "at-once", "soon", "soon-too", "later"]
    intake.pods.release(*first.resources())
    for one in (first, queue):
        one.delete()


def test_queues_take_turns(intake: Bench) -> None:
    first = occupy(intake)
    long, short = intake.queue(lookAhead=0), intake.queue(lookAhead=0)
    for number in range(12):
        long.add(f"long-{number}")
    for number in range(4):
        short.add(f"short-{number}")
    intake.pods.release(*first.resources())
    for number in range(12):
        long.wait_state(f"long-{number}", "completed")
    order = [queue for queue, _ in started(long, short)]
    assert len(order) == 16
    assert order[:8].count(short.name) in (3, 4), order
    for one in (first, long, short):
        one.delete()


def test_jobs_that_fail_without_a_resource_take_no_room(intake: Bench) -> None:
    queue = intake.queue(lookAhead=0, deadLetter=False)
    wrong = [{"name": "run", "data": {}, "opts": {"jobId": f"wrong-{number}"}} for number in range(100)]
    intake.producer.command("addBulk", **queue.at, jobs=wrong)
    for job in wrong:
        queue.wait_state(job["opts"]["jobId"], "failed")
    assert queue.resources() == []
    queue.delete()


def _all_running(queue: Queue) -> list[Json]:
    return [job for job in queue.resources() if job.get("status", {}).get("phase") == "Running"]


def _refused(queue: Queue) -> int:
    return sum(job.get("status", {}).get("reason") == "QuotaExceeded" for job in queue.resources())


def _running(queue: Queue) -> Counter[str]:
    return Counter(job["spec"]["userId"] for job in _all_running(queue))


def test_limits_of_users_and_namespaces_hold(
    cluster: Cluster, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    limits = {"max_jobs_per_namespace": 3, "max_jobs_per_user": 2}
    with bench(cluster, server, tmp_path_factory.mktemp("operator"), max_concurrent_jobs=50, **limits) as intake:
        queue = intake.queue(lookAhead=4)
        users = {f"job-{number:02}": "ada" if number < 9 else "bob" for number in range(14)}
        for job_id, user in users.items():
            queue.add(job_id, payload=data("hold") | {"userId": user})
        wait_for(lambda: _running(queue) == {"ada": 2, "bob": 1}, "the slot that ada may not have is bob's")
        wait_for(lambda: queue.status.get("held") == 9 + 1, "no more is held than was passed over on the way to him")
        assert sum(intake.pods.pods_of(job) for job in queue.resources()) == 3
        done: set[str] = set()
        while len(done) < len(users):
            job = wait_for(lambda: next(iter(_all_running(queue)), None), "another one runs")
            assert max(_running(queue).values()) <= 2
            intake.pods.release(job)
            job_id = identity_of(job)["id"]
            queue.wait_state(job_id, "completed")
            intake.pods.wait_phase(queue.resource, job_id, "Completed")
            done.add(job_id)
        assert intake.pods.most == 9 + 1
        queue.check_once(*users)


def test_jobs_that_a_quota_keeps_from_their_pods_take_room(
    cluster: Cluster, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with bench(cluster, server, tmp_path_factory.mktemp("operator"), max_concurrent_jobs=SLOTS) as intake:
        kubectl = intake.namespace.kubectl
        kubectl("create", "quota", "few", "--hard=pods=1")
        kubectl("wait", "--for=jsonpath={.status.hard.pods}=1", "quota/few")
        queue = intake.queue(lookAhead=1)
        for number in range(10):
            queue.add(f"job-{number}", "hold")
        for _ in range(2):
            job = wait_for(lambda: next(iter(_all_running(queue)), None), "the one pod that the quota admits runs")
            wait_for(lambda: _refused(queue) >= SLOTS, "another one for the slot, and the look-ahead, are refused")
            intake.pods.release(job)
            queue.wait_state(identity_of(job)["id"], "completed")
        assert intake.pods.most == SLOTS + 1
        kubectl("delete", "quota", "few")
        wait_for(lambda: len(_all_running(queue)) == SLOTS, "all slots are used")
