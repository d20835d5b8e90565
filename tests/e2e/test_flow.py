"""Jobs that depend on one another, that run out of time, and that are run again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.kube import Namespace, job, unique, wait_for
from tests.support.operator import REPOSITORY, OperatorProcess, wait_rows

pytestmark = pytest.mark.e2e


def test_a_job_waits_for_those_that_it_depends_on(namespace: Namespace, operator: OperatorProcess) -> None:
    first, second = unique("first"), unique("second")
    namespace.apply(job(second, "script: tool true", dependsOn=[first]))
    assert first in namespace.wait_phase(second, "Pending")["message"]
    namespace.apply(job(first, "script: tool true"))
    done = namespace.wait_phase(first, "Completed")
    later = namespace.wait_phase(second, "Completed")
    assert later["startTime"] >= done["completionTime"]


async def test_a_failed_dependency_and_a_circle_are_clear_endings(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    stem = unique("dep")
    namespace.apply(
        job(f"{stem}-bad", "script: 401"),
        job(f"{stem}-after", dependsOn=[f"{stem}-bad"]),
        job(f"{stem}-a", dependsOn=[f"{stem}-b"]),
        job(f"{stem}-b", dependsOn=[f"{stem}-a"]),
        job(f"{stem}-self", dependsOn=[f"{stem}-self"]),
    )
    status = namespace.wait_phase(f"{stem}-after", "Failed")
    assert status["reason"] == "dependency"
    assert f"{stem}-bad of spec.dependsOn has ended as Failed" in status["message"]
    for name in ("a", "b", "self"):
        status = namespace.wait_phase(f"{stem}-{name}", "Failed")
        assert status["attempt"] == 0
        # The first of a circle to be looked at fails for the circle, the next perhaps because the first has failed.
        assert "goes round in a circle" in status["message"] or "has ended as Failed" in status["message"]
    assert "goes round in a circle" in status["message"]
    await wait_rows(operator, f"{stem}-after", "failed")


def test_the_deadline_of_the_whole_job_includes_backoff(namespace: Namespace, operator: OperatorProcess) -> None:
    name = unique("deadline")
    retry = {"maxAttempts": 20, "backoff": {"type": "fixed", "delaySeconds": 300}}
    namespace.apply(job(name, "script: slow 300", activeDeadlineSeconds=4, retry=retry))
    status = namespace.wait_phase(name, "Failed", timeout=120)
    assert status["reason"] == "timeout"
    assert "spec.activeDeadlineSeconds" in status["message"]
    wait_for(lambda: not namespace.pods(name), "the pod is gone")


async def test_a_failed_job_can_be_run_again(namespace: Namespace, operator: OperatorProcess) -> None:
    name = unique("rerun")
    namespace.apply(job(name, "script: tool true", timeoutSeconds=300, credentialsSecretRef={"name": name}))
    namespace.kubectl("create", "secret", "generic", name, "--from-literal=ANTHROPIC_API_KEY=")
    status = namespace.wait_phase(name, "Failed")
    assert status["reason"] == "auth"
    assert status["logTail"]
    selected = namespace.kubectl("get", "ccj", "--field-selector", "status.phase=Failed,status.reason=auth")
    assert name in selected

    namespace.kubectl("delete", "secret", name)
    namespace.kubectl("create", "secret", "generic", name, "--from-literal=ANTHROPIC_API_KEY=good")
    command = [sys.executable, "-m", "claudejobs.cli.main", "retry", name, "-n", namespace.name]
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY / "operator"),
        "KUBECONFIG": str(namespace.cluster.kubeconfig),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    status = namespace.wait_phase(name, "Completed")
    assert [a["outcome"] for a in status["attempts"]] == ["failed", "completed"]
    assert status["rerun"] == status["attemptsForgiven"] == 1
    assert "logTail" not in status or status["logTail"] == []
    await wait_rows(operator, name, "failed", "completed")

    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "is Completed; only a job that has failed can be run again" in again.stderr
