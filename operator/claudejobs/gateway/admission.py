"""Who may use the model: the pod that is a running attempt of a job. Pure.

A token proves a pod: the kubelet binds it to the pod's UID, and the API server takes it no more once that pod is gone.
What a pod says of itself proves nothing, as whoever may create pods writes labels and owner references at will. So the
job is asked: it exists with the UID that the pod names, it is not at its end, and its status, which only the operator
may write (no role of the chart gives it to people), names this pod as its attempt.

What an author who may create pods can still forge: the pod ``JOB-N`` of a job of theirs, in the moment before the
operator makes it. The operator then takes it for the attempt. They gain nothing by it: they run code of their own with
that job's token, as the job's prompt could have made the agent do, within the same budget and limits, and until the
same end. The same goes for whoever may exec into the job's pod or may create tokens of its service account that are
bound to it. Across namespaces none of this is possible. Whoever may write ``claudecodejobs/status`` is trusted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from claudejobs.api.status import Phase
from claudejobs.reconcile.views import Key, PodView

from .refusal import forbidden, not_yet


@dataclass(frozen=True)
class Caller:
    """The pod that a token belongs to."""

    namespace: str
    pod: str
    pod_uid: str


@dataclass(frozen=True)
class Job:
    """What the gateway needs to know of a job.

    Attributes:
        pod_name: the pod of the newest attempt; ``None`` while there is none.
        cost_usd: what attempts that have ended cost, as the operator counts.
        budget_usd: ``spec.claude.maxBudgetUSD``.
    """

    namespace: str
    name: str
    uid: str
    resource_version: str
    deleting: bool
    terminal: bool
    attempt: int
    pod_name: str | None
    cost_usd: float
    budget_usd: float | None
    user: str | None

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return (self.namespace, self.name)

    @classmethod
    def parse(cls, obj: dict[str, Any]) -> Job:
        """Trim a resource as the API server sends it. Not through its model: this is done for every event, and the
        API server's schema has checked the types."""
        meta, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
        phase = status.get("phase", Phase.PENDING.value)
        return cls(
            namespace=meta["namespace"],
            name=meta["name"],
            uid=meta["uid"],
            resource_version=meta["resourceVersion"],
            deleting="deletionTimestamp" in meta,
            terminal=phase in (Phase.COMPLETED, Phase.FAILED, Phase.CANCELLED),
            attempt=status.get("attempt", 0),
            pod_name=status.get("podName"),
            cost_usd=status.get("costUSD", 0.0),
            budget_usd=(spec.get("claude") or {}).get("maxBudgetUSD"),
            user=spec.get("userId"),
        )


def has_ended(pod: PodView) -> bool:
    """Whether the attempt is over, or about to be: a pod that is being deleted has only to tidy up."""
    return pod.terminated or pod.exit_code is not None or pod.deleting_since is not None


def admit(caller: Caller, pod: PodView | None, job: Job | None) -> Job:
    """The job whose running attempt the caller is.

    Args:
        pod: the attempt's pod of the caller's name, ``None`` when there is none or it is not an attempt of a job.
        job: the job that it names as its owner.

    Raises:
        RefusedError: it is none; or the operator has not written down the attempt yet (to be tried again).
    """
    where = f"pod {caller.pod} in namespace {caller.namespace}"
    if pod is None or pod.uid != caller.pod_uid:
        raise forbidden(f"{where} is not an attempt of a ClaudeCodeJob")
    if has_ended(pod):
        raise forbidden(f"{where} has ended, and its token with it")
    if job is None or job.uid != pod.job_uid:
        raise forbidden(f"{where} names ClaudeCodeJob {pod.job[1]} as its owner, and there is no such job")
    if job.deleting or job.terminal:
        raise forbidden(f"ClaudeCodeJob {job.name} in namespace {job.namespace} has ended")
    if pod.attempt == job.attempt and pod.name == job.pod_name:
        return job
    # A pod that was started ahead has a name of its own, and is recorded before it learns of the job.
    if pod.name != f"{job.name}-{pod.attempt}" or pod.attempt not in (job.attempt, job.attempt + 1):
        raise forbidden(f"{where} is not an attempt of ClaudeCodeJob {job.name}")
    if pod.attempt == job.attempt + 1:
        raise not_yet(f"{where} is not yet recorded as an attempt of ClaudeCodeJob {job.name}")
    raise forbidden(f"{where} is not the present attempt of ClaudeCodeJob {job.name}")
