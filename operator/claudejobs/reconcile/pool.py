"""Warm pods: which a pool should have, which job may take one, and how it is handed over. Pure.

A job takes a pod when the pod that would be made for it is the very one that waits, which a fingerprint tells. The
hand-over has two steps. The job's status names the pod first, written over the version that the choice was made from,
so that of two choices one wins. Then one patch, over the version of the pod that was chosen, gives it the job's labels,
owner and input, so that a pod is given to one job, once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from claudejobs.api.base import API_VERSION, GROUP
from claudejobs.api.job import JobSpec
from claudejobs.api.pool import POOL_KIND, PoolSpec, PoolStatus
from claudejobs.settings import Settings

from .pod import allowed_metadata, build_pod, deadline_of, pod_spec
from .views import CONTAINER, JOB_LABEL, MANAGED_BY_LABEL, MANAGER, Key, parse_time

POOL_LABEL = f"{GROUP}/pool"
FINGERPRINT_ANNOTATION = f"{GROUP}/pool-fingerprint"

REPLACE_SECONDS = 10.0
"""Pause before pods that ended by themselves are replaced. It doubles each time: a broken runner is no busy loop."""

LONGEST_REPLACE_SECONDS = 300.0
"""The longest such pause. A pool without a loss for as long after one begins anew."""


@dataclass(frozen=True)
class PoolView:
    """A pool as last seen; ``spec`` is ``None`` when it cannot be read, as an older schema let it through."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    generation: int
    deleting: bool
    spec: PoolSpec | None
    status: PoolStatus

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return (self.namespace, self.name)

    @classmethod
    def parse(cls, obj: dict[str, Any]) -> PoolView:
        """Trim a resource as the API server sends it."""
        meta = obj["metadata"]
        try:
            spec = PoolSpec.model_validate(obj.get("spec") or {})
        except ValidationError:
            spec = None
        return cls(
            namespace=meta["namespace"],
            name=meta["name"],
            uid=meta["uid"],
            resource_version=meta["resourceVersion"],
            generation=meta.get("generation", 1),
            deleting="deletionTimestamp" in meta,
            spec=spec,
            status=PoolStatus.model_validate(obj.get("status") or {}),
        )


@dataclass(frozen=True)
class WarmPod:
    """A pod that waits for a job.

    Attributes:
        fingerprint: of what it was made from.
        started: when the kubelet took it, from which on it counts the pod's deadline.
        ready: its runner's container runs.
        ended: it runs no more.
        hindrance: what keeps it from starting, such as ImagePullBackOff; empty when nothing does, or it runs.
    """

    namespace: str
    name: str
    uid: str
    resource_version: str
    pool: Key
    pool_uid: str
    fingerprint: str
    started: datetime | None
    ready: bool
    ended: bool
    deleting: bool
    hindrance: str = ""

    @classmethod
    def parse(cls, obj: dict[str, Any]) -> WarmPod | None:
        """Trim a pod; ``None`` when no pool owns it: it never was in one, or a job has taken it."""
        meta, status = obj["metadata"], obj.get("status") or {}
        owner = next((o for o in meta.get("ownerReferences", []) if o.get("controller")), None)
        if owner is None or (owner["apiVersion"], owner["kind"]) != (API_VERSION, POOL_KIND):
            return None
        states = [c.get("state") or {} for c in status.get("containerStatuses", []) if c["name"] == CONTAINER]
        phase = status.get("phase")
        return cls(
            namespace=meta["namespace"],
            name=meta["name"],
            uid=meta["uid"],
            resource_version=meta["resourceVersion"],
            pool=(meta["namespace"], owner["name"]),
            pool_uid=owner["uid"],
            fingerprint=(meta.get("annotations") or {}).get(FINGERPRINT_ANNOTATION, ""),
            started=parse_time(status.get("startTime")),
            ready=phase == "Running" and any("running" in state for state in states),
            ended=phase in ("Succeeded", "Failed") or any("terminated" in state for state in states),
            deleting="deletionTimestamp" in meta,
            hindrance=_hindrance(status, states),
        )

    @property
    def free(self) -> bool:
        """Whether a job can take it."""
        return self.ready and not self.ended and not self.deleting and self.started is not None


@dataclass(frozen=True)
class PoolPlan:
    """What a pool needs: pods to delete, and how many to make.

    Attributes:
        lost: pods ended by themselves since the last look.
        message: what keeps pods from waiting, for people.
    """

    delete: tuple[WarmPod, ...]
    create: int
    ready: int
    lost: bool = False
    message: str = ""


def _hindrance(status: dict[str, Any], states: list[dict[str, Any]]) -> str:
    reasons = [(state.get("waiting") or {}).get("reason", "") for state in states]
    reasons += [c.get("reason", "") for c in status.get("conditions", []) if c["type"] == "PodScheduled"]
    # The kubelet goes to and fro between the two: one name, one write.
    reasons = ["ImagePullBackOff" if reason == "ErrImagePull" else reason for reason in reasons]
    return next((reason for reason in reasons if reason not in ("", "ContainerCreating", "PodInitializing")), "")


