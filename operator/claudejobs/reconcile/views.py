"""What decisions are made from: trimmed views of the resource, its pods and the runner's events.

The operator keeps one view per job and pod in memory, so they hold what decisions need and nothing more: a
prompt may have 128 KiB, and is read anew when a pod is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from claudejobs.api.base import GROUP, KIND
from claudejobs.api.events import (
    ApiRetry,
    Event,
    Notice,
    Outcome,
    Progress,
    Result,
    RunnerResult,
    Session,
    Text,
    ToolResult,
    ToolUse,
    parse_result,
)
from claudejobs.api.job import JobSpec
from claudejobs.api.queue_job import QUEUE_JOB_ANNOTATION, QUEUE_JOB_LOST_ANNOTATION, QueueJob
from claudejobs.api.status import JobStatus

from . import kueue

JOB_LABEL = f"{GROUP}/job"
JOB_UID_LABEL = f"{GROUP}/job-uid"
ATTEMPT_LABEL = f"{GROUP}/attempt"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGER = "claudejobs"
CONTAINER = "runner"
CHECKOUT = "checkout"

Key = tuple[str, str]
"""``(namespace, name)`` of a job."""


def parse_time(value: str | None) -> datetime | None:
    """Read a Kubernetes timestamp."""
    return datetime.fromisoformat(value) if value else None


def is_newer(version: str, than: str) -> bool:
    """Whether one version of an object is at least as new as another version of the same object.

    Resource versions of one object are decimal numbers that grow; see the API concepts of Kubernetes 1.35.
    """
    return not (version.isdecimal() and than.isdecimal()) or int(version) >= int(than)


@dataclass(frozen=True)
class JobView:
    """A job as last seen.

    Attributes:
        spec: without prompt, arguments and system prompts, which only the pod needs.
        invalid: why the spec cannot be read; then ``spec`` is a placeholder. The API server's schema keeps
            such specs out, unless the schema in the cluster is older than the operator.
        queue_job: the run of a queue's job that it was made for.
        queue_job_lost: Redis lost that queue job's data.
        kueue_labels: its labels that are for Kueue.
    """

    namespace: str
    name: str
    uid: str
    resource_version: str
    generation: int
    created: datetime
    deleting: bool
    spec: JobSpec
    status: JobStatus
    invalid: str | None = None
    queue_job: QueueJob | None = None
    queue_job_lost: bool = False
    kueue_labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return (self.namespace, self.name)

    @classmethod
    def parse(cls, obj: dict[str, Any]) -> JobView:
        """Trim a resource as the API server sends it."""
        meta = obj["metadata"]
        invalid = None
        try:
            spec = JobSpec.model_validate(obj.get("spec") or {})
        except ValidationError as error:
            first = error.errors()[0]
            invalid = f"spec.{'.'.join(map(str, first['loc']))}: {first['msg']}"
            spec = JobSpec(prompt="-")
        claude = spec.claude.model_copy(update={"system_prompt": None, "append_system_prompt": None})
        status = JobStatus.model_validate(obj.get("status") or {})
        if status.phase.terminal:
            # A finished job's answer is never compared or written again; its figures still go into the row.
            figures = status.result and status.result.model_copy(update={"text": None, "structured_output": None})
            status = status.model_copy(update={"result": figures})
        created = parse_time(meta["creationTimestamp"])
        assert created is not None
        annotations = meta.get("annotations") or {}
        return cls(
            namespace=meta["namespace"],
            name=meta["name"],
            uid=meta["uid"],
            resource_version=meta["resourceVersion"],
            generation=meta.get("generation", 1),
            created=created,
            deleting="deletionTimestamp" in meta,
            spec=spec.model_copy(update={"prompt": "", "arguments": {}, "env": [], "claude": claude}),
            status=status,
            invalid=invalid,
            queue_job=_queue_job(annotations.get(QUEUE_JOB_ANNOTATION), meta["name"]),
            queue_job_lost=QUEUE_JOB_LOST_ANNOTATION in annotations,
            kueue_labels=kueue.labels_of(meta.get("labels") or {}),
        )


@dataclass(frozen=True)
class PodView:
    """A pod as last seen.

    Attributes:
        terminated: the runner's container has ended, or will never start: nothing of the attempt runs any more.
        held: Kueue keeps the pod from being scheduled.
        queue: the LocalQueue of Kueue in which it waits, or waited; empty when there is none.
        kueue_stop: Kueue's words, when it takes the pod's place back.
        reason: the pod's own reason, such as Evicted or DeadlineExceeded.
        preparing: the checkout runs, and the runner has not begun.
        container_reason: why the container waits or ended, such as ImagePullBackOff or OOMKilled.
        disruption: reason of the pod's DisruptionTarget condition, such as PreemptionByScheduler.
        unschedulable: the scheduler's message, when no node takes the pod.
        message: the container's or the pod's message.
        result: what the runner left in the termination message.
    """

    name: str
    namespace: str
    uid: str
    resource_version: str
    job: Key
    job_uid: str
    attempt: int
    created: datetime
    phase: str
    terminated: bool = False
    running: bool = False
    preparing: bool = False
    held: bool = False
    queue: str = ""
    kueue_stop: str | None = None
    deleting_since: datetime | None = None
    node: str | None = None
    started: datetime | None = None
    finished: datetime | None = None
    exit_code: int | None = None
    reason: str = ""
    container_reason: str = ""
    disruption: str = ""
    unschedulable: str | None = None
    message: str = ""
    result: RunnerResult | None = None

    @classmethod
    def parse(cls, obj: dict[str, Any]) -> PodView | None:
        """Trim a pod; ``None`` when it is not an attempt of a job (no owner of our kind, or no attempt label)."""
        meta, status = obj["metadata"], obj.get("status") or {}
        owner = next(
            (
                owner
                for owner in meta.get("ownerReferences", [])
                if owner.get("controller") and owner["kind"] == KIND and owner["apiVersion"].startswith(f"{GROUP}/")
            ),
            None,
        )
        labels = meta.get("labels", {})
        attempt = labels.get(ATTEMPT_LABEL, "")
        if owner is None or not attempt.isdecimal():
            return None
        state = _state(status.get("containerStatuses"), CONTAINER)
        started = parse_time((state.get("running") or state.get("terminated") or {}).get("startedAt"))
        checkout = _state(status.get("initContainerStatuses"), CHECKOUT)
        if started is None and (checkout.get("waiting") or (checkout.get("terminated") or {}).get("exitCode")):
            state = checkout  # the runner waits for what the checkout lacks, or will never start
        ended, waiting = state.get("terminated") or {}, state.get("waiting") or {}
        conditions = {c["type"]: c for c in status.get("conditions", [])}
        scheduled, target = conditions.get("PodScheduled", {}), conditions.get("DisruptionTarget", {})
        phase = status.get("phase", "Pending")
        result = parse_result(ended.get("message"))
        completed = ended.get("exitCode") == 0 and result is not None and result.outcome is Outcome.COMPLETED
        created = parse_time(meta["creationTimestamp"])
        assert created is not None
        return cls(
            name=meta["name"],
            namespace=meta["namespace"],
            uid=meta["uid"],
            resource_version=meta["resourceVersion"],
            job=(meta["namespace"], owner["name"]),
            job_uid=owner["uid"],
            attempt=int(attempt),
            created=created,
            phase=phase,
            # The kubelet reports a completed pod a second after its container, which restartPolicy Never makes final.
            # Any other ending waits for the pod, which then says what the cluster did to it.
            terminated=phase in ("Succeeded", "Failed") or completed or kueue.keeps_dead(obj),
            running="running" in state and phase == "Running",
            preparing="running" in checkout,
            held=kueue.holds(obj),
            queue=labels.get(kueue.QUEUE_LABEL, ""),
            kueue_stop=kueue.stop_reason(conditions),
            deleting_since=parse_time(meta.get("deletionTimestamp")),
            node=obj.get("spec", {}).get("nodeName"),
            started=started,
            finished=parse_time(ended.get("finishedAt")),
            exit_code=ended.get("exitCode"),
            reason=status.get("reason", ""),
            container_reason=ended.get("reason") or waiting.get("reason") or "",
            disruption=target.get("reason", "") if target.get("status") == "True" else "",
            unschedulable=scheduled.get("message", "") if scheduled.get("reason") == "Unschedulable" else None,
            message=waiting.get("message") or status.get("message") or (not result and ended.get("message")) or "",
            result=result,
        )


def _queue_job(annotation: str | None, name: str) -> QueueJob | None:
    """The queue job that a resource of this name was made for; a copy of the annotation elsewhere means nothing."""
    found = QueueJob.parse(annotation)
    return found if found and found.resource_name == name else None


TAIL_LINES = 10


def _state(statuses: list[dict[str, Any]] | None, container: str) -> dict[str, Any]:
    """State of a container, from the statuses of the pod's containers."""
    return next((c.get("state") or {} for c in statuses or [] if c["name"] == container), {})


