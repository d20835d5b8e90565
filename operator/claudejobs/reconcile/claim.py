"""The PersistentVolumeClaim of a job's workspace. Pure."""

from __future__ import annotations

from typing import Any

from claudejobs.api.base import API_VERSION, KIND
from claudejobs.api.job import JobSpec

from .views import JOB_LABEL, JOB_UID_LABEL, MANAGED_BY_LABEL, MANAGER, JobView


def own_claim(spec: JobSpec, job_name: str, job_uid: str) -> str | None:
    """Name of the claim that is made for the job; ``None`` when it wants none.

    The job's UID is in it, so that a claim which a former job of the same name has left is not taken over.
    """
    return f"{job_name}-workspace-{job_uid[:8]}" if spec.workspace.volume_claim_template else None


def workspace_claim(spec: JobSpec, job_name: str, job_uid: str) -> str | None:
    """Name of the claim that the job's pods mount, whoever made it; ``None`` when each has an ``emptyDir``."""
    existing = spec.workspace.persistent_volume_claim
    return existing.claim_name if existing else own_claim(spec, job_name, job_uid)


def build_claim(job: JobView) -> dict[str, Any]:
    """Build the claim of a job that has ``volumeClaimTemplate``. With ``Delete`` the job owns it, and the garbage
    collector removes it with the job."""
    template = job.spec.workspace.volume_claim_template
    assert template is not None
    owner: dict[str, Any] = {"apiVersion": API_VERSION, "kind": KIND, "name": job.name, "uid": job.uid}
    owner |= {"controller": True, "blockOwnerDeletion": False}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": own_claim(job.spec, job.name, job.uid),
            "namespace": job.namespace,
            "labels": {MANAGED_BY_LABEL: MANAGER, JOB_LABEL: job.name, JOB_UID_LABEL: job.uid},
            **({"ownerReferences": [owner]} if template.retention_policy == "Delete" else {}),
        },
        "spec": {
            "accessModes": list(template.access_modes),
            "resources": {"requests": {"storage": template.size}},
            **({"storageClassName": template.storage_class_name} if template.storage_class_name else {}),
        },
    }


def claim_hindrance(claim: dict[str, Any], job: JobView) -> tuple[str, str] | None:
    """Why the claim of the name that the job's own should have cannot be used: a word, and a text for people."""
    meta = claim["metadata"]
    if meta.get("labels", {}).get(JOB_UID_LABEL) != job.uid:
        text = f"a PersistentVolumeClaim called {meta['name']} that is not this job's is in the way; it is waited for"
        return "ClaimNameTaken", text
    if "deletionTimestamp" in meta:
        text = f"PersistentVolumeClaim {meta['name']} is being deleted; another one is made when it is gone"
        return "ClaimDeleting", text
    return None
