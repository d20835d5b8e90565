"""What is counted, and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from claudejobs.api.categories import Category
from claudejobs.api.status import AttemptStatus, JobStatus, Phase
from claudejobs.kube.client import jobs_path, leases_path, pods_path, queues_path, resource_of
from claudejobs.kube.workqueue import WorkQueue
from claudejobs.metrics import Metrics

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def attempt(number: int, outcome: str | None = None, category: Category | None = None) -> AttemptStatus:
    end = NOW if outcome else None
    given = {"attempt": number, "podName": f"j-{number}", "startTime": NOW, "endTime": end}
    return AttemptStatus.model_validate(given | {"outcome": outcome, "category": category})


class Counted:
    """Metrics, and what was added to one of them."""

    def __init__(self) -> None:
        self.metrics = Metrics()

    def write(self, old: JobStatus, new: JobStatus) -> None:
        self.metrics.status_written("team", NOW - timedelta(seconds=40), old, new, NOW)

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def test_an_attempts_end_and_its_cost_are_counted_with_the_write_that_tells_of_them() -> None:
    counted = Counted()
    running = JobStatus(phase=Phase.RUNNING, attempt=1, attempts=[attempt(1)])
    first = attempt(1, "failed", Category.NETWORK)
    backoff = JobStatus(phase=Phase.BACKOFF, attempt=1, attempts=[first], cost_usd=0.5)
    second = JobStatus(phase=Phase.RUNNING, attempt=2, attempts=[first, attempt(2)], cost_usd=0.5)
    done = JobStatus(phase=Phase.COMPLETED, attempt=2, attempts=[first, attempt(2, "completed")], cost_usd=0.75)
    for old, new in ((JobStatus(), running), (running, backoff), (backoff, second), (second, done), (done, done)):
        counted.write(old, new)
    ended = "claudejobs_attempts_ended_total"
    assert counted.value(ended, namespace="team", outcome="failed", category="network") == 1
    assert counted.value(ended, namespace="team", outcome="completed", category="") == 1
    assert counted.value("claudejobs_jobs_finished_total", namespace="team", phase="Completed") == 1
    assert counted.value("claudejobs_cost_usd_total", namespace="team") == 0.75


def test_an_attempt_that_ended_while_no_operator_ran_is_counted() -> None:
    counted = Counted()
    new = JobStatus(phase=Phase.COMPLETED, attempt=1, attempts=[attempt(1, "completed")])
    counted.write(JobStatus(), new)
    assert counted.value("claudejobs_attempts_ended_total", namespace="team", outcome="completed", category="") == 1


def test_the_time_to_start_is_that_of_the_first_pod_only() -> None:
    counted = Counted()
    starting = JobStatus(phase=Phase.STARTING, attempt=1, attempts=[attempt(1)])
    running = starting.model_copy(update={"phase": Phase.RUNNING})
    counted.write(starting, running)
    counted.write(running, running.model_copy(update={"progress": 50}))
    counted.write(starting.model_copy(update={"attempt": 2}), running.model_copy(update={"attempt": 2}))
    assert counted.value("claudejobs_job_start_seconds_count") == 1
    assert counted.value("claudejobs_job_start_seconds_sum") == 40


def test_a_look_that_fails_is_counted_as_what_it_failed_of() -> None:
    counted = Counted()
    with counted.metrics.reconcile():
        pass
    with counted.metrics.reconcile() as look:
        look.result = "stale"
    for result in ("ok", "stale"):
        assert counted.value("claudejobs_reconcile_seconds_count", result=result) == 1


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        (jobs_path("ns", "job", "status"), "claudecodejobs/status"),
        (queues_path("ns", "queue", "status"), "claudecodequeues/status"),
        (pods_path("ns"), "pods"),
        (pods_path("ns", "job-1"), "pods"),
        (pods_path(None), "pods"),
        (f"{leases_path('ns')}/lease", "leases"),
        ("/api/v1/namespaces/ns/events", "events"),
        ("/api/v1/namespaces/ns", "namespaces"),
    ],
)
def test_a_resource_is_named_without_the_objects_name(path: str, resource: str) -> None:
    assert resource_of(path) == resource


async def test_a_work_queue_tells_how_much_there_is_to_do() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for key in ("a", "b", "c"):
        queue.add(key)
    failing = await queue.get()
    queue.retry(failing)
    queue.done(failing)
    await queue.get()
    assert queue.sizes() == {"ready": 1, "active": 1, "backing_off": 1}
    queue.close()
