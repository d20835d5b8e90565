"""A ClaudeCodeQueue from its making to its end, as kubectl shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from localcluster import Cluster
from tests.conftest import make_namespace
from tests.integration.queues import Bench, bench
from tests.support.kube import Namespace, unique, wait_for
from tests.support.operator import OperatorProcess
from tests.support.pods import identity_of
from tests.support.redis import RedisServer

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def other(cluster: Cluster) -> Iterator[Namespace]:
    """Another namespace that the operator watches."""
    yield from make_namespace(cluster)


@pytest.fixture(scope="module")
def intake(
    cluster: Cluster, server: RedisServer, other: Namespace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    with bench(cluster, server, tmp_path_factory.mktemp("operator"), more_namespaces=[other.name]) as made:
        yield made


def test_a_suspended_queue_fetches_nothing(intake: Bench) -> None:
    queue = intake.queue()
    queue.add("runs", "hold")
    job = queue.running("runs")
    queue.apply(suspend=True)
    queue.wait_condition("Accepted", "True", "Suspended")
    queue.add("waits")
    wait_for(lambda: queue.status["counts"]["waiting"] == 1, "the operator has seen the job")
    intake.pods.release(job)
    queue.wait_state("runs", "completed")
    assert queue.state("waits") == "waiting"
    queue.apply(suspend=False)
    queue.wait_condition("Accepted", "True", "Accepted")
    queue.wait_state("waits", "completed")
    queue.check_once("runs", "waits")
    queue.delete()


def test_a_deleted_queue_lets_what_it_holds_end(intake: Bench) -> None:
    queue = intake.queue()
    queue.add("runs", "hold")
    job = queue.running("runs")
    drained = intake.readiness()["redis"]["queues"]
    queue.delete()
    queue.add("waits")
    intake.pods.release(job)
    queue.wait_state("runs", "completed")
    wait_for(lambda: intake.readiness()["redis"]["queues"] == drained - 1, "the queue is drained no more")
    assert queue.state("waits") == "waiting"
    queue.check_once("runs")


def test_another_namespace_must_agree(intake: Bench, other: Namespace) -> None:
    queue = intake.queue(targetNamespace=other.name)
    queue.add("a")
    queue.wait_condition("Accepted", "False", "NamespaceForbids")
    (condition,) = (one for one in queue.status["conditions"] if one["type"] == "Accepted")
    assert condition["message"].endswith(f"label it claudecode.dev/queues-from={intake.namespace.name}")
    assert queue.state("a") == "waiting"
    other.kubectl("label", "namespace", other.name, f"claudecode.dev/queues-from={intake.namespace.name}")
    queue.wait_condition("Accepted", "True", "Accepted")
    wait_for(lambda: queue.state("a") == "active", "it is fetched")
    found = other.run("get", "ccj", "-o", "jsonpath={.items[*].metadata.labels.claudecode\\.dev/queue}")
    assert found.stdout == queue.resource
    other.kubectl("label", "namespace", other.name, "claudecode.dev/queues-from-")
    queue.wait_condition("Accepted", "False", "NamespaceForbids")
    other.kubectl("delete", "ccj", "--all", "--wait=false")
    failed = queue.wait_state("a", "failed")  # what was fetched goes on to its end
    assert failed["failedReason"].startswith("cancelled")
    queue.delete()


def test_a_namespace_that_is_not_watched_gets_no_jobs(intake: Bench) -> None:
    queue = intake.queue(targetNamespace="default")
    queue.wait_condition("Accepted", "False", "NamespaceNotWatched")
    queue.delete()


def test_what_kubectl_shows(intake: Bench) -> None:
    queue = intake.queue(name=unique("shown"), lookAhead=0)
    second = intake.queue(queue.name, resource=unique("second"))
    queue.add("a", "hold")
    queue.running("a")
    queue.add("late", delay=600_000)
    wait_for(lambda: queue.status.get("held") == 1 and queue.status["counts"]["delayed"] == 1, "the status counts both")
    head, row = intake.namespace.kubectl("get", "ccq", queue.resource, "-o", "wide").splitlines()
    shown = dict(zip(head.split(), row.split(), strict=False))
    wanted = {"NAME": queue.resource, "QUEUE": queue.name, "ACCEPTED": "True", "CONNECTED": "true"}
    assert shown.items() >= (wanted | {"WAITING": "0", "DELAYED": "1", "HELD": "1", "DEAD": "0"}).items()
    second.wait_condition("Accepted", "False", "Conflict")
    _, row = intake.namespace.kubectl("get", "ccq", second.resource).splitlines()
    assert row.split()[:3] == [second.resource, second.name, "False"]
    described = intake.namespace.kubectl("describe", "ccq", second.resource)
    assert f"ClaudeCodeQueue {intake.namespace.name}/{queue.resource} drains bull:{queue.name} already" in described
    intake.pods.release(*queue.resources())
    queue.wait_state("a", "completed")
    for one in (second, queue):
        one.delete()


def test_operators_that_do_not_see_each_other_learn_that_they_share_a_queue(
    intake: Bench, cluster: Cluster, server: RedisServer, tmp_path: Path
) -> None:
    queue = intake.queue(lookAhead=0)
    queue.wait_condition("Exclusive", "True", "Alone")
    with bench(cluster, server, tmp_path) as elsewhere:
        rival = elsewhere.queue(queue.name)
        for one, other in ((queue, rival), (rival, queue)):
            one.wait_condition("Exclusive", "False", "DrainedElsewhere")
            assert other.uid in str(one.status["conditions"])
        ids = [queue.add(f"job-{number}") for number in range(6)]
        for job_id in ids:
            queue.wait_state(job_id, "completed")
        ran = [identity_of(job)["id"] for job in (*queue.resources(), *rival.resources())]
        assert sorted(ran) == ids
        rival.delete()
        queue.wait_condition("Exclusive", "True", "Alone")


def test_an_operator_without_redis_says_so(own_namespace: Namespace, tmp_path: Path) -> None:
    name = unique("tasks")
    queue = {
        "apiVersion": "claudecode.dev/v1alpha1",
        "kind": "ClaudeCodeQueue",
        "metadata": {"name": name},
        "spec": {"queueName": name},
    }
    own_namespace.apply(queue)
    operator = OperatorProcess(own_namespace, tmp_path / "operator.log", f"sqlite:///{tmp_path}/state.db")
    operator.start()
    try:

        def message() -> str:
            conditions = (own_namespace.get("ccq", name) or {}).get("status", {}).get("conditions", [])
            return next((one["message"] for one in conditions if one["reason"] == "RedisNotConfigured"), "")

        assert "set REDIS_URL" in wait_for(message, "the status says so")
    finally:
        assert operator.stop() == 0
