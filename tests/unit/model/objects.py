"""Jobs and pods as the API server sends them, and the views, settings and reports that decisions are made from."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from claudejobs.api.base import API_VERSION, KIND
from claudejobs.api.status import JobStatus
from claudejobs.reconcile.decide import Seen
from claudejobs.reconcile.views import (
    ATTEMPT_LABEL,
    CONTAINER,
    JOB_LABEL,
    JOB_UID_LABEL,
    MANAGED_BY_LABEL,
    MANAGER,
    JobView,
    LiveReport,
    PodView,
)
from claudejobs.settings import Settings

Json = dict[str, Any]

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
JOB_UID = "9e0a6f7e-5d0c-4a35-8f0a-6a4f1f9f0001"


class FixedSettings(Settings):
    """Settings that no environment variable of the machine can change."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def make_settings(**values: Any) -> Settings:
    return FixedSettings(**values)


def stamp(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def job_object(spec: Json | None = None, status: Json | None = None, **meta: Any) -> Json:
    metadata = {
        "name": "job",
        "namespace": "team",
        "uid": JOB_UID,
        "resourceVersion": "100",
        "generation": 1,
        "creationTimestamp": stamp(ago(3600)),
    }
    body: Json = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata | meta, "spec": {"prompt": "do it"}}
    body["spec"] |= spec or {}
    return body | ({"status": status} if status is not None else {})


def dump(status: JobStatus) -> Json:
    """The status as it is stored."""
    return status.model_dump(by_alias=True, mode="json", exclude_none=True)


def job_view(spec: Json | None = None, status: JobStatus | Json | None = None, **meta: Any) -> JobView:
    raw = dump(status) if isinstance(status, JobStatus) else status
    return JobView.parse(job_object(spec, raw, **meta))


def attempt(number: int = 1, **values: Any) -> Json:
    """An entry of ``status.attempts``: open, unless ``endTime`` is given."""
    return {"attempt": number, "podName": f"job-{number}", "startTime": stamp(ago(60))} | values


def failed_attempt(number: int, category: str, message: str = "it failed", **values: Any) -> Json:
    ended = {"endTime": stamp(ago(5)), "outcome": "failed", "category": category, "message": message}
    return attempt(number, **ended, **values)


def status_with(*attempts: Json, phase: str, **values: Any) -> Json:
    cost = sum(a.get("costUSD", 0.0) for a in attempts)
    seen = {"observedGeneration": 1}
    return seen | {"phase": phase, "attempt": len(attempts), "attempts": list(attempts), "costUSD": cost} | values


STARTING = status_with(attempt(), phase="Starting", reason="Starting", podName="job-1")
RUNNING = status_with(attempt(nodeName="node-a"), phase="Running", reason="Running", podName="job-1")


def pod_object(
    number: int = 1, status: Json | None = None, node: str | None = "node-a", age: float = 60, **meta: Any
) -> Json:
    """A pod of attempt ``number``; ``status`` as the kubelet or another component wrote it."""
    metadata: Json = {
        "name": f"job-{number}",
        "namespace": "team",
        "uid": f"pod-uid-{number}",
        "resourceVersion": "200",
        "creationTimestamp": stamp(ago(age)),
        "labels": {
            MANAGED_BY_LABEL: MANAGER,
            JOB_LABEL: "job",
            JOB_UID_LABEL: JOB_UID,
            ATTEMPT_LABEL: str(number),
        },
        "ownerReferences": [
            {"apiVersion": API_VERSION, "kind": KIND, "name": "job", "uid": JOB_UID, "controller": True}
        ],
    }
    spec = {"nodeName": node} if node else {}
    return {"metadata": metadata | meta, "spec": spec, "status": {} if status is None else status}


def parsed(obj: Json) -> PodView:
    view = PodView.parse(obj)
    assert view is not None
    return view


def container(state: Json) -> list[Json]:
    return [{"name": CONTAINER, "state": state}]


def waiting(reason: str, message: str = "") -> Json:
    state: Json = {"reason": reason} | ({"message": message} if message else {})
    return {"phase": "Pending", "containerStatuses": container({"waiting": state})}


def running_status(since: float = 50) -> Json:
    return {"phase": "Running", "containerStatuses": container({"running": {"startedAt": stamp(ago(since))}})}


def ended_status(
    code: int | None, message: str = "", reason: str = "", phase: str | None = None, **pod_status: Any
) -> Json:
    """A container that ended; ``phase`` defaults to what the kubelet makes of the exit code in the end."""
    terminated: Json = {"startedAt": stamp(ago(50)), "finishedAt": stamp(ago(1)), "exitCode": code}
    terminated["reason"] = reason or ("Completed" if code == 0 else "Error")
    if message:
        terminated["message"] = message
    phase = phase or ("Succeeded" if code == 0 else "Failed")
    return {"phase": phase, "containerStatuses": container({"terminated": terminated})} | pod_status


def result_json(outcome: str = "completed", **values: Any) -> str:
    """A termination message, as the runner writes it."""
    return json.dumps({"version": 1, "outcome": outcome} | values)


def disruption(reason: str, status: str = "True", message: str = "") -> Json:
    return {"conditions": [{"type": "DisruptionTarget", "status": status, "reason": reason, "message": message}]}


def running_pod(number: int = 1, **meta: Any) -> PodView:
    return parsed(pod_object(number, running_status(), **meta))


def seen(
    job: JobView,
    *pods: PodView,
    live: LiveReport | None = None,
    admitted: bool = True,
    now: datetime = NOW,
) -> Seen:
    return Seen(job=job, pods=pods, live=live, admitted=admitted, waiting_message="waits for a slot", now=now)
