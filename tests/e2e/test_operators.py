"""The operator itself: killed, doubled, limited, misconfigured, cut off from its database."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.conftest import audit_writes
from tests.integration.postgres import PostgresServer
from tests.support.kube import Namespace, job, unique, wait_for
from tests.support.operator import REPOSITORY, OperatorProcess, wait_rows

pytestmark = pytest.mark.e2e

Make = Callable[..., OperatorProcess]


async def test_an_image_that_cannot_be_pulled_is_named(own_namespace: Namespace, own_operator: Make) -> None:
    operator = own_operator(runner_image="localhost:1/nowhere:1", start_timeout=10).start()
    own_namespace.apply(job("pull"))
    condition = wait_for(lambda: own_namespace.condition("pull", "Started"), "the Started condition")
    assert (condition["status"], condition["reason"]) == ("False", "ImagePull")
    assert "localhost:1/nowhere:1" in condition["message"]
    status = own_namespace.wait_phase("pull", "Failed")
    assert status["reason"] == "image"
    await wait_rows(operator, "pull", "failed")
    assert operator.stop() == 0


async def test_two_operators_at_once_make_one_pod_per_attempt(own_namespace: Namespace, own_operator: Make) -> None:
    operators = [own_operator().start(), own_operator().start()]
    names = [f"twin-{n}" for n in range(6)]
    own_namespace.apply(*[job(name, "script: tool true") for name in names])
    for name in names:
        status = own_namespace.wait_phase(name, "Completed", "Failed")
        assert (status["phase"], status["attempt"]) == ("Completed", 1), status
        writes = audit_writes(own_namespace.cluster, name, own_namespace.name)
        assert writes.count(("create", "pods", 201)) == 1
        await wait_rows(operators[0], name, "completed")
    assert [operator.stop() for operator in operators] == [0, 0]


async def test_a_killed_operators_jobs_go_on_and_end_right(own_namespace: Namespace, own_operator: Make) -> None:
    first = own_operator().start()
    own_namespace.apply(
        job("during", "script: slow 2"), job("cancelled", "script: slow 60"), job("removed", "script: slow 60")
    )
    for name in ("during", "cancelled", "removed"):
        own_namespace.wait_phase(name, "Running")
        await wait_rows(first, name, "running")
    first.kill()
    own_namespace.apply(job("meanwhile"))
    own_namespace.patch("cancelled", cancel=True)
    own_namespace.kubectl("delete", "ccj", "removed")
    wait_for(lambda: own_namespace.pods("during")[0]["status"]["phase"] == "Succeeded", "the agent finishes alone")
    second = own_operator().start()
    assert own_namespace.wait_phase("during", "Completed", "Failed")["attempt"] == 1
    assert own_namespace.wait_phase("meanwhile", "Completed", "Failed")["phase"] == "Completed"
    own_namespace.wait_phase("cancelled", "Cancelled")
    await wait_rows(second, "during", "completed")
    await wait_rows(second, "cancelled", "cancelled")
    (row,) = await wait_rows(second, "removed", "cancelled")
    assert row["error"] == "the job was deleted"
    assert second.stop() == 0


async def test_the_limit_holds_and_the_highest_priority_goes_first(
    own_namespace: Namespace, own_operator: Make
) -> None:
    operator = own_operator(max_concurrent_jobs=1).start()
    own_namespace.apply(job("first", "script: slow 2"))
    own_namespace.wait_phase("first", "Running")
    own_namespace.apply(job("low", "script: tool true"), job("high", "script: tool true", priority=5))
    assert "MAX_CONCURRENT_JOBS" in own_namespace.wait_phase("low", "Queued")["message"]
    own_namespace.wait_phase("high", "Queued")
    statuses = {name: own_namespace.wait_phase(name, "Completed") for name in ("first", "high", "low")}
    starts = {name: own_namespace.pods(name)[0]["metadata"]["creationTimestamp"] for name in statuses}
    assert statuses["first"]["completionTime"] <= starts["high"]
    assert statuses["high"]["completionTime"] <= starts["low"]
    assert operator.stop() == 0


async def test_a_database_that_is_away_delays_rows_and_nothing_else(
    own_namespace: Namespace, own_operator: Make, postgres_server: PostgresServer
) -> None:
    operator = own_operator()
    operator.database_url = postgres_server.url(postgres_server.create_database())
    operator.start()
    postgres_server.stop()
    try:
        own_namespace.apply(job("away"))
        assert own_namespace.wait_phase("away", "Completed", "Failed")["phase"] == "Completed"
        assert operator.ready()
    finally:
        postgres_server.start()
    await wait_rows(operator, "away", "completed")
    assert operator.stop() == 0


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MAX_CONCURRENT_JOBS", "many", "MAX_CONCURRENT_JOBS: 'many' is not valid"),
        ("JOB_TIMEOUT", "0", "JOB_TIMEOUT: '0' is not valid"),
        ("LOG_LEVEL", "chatty", "LOG_LEVEL"),
        ("DATABASE_URL", "mysql://u:secret@h/d", "DATABASE_URL: must start with postgresql:// or sqlite:///"),
        ("DATABASE_URL", "sqlite:////nowhere/at/all.db", "/nowhere/at"),
        ("KUBECONFIG", "/nowhere", "set KUBECONFIG"),
    ],
)
def test_a_wrong_setting_ends_the_start_with_one_clear_message(
    name: str, value: str, said: str, tmp_path: object
) -> None:
    environment = {
        "PYTHONPATH": str(REPOSITORY / "operator"),
        "DATABASE_URL": f"sqlite:///{tmp_path}/s.db",
        name: value,
    }
    command = [sys.executable, "-m", "claudejobs.cli.main", "operator"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


async def test_an_annotation_too_large_for_a_pod_ends_the_job_clearly(
    own_namespace: Namespace, own_operator: Make
) -> None:
    """100,000 characters pass the schema, but not as three bytes each."""
    operator = own_operator().start()
    name = unique("wide")
    own_namespace.kubectl("create", "-f", "-", stdin=json.dumps(job(name, "\u20ac" * 100_000)))
    status = own_namespace.wait_phase(name, "Failed")
    assert status["reason"] == "invalid_request"
    assert "spec.prompt" in status["message"]
    await wait_rows(operator, name, "failed")
    assert operator.stop() == 0
