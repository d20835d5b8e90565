"""Jobs in real pods: the real SDK and CLI, with a scripted model."""

from __future__ import annotations

import pytest

from claudejobs.api.categories import POLICIES, Category
from tests.conftest import audit_writes
from tests.support.kube import Namespace, job, unique, wait_for
from tests.support.operator import OperatorProcess, wait_rows
from tests.support.processes import sleeper_of

pytestmark = pytest.mark.e2e


async def test_hello_runs_to_completion(namespace: Namespace, operator: OperatorProcess) -> None:
    name = unique("hello")
    spec = {"taskId": "task-7", "userId": "user-9", "metadata": {"ticket": {"id": 7}}, "arguments": {"lang": "en"}}
    namespace.apply(job(name, **spec))
    status = namespace.wait_phase(name, "Completed", "Failed")
    assert status["phase"] == "Completed", status
    assert "hello.txt" in status["result"]["text"]
    assert status["progress"] == 100
    assert status["costUSD"] == status["result"]["costUSD"] > 0
    assert status["attempts"][0]["outcome"] == "completed"
    assert namespace.condition(name, "Finished")["status"] == "True"
    assert namespace.condition(name, "Succeeded")["status"] == "True"

    (row,) = await wait_rows(operator, name, "completed")
    expected = {"task_id": "task-7", "user_id": "user-9", "progress": 100, "metadata": {"ticket": {"id": 7}}}
    assert expected.items() <= row.items()
    assert row["pod_name"] == f"{name}-1"
    assert row["session_id"] == status["sessionId"]
    assert row["cost_usd"] == pytest.approx(status["costUSD"])
    assert any('"type":"result"' in line for line in row["logs"])

    (pod,) = namespace.pods(name)
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert "restricted" not in pod["metadata"].get("annotations", {})


def test_a_job_costs_at_most_four_api_writes(namespace: Namespace, operator: OperatorProcess) -> None:
    name = unique("writes")
    namespace.apply(job(name, "script: steps 5"))
    namespace.wait_phase(name, "Completed")
    writes = wait_for(lambda: audit_writes(namespace.cluster, name), "the audit log has the writes")
    print(f"API writes of one job: {writes}")
    assert 2 <= len(writes) <= 4
    assert all(code < 300 for _, _, code in writes)
    assert [w for w in writes if w[0] == "create"] == [("create", "pods", 201)]


def test_a_long_answer_is_whole(namespace: Namespace, operator: OperatorProcess) -> None:
    """It does not fit the termination message; the log has it."""
    name = unique("long")
    namespace.apply(job(name, "script: text 20000"))
    status = namespace.wait_phase(name, "Completed")
    assert len(status["result"]["text"]) == 20000
    assert status["result"]["truncated"] is False


def test_structured_output(namespace: Namespace, operator: OperatorProcess) -> None:
    name = unique("structured")
    schema = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
    claude = {"model": "claude-sonnet-4-5", "outputSchema": schema}
    namespace.apply(job(name, 'script: structured {"answer": 42}', claude=claude))
    assert namespace.wait_phase(name, "Completed")["result"]["structuredOutput"] == {"answer": 42}


async def test_a_missing_secret_is_named_and_waited_for(namespace: Namespace, operator: OperatorProcess) -> None:
    name, secret = unique("secret"), unique("late")
    namespace.apply(job(name, credentialsSecretRef={"name": secret}))
    condition = wait_for(lambda: namespace.condition(name, "Started"), "the Started condition")
    assert (condition["status"], condition["reason"]) == ("False", "CredentialsMissing")
    assert f"Secret {secret} does not exist in namespace {namespace.name}" in condition["message"]
    namespace.kubectl("create", "secret", "generic", secret, "--from-literal=ANTHROPIC_API_KEY=x")
    assert namespace.wait_phase(name, "Completed", "Failed")["phase"] == "Completed"
    await wait_rows(operator, name, "completed")


