"""The claim that is made for a job: its name, whose it is, and what keeps it from being used."""

from __future__ import annotations

import pytest

from claudejobs.reconcile.claim import build_claim, claim_hindrance, own_claim
from claudejobs.reconcile.decide import decide
from claudejobs.reconcile.pod import build_pod

from .model.objects import (
    JOB_UID,
    Json,
    failed_attempt,
    job_object,
    job_view,
    make_settings,
    parsed,
    pod_object,
    seen,
    status_with,
)

SETTINGS = make_settings()
SPEC: Json = {"workspace": {"volumeClaimTemplate": {"size": "3Gi"}}}
NAME = f"job-workspace-{JOB_UID[:8]}"


def claim(**template: object) -> Json:
    return build_claim(job_view({"workspace": {"volumeClaimTemplate": {"size": "3Gi", **template}}}))


def test_the_claim_asks_for_what_the_template_says() -> None:
    assert claim()["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "3Gi"}}}
    assert claim(storageClassName="fast", accessModes=["ReadWriteMany"])["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "3Gi"}},
        "storageClassName": "fast",
    }


def test_a_claim_that_goes_with_the_job_is_owned_by_it() -> None:
    (owner,) = claim()["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("ClaudeCodeJob", "job", JOB_UID)


def test_a_retained_claim_has_no_owner_and_tells_its_job() -> None:
    meta = claim(retentionPolicy="Retain")["metadata"]
    assert "ownerReferences" not in meta
    assert (meta["name"], meta["namespace"]) == (NAME, "team")
    assert meta["labels"]["claudecode.dev/job"] == "job"
    assert meta["labels"]["claudecode.dev/job-uid"] == JOB_UID


def test_a_job_of_the_same_name_has_another_claim() -> None:
    first, second = job_view(SPEC), job_view(SPEC, uid="0a0a6f7e-5d0c-4a35-8f0a-6a4f1f9f0001")
    assert own_claim(first.spec, first.name, first.uid) != own_claim(second.spec, second.name, second.uid)


def test_the_longest_name_of_a_job_has_a_claim() -> None:
    job = job_view(SPEC, name="x" * 57)
    assert len(own_claim(job.spec, job.name, job.uid) or "") <= 253


def test_each_attempt_is_decided_with_the_claim_that_its_pod_mounts() -> None:
    first = decide(seen(job_view(SPEC)), SETTINGS)
    status = status_with(failed_attempt(1, "network"), phase="Backoff")
    second = decide(seen(job_view(SPEC, status), parsed(pod_object(1, {"phase": "Failed"}))), SETTINGS)
    for decision, number in ((first, 1), (second, 2)):
        assert (decision.create, decision.claim) == (number, NAME)
        assert decision.status
        assert decision.status.workspace_claim == NAME
        (volume,) = [
            volume["persistentVolumeClaim"]
            for volume in build_pod(job_object(SPEC), number, "session", 0.0, SETTINGS)["spec"]["volumes"]
            if volume["name"] == "workspace"
        ]
        assert volume == {"claimName": NAME}


@pytest.mark.parametrize(
    "workspace",
    [{}, {"emptyDir": {}}, {"persistentVolumeClaim": {"claimName": "repo"}}, {"git": {"url": "http://a/b"}}],
)
def test_no_other_workspace_makes_a_claim(workspace: Json) -> None:
    decision = decide(seen(job_view({"workspace": workspace})), SETTINGS)
    assert (decision.create, decision.claim) == (1, None)
    assert decision.status
    assert decision.status.workspace_claim is None


def test_the_jobs_own_claim_can_be_used() -> None:
    assert claim_hindrance(claim(), job_view(SPEC)) is None


def test_a_claim_of_somebody_else_and_one_that_goes_are_waited_for() -> None:
    job, made = job_view(SPEC), claim()
    taken = {"metadata": made["metadata"] | {"labels": {}}}
    going = {"metadata": made["metadata"] | {"deletionTimestamp": "2026-03-01T12:00:00Z"}}
    reasons = [claim_hindrance(taken, job), claim_hindrance(going, job)]
    assert [r and r[0] for r in reasons] == ["ClaimNameTaken", "ClaimDeleting"]
    assert all(r and NAME in r[1] for r in reasons)