@dataclass(frozen=True)
class LiveReport:
    """What the runner's events have told so far of one attempt.

    Attributes:
        step: what the agent does now, for people.
        resumed: whether the attempt went on with an earlier one's session; what its restarts did is not told.
        result: the result event, which has the whole answer where the termination message had to be cut.
        drained: the log was read to its end after the container had ended.
        tail: the last that the agent did and printed, for whoever looks at a failure.
    """

    progress: int = 0
    step: str = ""
    session_id: str | None = None
    model: str | None = None
    resumed: bool | None = None
    result: RunnerResult | None = None
    drained: bool = False
    tail: tuple[str, ...] = ()

    def with_event(self, event: Event) -> LiveReport:
        """Take one event in."""
        match event:
            case Session():
                resumed = event.resumed if self.resumed is None else self.resumed
                return replace(self, session_id=event.session_id, model=event.model, resumed=resumed)
            case Progress():
                return replace(self, progress=max(self.progress, event.percent), step=event.message or self.step)
            case ToolUse():
                return self.with_text(f"{event.tool}: {event.summary}", is_step=True)
            case ToolResult(is_error=True):
                return self.with_text(f"tool failed: {event.summary}")
            case Text():
                return self.with_text(event.text, is_step=bool(event.text.strip()))
            case ApiRetry():
                text = f"the model API answered {event.status or 'nothing'}; trying again"
                return self.with_text(text, is_step=True)
            case Notice():
                return self.with_text(event.text)
            case Result():
                return replace(self, result=event.result)
            case _:
                return self

    def with_text(self, line: str, is_step: bool = False) -> LiveReport:
        """Take in one line; ``is_step`` when it tells what the agent does now."""
        text = " ".join(line.split())
        tail = (*self.tail[-(TAIL_LINES - 1) :], text[:300]) if text else self.tail
        return replace(self, tail=tail, step=text[:200] if is_step else self.step)
