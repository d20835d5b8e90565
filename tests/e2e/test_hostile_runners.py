"""Runners that break the protocol, images that cannot be had, secrets that never come: every job still ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Serve
from tests.support.kube import Namespace, job, unique, wait_for
from tests.support.operator import OperatorProcess, wait_rows

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def impatient(module_namespace: Namespace, misbehaving_image: str, serve: Serve) -> Iterator[OperatorProcess]:
    """An operator that runs the misbehaving image and waits 8 s for a pod to start."""
    with serve(module_namespace, runner_image=misbehaving_image, start_timeout=8, retry_attempts=1) as process:
        yield process


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("garbage", "exited with code 7 without a result that can be read"),
        ("garbage result", "exited with code 0 without a result that can be read"),
        ("long line", "exited with code 9 without a result that can be read"),
        ("nothing", "exited with code 0 without a result that can be read"),
    ],
)
async def test_a_runner_without_a_readable_result_has_crashed(
    module_namespace: Namespace, impatient: OperatorProcess, prompt: str, said: str
) -> None:
    name = unique("crash")
    module_namespace.apply(job(name, prompt))
    status = module_namespace.wait_phase(name, "Failed", "Completed")
    assert (status["phase"], status["reason"]) == ("Failed", "runner_crash")
    assert said in status["message"]
    (row,) = await wait_rows(impatient, name, "failed")
    assert row["error_category"] == "runner_crash"
    assert all(len(line) < 100_000 for line in row["logs"])


async def test_more_memory_than_the_limit_is_called_oom(
    module_namespace: Namespace, impatient: OperatorProcess
) -> None:
    name = unique("oom")
    module_namespace.apply(job(name, "memory", podTemplate={"resources": {"limits": {"memory": "128Mi"}}}))
    status = module_namespace.wait_phase(name, "Failed")
    assert status["reason"] == "oom"
    assert "spec.podTemplate.resources.limits.memory" in status["message"]


async def test_a_runner_that_hears_no_signal_is_killed_on_cancel(
    module_namespace: Namespace, impatient: OperatorProcess
) -> None:
    name = unique("deaf")
    module_namespace.apply(job(name, "deaf", terminationGracePeriodSeconds=1))
    module_namespace.wait_phase(name, "Running")
    module_namespace.patch(name, cancel=True)
    assert module_namespace.wait_phase(name, "Cancelled", "Failed")["phase"] == "Cancelled"
    await wait_rows(impatient, name, "cancelled")


async def test_a_secret_that_lacks_the_key_fails_the_job(
    module_namespace: Namespace, impatient: OperatorProcess
) -> None:
    name = unique("nokey")
    module_namespace.kubectl("create", "secret", "generic", name, "--from-literal=PASSWORD=x")
    module_namespace.apply(job(name, credentialsSecretRef={"name": name}))
    status = module_namespace.wait_phase(name, "Failed")
    assert status["reason"] == "credentials"
    assert "has no key ANTHROPIC_API_KEY" in status["message"]
    (row,) = await wait_rows(impatient, name, "failed")
    assert row["error_category"] == "credentials"
    wait_for(lambda: not module_namespace.pods(name), "the pod is removed")


async def test_a_pod_that_no_node_takes_fails_with_the_schedulers_words(
    module_namespace: Namespace, impatient: OperatorProcess
) -> None:
    name = unique("nonode")
    module_namespace.apply(job(name, podTemplate={"nodeSelector": {"disk": "quantum"}}))
    status = module_namespace.wait_phase(name, "Failed")
    assert status["reason"] == "unschedulable"
    assert "node affinity/selector" in status["message"]
    await wait_rows(impatient, name, "failed")