async def test_a_pod_deleted_by_hand_is_replaced_and_costs_no_attempt(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    name = unique("deleted")
    namespace.apply(job(name, "script: slow 3", retry={"maxAttempts": 1}))
    namespace.wait_phase(name, "Running")
    namespace.kubectl("delete", "pod", f"{name}-1", "--wait=false")
    status = namespace.wait_phase(name, "Completed", "Failed")
    assert status["phase"] == "Completed", status
    assert [a["outcome"] for a in status["attempts"]] == ["failed", "completed"]
    assert status["attempts"][0]["category"] == "pod_lost"
    await wait_rows(operator, name, "failed", "completed")


async def test_a_pod_deleted_by_force_is_replaced(namespace: Namespace, operator: OperatorProcess) -> None:
    name = unique("forced")
    namespace.apply(job(name, "script: slow 3"))
    namespace.wait_phase(name, "Running")
    namespace.kubectl("delete", "pod", f"{name}-1", "--force", "--grace-period=0")
    status = namespace.wait_phase(name, "Completed", "Failed")
    assert [a["category"] for a in status["attempts"] if "category" in a] == ["pod_lost"]
    assert status["attempt"] == 2


async def test_cancel_stops_a_running_agent(namespace: Namespace, operator: OperatorProcess) -> None:
    name = unique("cancel")
    namespace.apply(job(name, "script: slow 120"))
    namespace.wait_phase(name, "Running")
    namespace.patch(name, cancel=True)
    status = namespace.wait_phase(name, "Cancelled", "Failed", timeout=120)
    assert status["phase"] == "Cancelled"
    assert namespace.condition(name, "Finished")["reason"] == "Cancelled"
    wait_for(lambda: not namespace.pods(name), "the pod is gone")
    (row,) = await wait_rows(operator, name, "cancelled")
    assert row["end_time"]


async def test_cancel_ends_an_agent_that_hears_neither_interrupt_nor_sigterm(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    """A stopped process: only SIGKILL reaches it. The runner still reports, before the kubelet kills it."""
    name = unique("stopped")
    limits = {"terminationGracePeriodSeconds": 12, "interruptSeconds": 2}
    namespace.apply(job(name, "script: tool echo last; kill -STOP $PPID; sleep 300", **limits))
    namespace.wait_phase(name, "Running")
    (pod,) = namespace.pods(name)
    wait_for(lambda: sleeper_of(pod), "the agent has stopped itself")
    namespace.patch(name, cancel=True)
    status = namespace.wait_phase(name, "Cancelled", "Failed", timeout=120)
    assert status["phase"] == "Cancelled"
    assert status["attempts"][0]["exitCode"] == POLICIES[Category.CANCELLED].exit_code, "the runner was killed, too"
    (row,) = await wait_rows(operator, name, "cancelled")
    told = "\n".join(row["logs"])
    assert "it gets SIGTERM" in told
    assert "live on after SIGTERM; they are killed" in told
    assert '"type":"result"' in told


async def test_cancel_of_a_job_that_never_ran(namespace: Namespace, operator: OperatorProcess) -> None:
    name = unique("early")
    namespace.apply(job(name, suspend=True))
    namespace.wait_phase(name, "Suspended")
    namespace.patch(name, cancel=True)
    namespace.wait_phase(name, "Cancelled")
    assert namespace.pods(name) == []
    await wait_rows(operator, name, "cancelled")


async def test_a_deleted_job_takes_its_pod_along_and_its_row_says_cancelled(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    name = unique("gone")
    namespace.apply(job(name, "script: slow 120", taskId="gone"))
    namespace.wait_phase(name, "Running")
    namespace.kubectl("delete", "ccj", name)
    wait_for(lambda: not namespace.pods(name), "the pod is gone")
    (row,) = await wait_rows(operator, name, "cancelled")
    assert row["task_id"] == "gone"


async def test_suspend_stops_and_resume_starts_again(namespace: Namespace, operator: OperatorProcess) -> None:
    name = unique("suspend")
    namespace.apply(job(name, "script: slow 3", retry={"maxAttempts": 1}))
    namespace.wait_phase(name, "Running")
    namespace.patch(name, suspend=True)
    namespace.wait_phase(name, "Suspended")
    wait_for(lambda: not namespace.pods(name), "the pod is gone")
    namespace.patch(name, suspend=False)
    status = namespace.wait_phase(name, "Completed", "Failed")
    assert [a["outcome"] for a in status["attempts"]] == ["suspended", "completed"]


async def test_the_timeout_ends_the_attempt(namespace: Namespace, operator: OperatorProcess) -> None:
    name = unique("timeout")
    namespace.apply(job(name, "script: slow 120", timeoutSeconds=3))
    status = namespace.wait_phase(name, "Failed")
    assert status["reason"] == "timeout"
    assert status["attempt"] == 1


async def test_a_retriable_ending_is_tried_again_up_to_its_bound(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    name = unique("retry")
    claude = {"model": "claude-sonnet-4-5"}
    env = [{"name": "API_TIMEOUT_MS", "value": "2000"}]
    retry = {"maxAttempts": 2, "backoff": {"delaySeconds": 1}}
    namespace.apply(job(name, "script: silent", claude=claude, env=env, retry=retry, stallTimeoutSeconds=5))
    namespace.wait_phase(name, "Backoff")
    assert "nextAttemptTime" in namespace.status(name)
    status = namespace.wait_phase(name, "Failed", timeout=90)
    assert [a["category"] for a in status["attempts"]] == ["stalled", "stalled"]
    assert "attempt 2 of 2" in status["message"]
    await wait_rows(operator, name, "failed", "failed")


def test_ttl_removes_a_finished_job(namespace: Namespace, operator: OperatorProcess) -> None:
    name = unique("ttl")
    namespace.apply(job(name, ttlSecondsAfterFinished=1))
    wait_for(lambda: namespace.get("ccj", name) is None, "the job is removed", 60)
    wait_for(lambda: not namespace.pods(name), "its pod is removed")


async def test_a_claim_keeps_the_session_for_the_next_attempt(namespace: Namespace, operator: OperatorProcess) -> None:
    """A claim that does not exist is named; what a lasting workspace does is shown by the runner's own tests."""
    name = unique("claim")
    namespace.apply(job(name, workspace={"persistentVolumeClaim": {"claimName": "nowhere"}}))
    condition = wait_for(lambda: namespace.condition(name, "Started"), "the Started condition")
    assert condition["reason"] == "WorkspaceMissing"
    assert "PersistentVolumeClaim nowhere does not exist" in condition["message"]
    namespace.patch(name, cancel=True)
    namespace.wait_phase(name, "Cancelled")


def test_ignored_fields_are_named(namespace: Namespace, operator: OperatorProcess) -> None:
    name = unique("ignored")
    namespace.apply(job(name, podTemplate={"annotations": {"k8s.v1.cni.cncf.io/networks": "other", "note": "kept"}}))
    namespace.wait_phase(name, "Completed")
    assert "annotations[k8s.v1.cni.cncf.io/networks]" in namespace.condition(name, "FieldsIgnored")["message"]
    annotations = namespace.pods(name)[0]["metadata"]["annotations"]
    assert annotations["note"] == "kept"
    assert "k8s.v1.cni.cncf.io/networks" not in annotations


def test_a_null_in_the_structured_output_is_kept(namespace: Namespace, operator: OperatorProcess) -> None:
    name = unique("null")
    schema = {"type": "object", "properties": {"answer": {"type": ["integer", "null"]}}, "required": ["answer"]}
    claude = {"model": "claude-sonnet-4-5", "outputSchema": schema}
    namespace.apply(job(name, 'script: structured {"answer": null}', claude=claude))
    assert namespace.wait_phase(name, "Completed")["result"]["structuredOutput"] == {"answer": None}
