"""Claims that are made for jobs, in a real cluster: shared by a job's attempts, and deleted with it or kept."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.kube import Namespace, job, unique, wait_for
from tests.support.operator import OperatorProcess, wait_rows

pytestmark = pytest.mark.e2e


def own_claim(**template: object) -> dict[str, Any]:
    return {"volumeClaimTemplate": {"size": "10Mi", **template}}


def claims_of(namespace: Namespace, name: str) -> list[dict[str, Any]]:
    listed = namespace.kubectl("get", "pvc", "-l", f"claudecode.dev/job={name}", "-o", "json")
    items: list[dict[str, Any]] = json.loads(listed)["items"]
    return items


async def test_attempts_share_a_claim_that_goes_with_the_job(namespace: Namespace, operator: OperatorProcess) -> None:
    """Killed in the middle of a tool: the next attempt resumes the session."""
    name = unique("own")
    namespace.apply(job(name, "script: slow 100", workspace=own_claim()))
    namespace.wait_phase(name, "Running")
    wait_for(lambda: '"type":"tool_use"' in namespace.run("logs", f"{name}-1").stdout, "the tool runs")
    (claim,) = claims_of(namespace, name)
    namespace.kubectl("delete", "pod", f"{name}-1", "--force", "--grace-period=0")
    status = namespace.wait_phase(name, "Completed", "Failed")
    assert status["phase"] == "Completed", status
    assert [a["outcome"] for a in status["attempts"]] == ["failed", "completed"]
    assert status["attempts"][1]["resumed"] is True
    assert status["result"]["text"] == "Done after 100 s."
    assert status["workspaceClaim"] == claim["metadata"]["name"]
    assert [c["metadata"]["uid"] for c in claims_of(namespace, name)] == [claim["metadata"]["uid"]]
    await wait_rows(operator, name, "failed", "completed")
    namespace.kubectl("delete", "ccj", name)
    wait_for(lambda: not claims_of(namespace, name), "the claim is deleted with the job")


async def test_a_retained_claim_stays_and_is_nobodys_unasked(namespace: Namespace, operator: OperatorProcess) -> None:
    name, heir = unique("kept"), unique("heir")
    workspace = own_claim(retentionPolicy="Retain")
    namespace.apply(job(name, "script: tool echo the heron > note.txt", workspace=workspace))
    first = namespace.wait_phase(name, "Completed", "Failed")
    assert first["phase"] == "Completed", first
    namespace.kubectl("delete", "ccj", name)
    wait_for(lambda: not namespace.pods(name), "the pod is gone")

    namespace.apply(job(name, "script: tool cat note.txt", workspace=workspace))
    second = namespace.wait_phase(name, "Completed", "Failed")
    assert second["workspaceClaim"] != first["workspaceClaim"]
    assert "the heron" not in namespace.kubectl("logs", f"{name}-1")
    assert {c["metadata"]["name"] for c in claims_of(namespace, name)} == {
        first["workspaceClaim"],
        second["workspaceClaim"],
    }

    existing = {"persistentVolumeClaim": {"claimName": first["workspaceClaim"]}}
    namespace.apply(job(heir, "script: tool cat note.txt", workspace=existing))
    status = namespace.wait_phase(heir, "Completed", "Failed")
    assert status["phase"] == "Completed", status
    assert "workspaceClaim" not in status
    assert "the heron" in namespace.kubectl("logs", f"{heir}-1")
    namespace.kubectl("delete", "ccj", name, heir)
    namespace.kubectl("delete", "pvc", "-l", f"claudecode.dev/job={name}", "--wait=false")


def test_what_keeps_a_claim_from_being_made_is_told(namespace: Namespace, operator: OperatorProcess) -> None:
    """A quota on a StorageClass; once it is gone, the class itself, which does not exist; then the job is cancelled."""
    name, storage_class = unique("full"), unique("class")
    hard = {f"{storage_class}.storageclass.storage.k8s.io/persistentvolumeclaims": "0"}
    namespace.apply(
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": {"hard": hard}},
    )
    wait_for(lambda: (namespace.get("quota", name) or {}).get("status", {}).get("hard"), "the quota is in force")
    namespace.apply(job(name, workspace=own_claim(storageClassName=storage_class)))
    wait_for(lambda: namespace.status(name).get("reason") == "QuotaExceeded", "the quota is named")
    status = namespace.status(name)
    assert status["phase"] == "Pending"
    assert "refuses the claim" in status["message"]
    assert (namespace.pods(name), claims_of(namespace, name)) == ([], [])

    namespace.kubectl("delete", "quota", name)
    condition = wait_for(lambda: namespace.condition(name, "Started"), "the Started condition")
    assert (condition["status"], condition["reason"]) == ("False", "WorkspaceUnbound")
    assert "kubectl describe pvc" in condition["message"]
    namespace.patch(name, cancel=True)
    namespace.wait_phase(name, "Cancelled", "Failed")


def test_a_size_that_cannot_be_fails_the_job(namespace: Namespace, operator: OperatorProcess) -> None:
    name = unique("zero")
    namespace.apply(job(name, workspace=own_claim(size="0")))
    status = namespace.wait_phase(name, "Failed", "Completed")
    assert (status["phase"], status["reason"], status["attempt"]) == ("Failed", "invalid_request", 0)
    assert "spec.workspace.volumeClaimTemplate: the API server rejects the claim" in status["message"]
    assert "spec.resources[storage]" in status["message"]
    assert (namespace.pods(name), claims_of(namespace, name)) == ([], [])


def test_a_claim_in_the_way_is_named_and_waited_for(namespace: Namespace, operator: OperatorProcess) -> None:
    name = unique("taken")
    namespace.apply(job(name, workspace=own_claim(), suspend=True))
    taken = f"{name}-workspace-{namespace.uid_of(name)[:8]}"
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    namespace.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": taken}, "spec": spec})
    namespace.patch(name, suspend=False)
    wait_for(lambda: namespace.status(name).get("reason") == "ClaimNameTaken", "the claim in the way is named")
    assert taken in namespace.status(name)["message"]
    assert namespace.pods(name) == []
    namespace.kubectl("delete", "pvc", taken)
    status = namespace.wait_phase(name, "Completed", "Failed")
    assert (status["phase"], status["workspaceClaim"]) == ("Completed", taken)