def replace_delay(losses: int) -> float:
    """Seconds to wait after so many losses in a row, before pods are replaced."""
    return float(min(REPLACE_SECONDS * 2 ** min(losses - 1, 10), LONGEST_REPLACE_SECONDS))


def fingerprint(spec: JobSpec, settings: Settings) -> str | None:
    """What a job's pod is like, so that equal fingerprints mean equal pods; ``None`` when no pod that waits can be like
    it: it mounts a claim, or clones a repository before the runner starts. Deadlines are no part of it: they are set at
    the hand-over."""
    workspace = spec.workspace
    if workspace.lasting or workspace.git:
        return None
    what = [pod_spec(spec, None, 0, settings), *allowed_metadata(spec.pod_template, settings)]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def build_warm_pod(pool: PoolView, settings: Settings) -> dict[str, Any]:
    """Build a pod that waits. Its runner finds an empty input, and waits until the hand-over fills it."""
    assert pool.spec is not None
    spec = pool.spec.as_job()
    labels, annotations = allowed_metadata(spec.pod_template, settings)
    owner: dict[str, Any] = {"apiVersion": API_VERSION, "kind": POOL_KIND, "name": pool.name, "uid": pool.uid}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{pool.name}-warm-",
            "namespace": pool.namespace,
            # With the key of a job's label already: NetworkPolicies select jobs' pods by it, and take their time.
            "labels": labels | {MANAGED_BY_LABEL: MANAGER, POOL_LABEL: pool.name, JOB_LABEL: ""},
            "annotations": annotations
            | {
                FINGERPRINT_ANNOTATION: fingerprint(spec, settings) or "",
                # Else the cluster-autoscaler keeps its node, for its emptyDirs and its owner. A job's pod says "false".
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "true",
            },
            "ownerReferences": [owner | {"controller": True, "blockOwnerDeletion": False}],
        },
        "spec": pod_spec(spec, None, deadline_of(spec, settings), settings),
    }


def plan(pool: PoolView, pods: Sequence[WarmPod], held: Collection[str], settings: Settings) -> PoolPlan:
    """What a pool needs next.

    Args:
        pods: those that this very pool owns.
        held: names of pods that are being handed to jobs: they are left alone, and count no more.
    """
    if pool.deleting or pool.spec is None:
        return PoolPlan((), 0, 0)  # the garbage collector removes its pods
    wanted = fingerprint(pool.spec.as_job(), settings)
    mine = [pod for pod in pods if not pod.deleting and pod.name not in held]
    ended = [pod for pod in mine if pod.ended]
    stale = [pod for pod in mine if not pod.ended and pod.fingerprint != wanted]
    good = sorted((p for p in mine if not p.ended and p.fingerprint == wanted), key=lambda p: (not p.ready, p.name))
    delete = (*ended, *stale, *good[pool.spec.size :])
    kept = good[: pool.spec.size]
    missing = pool.spec.size - len(kept)
    ready = sum(pod.ready for pod in kept)
    stuck = next((pod for pod in kept if pod.hindrance), None)
    message = f"pod {stuck.name} does not start: {stuck.hindrance}; kubectl describe pod tells more" if stuck else ""
    return PoolPlan(delete, missing, ready, lost=bool(ended), message=message)


def choose(pods: Sequence[WarmPod], wanted: str | None, held: Collection[str]) -> WarmPod | None:
    """The pod for a job with this fingerprint: the one that has waited longest, as its runner is ready most surely."""
    free = [pod for pod in pods if pod.free and pod.fingerprint == wanted and pod.name not in held]
    return min(free, key=lambda pod: (pod.started, pod.name), default=None)


def hand_over(
    pod: WarmPod,
    job: dict[str, Any],
    attempt: int,
    session_id: str,
    spent_usd: float,
    settings: Settings,
    now: datetime,
) -> dict[str, Any]:
    """The merge patch that makes a waiting pod the job's attempt. The API server refuses it (409) when the pod is not
    the one that was chosen, in every detail.

    Raises:
        PodBuildError: the runner's input does not fit into a pod.
    """
    assert pod.started is not None
    built = build_pod(job, attempt, session_id, spent_usd, settings)
    meta = built["metadata"]
    age = math.ceil(max((now - pod.started).total_seconds(), 0))
    return {
        "metadata": {
            "uid": pod.uid,
            "resourceVersion": pod.resource_version,
            "labels": meta["labels"],
            "annotations": meta["annotations"],
            "ownerReferences": meta["ownerReferences"],
        },
        # The kubelet counts from the start of the pod.
        "spec": {"activeDeadlineSeconds": age + built["spec"]["activeDeadlineSeconds"]},
    }
