"""Builds the pod of one attempt. Pure: the same job, attempt and settings give the same pod."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import ceil
from typing import Any

from claudejobs.api.base import API_VERSION, KIND
from claudejobs.api.events import INPUT_DIR, INPUT_FILE, WORKSPACE_DIR, ClaudeOptions, RunnerInput
from claudejobs.api.job import JobSpec, McpServer
from claudejobs.api.podtemplate import PodTemplate, Resources
from claudejobs.settings import Settings

from . import checkout, credentials, kueue
from .claim import workspace_claim
from .views import ATTEMPT_LABEL, CONTAINER, JOB_LABEL, JOB_UID_LABEL, MANAGED_BY_LABEL, MANAGER

INPUT_ANNOTATION = "claudecode.dev/input"
"""The runner's input travels as an annotation, mounted by the downward API: no ConfigMap to write and clean up."""

MAX_INPUT_BYTES = 240 * 1024
"""Kubernetes bounds all annotations of an object to 256 KiB; the rest is left for the author's own."""

LOG_MEBIBYTES = 256
"""Room for the log in the limit of a pod's disk: the kubelet keeps 50 MiB by default, and rotates now and then."""

USER = 65532
"""User and group of the runner's image; it owns nothing there but its empty home."""

DEADLINE_MARGIN = 60
"""Seconds after ``timeoutSeconds`` and the grace period, in which the runner stops the agent, at which the kubelet ends
a pod whose runner did not end by itself: room for the start of the container, which the kubelet counts, too."""


class PodBuildError(Exception):
    """The job can never have a pod; the message names the field and the limit."""


def pod_name(job_name: str, attempt: int) -> str:
    """Name of the pod of an attempt. Making it twice is impossible, which is what keeps attempts single."""
    return f"{job_name}-{attempt}"


def ignored_fields(spec: JobSpec, settings: Settings) -> list[str]:
    """Fields of the spec that the pod does not reflect."""
    ignored: list[str] = []
    template = spec.pod_template
    for kind, keys in (("labels", template.labels), ("annotations", template.annotations)):
        ignored += [f"spec.podTemplate.{kind}[{k}]" for k in keys if not _allowed(k, settings)]
    if template.runtime_class_name and settings.runtime_class_name not in (None, template.runtime_class_name):
        ignored.append("spec.podTemplate.runtimeClassName")
    if template.priority_class_name and not _priority_class(template, settings):
        ignored.append("spec.podTemplate.priorityClassName")
    if settings.model_gateway_url and spec.credentials_secret_ref:
        ignored.append("spec.credentialsSecretRef")
    return ignored


def build_pod(
    job: dict[str, Any], attempt: int, session_id: str, spent_usd: float, settings: Settings
) -> dict[str, Any]:
    """Build the pod of one attempt.

    Args:
        job: the resource as the API server has it now, prompt included.
        attempt: its number, from 1.
        session_id: the agent's session.
        spent_usd: what earlier attempts cost, US dollars.

    Raises:
        PodBuildError: the runner's input does not fit into a pod.
        pydantic.ValidationError: the spec is not one.
    """
    meta = job["metadata"]
    spec = JobSpec.model_validate(job["spec"])
    deadline = deadline_of(spec, settings)
    labels, annotations = allowed_metadata(spec.pod_template, settings)
    labels |= _kueue_labels(meta.get("labels") or {}, settings)
    claim = workspace_claim(spec, meta["name"], meta["uid"])
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(meta["name"], attempt),
            "namespace": meta["namespace"],
            "labels": labels
            | {
                MANAGED_BY_LABEL: MANAGER,
                JOB_LABEL: meta["name"],
                JOB_UID_LABEL: meta["uid"],
                ATTEMPT_LABEL: str(attempt),
            },
            "annotations": annotations
            | {
                INPUT_ANNOTATION: _input(meta, spec, attempt, session_id, spent_usd, settings),
                # An autoscaler that moves a running agent makes its tokens be paid twice.
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                "karpenter.sh/do-not-disrupt": "true",
            },
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": KIND,
                    "name": meta["name"],
                    "uid": meta["uid"],
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "spec": pod_spec(spec, claim, deadline, settings) | {"activeDeadlineSeconds": deadline},
    }


def deadline_of(spec: JobSpec, settings: Settings) -> int:
    """Seconds after which the kubelet ends a pod whose runner should have long ended by itself."""
    return _timeout(spec, settings) + settings.start_timeout + spec.termination_grace_period_seconds + DEADLINE_MARGIN


def _timeout(spec: JobSpec, settings: Settings) -> int:
    return spec.timeout_seconds or settings.job_timeout


def allowed_metadata(template: PodTemplate, settings: Settings) -> tuple[dict[str, str], dict[str, str]]:
    """The author's labels and annotations, as far as the operator lets them reach pods."""
    labels = {k: v for k, v in template.labels.items() if _allowed(k, settings)}
    annotations = {k: v for k, v in template.annotations.items() if _allowed(k, settings)}
    return labels, annotations


def pod_spec(spec: JobSpec, claim: str | None, deadline: int, settings: Settings) -> dict[str, Any]:
    """The spec of a job's pod, but for the deadline by which the kubelet ends it.

    Args:
        claim: the workspace's claim, ``None`` for an ``emptyDir``.
        deadline: seconds that the pod may live, which its token outlives.
    """
    volumes = _volumes(spec, claim)
    container = _container(spec, volumes, settings)
    init = checkout.init_containers(spec, container)
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": spec.termination_grace_period_seconds,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **({} if settings.host_users else {"hostUsers": False}),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"initContainers": init} if init else {}),
        "containers": [container],
        "volumes": [*volumes, *credentials.volumes(deadline, settings), *checkout.volumes(spec)],
        **_scheduling(spec.pod_template, settings),
    }


def _container(spec: JobSpec, volumes: list[dict[str, Any]], settings: Settings) -> dict[str, Any]:
    return {
        "name": CONTAINER,
        "image": settings.runner_image,
        "imagePullPolicy": settings.runner_image_pull_policy,
        "env": credentials.environment(spec, settings),
        "resources": _resources(spec.pod_template, volumes, settings),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # A runner that dies without its result leaves its last words.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "workspace", "mountPath": WORKSPACE_DIR},
            {"name": "home", "mountPath": "/home/agent"},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's own volume
            {"name": "input", "mountPath": INPUT_DIR, "readOnly": True},
            *credentials.mounts(settings),
        ],
    }


def _resources(template: PodTemplate, volumes: list[dict[str, Any]], settings: Settings) -> dict[str, Any]:
    """What the author says, and the operator's defaults for the rest, as far as they fit: a default request is no
    more than the author's limit, a default limit no less than the author's request."""
    own = template.resources or Resources()
    requests = {
        "cpu": settings.default_cpu_request,
        "memory": settings.default_memory_request,
        "ephemeral-storage": settings.default_ephemeral_storage_request,
    }
    limits = {
        "cpu": settings.default_cpu_limit,
        "memory": settings.default_memory_limit,
        "ephemeral-storage": _disk_limit(volumes),
    }
    for name, default in requests.items():
        requests[name] = min(default, own.limits.get(name, limits[name]), key=_amount)
        limits[name] = max(limits[name], own.requests.get(name, limits[name]), key=_amount)
    return {"requests": requests | own.requests, "limits": limits | own.limits}


def _disk_limit(volumes: list[dict[str, Any]]) -> str:
    """What the volumes may hold together, and the log: each volume's own limit is reached before."""
    sizes = [_amount(volume["emptyDir"]["sizeLimit"]) for volume in volumes if "emptyDir" in volume]
    return f"{ceil(sum(sizes) / 2**20) + LOG_MEBIBYTES}Mi"


_SUFFIXES = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}


def _amount(quantity: str) -> float:
    """A quantity as a number: ``500m`` is 0.5, ``2Gi`` is 2147483648."""
    number = quantity.rstrip("mkKMGTPEi")
    suffix = quantity[len(number) :]
    if suffix == "m":
        return float(number) / 1000
    base = 1024 if suffix.endswith("i") else 1000
    return float(number) * float(base ** _SUFFIXES[suffix.rstrip("i")])


def _volumes(spec: JobSpec, claim: str | None) -> list[dict[str, Any]]:
    empty = spec.workspace.empty_dir
    workspace: dict[str, Any] = (
        {"persistentVolumeClaim": {"claimName": claim}}
        if claim
        else {"emptyDir": {"sizeLimit": empty.size_limit if empty else "2Gi"}}
    )
    item = {"path": INPUT_FILE.removeprefix(f"{INPUT_DIR}/")} | {
        "fieldRef": {"fieldPath": f"metadata.annotations['{INPUT_ANNOTATION}']"}
    }
    return [
        {"name": "workspace", **workspace},
        {"name": "home", "emptyDir": {"sizeLimit": "256Mi"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "512Mi"}},
        {"name": "input", "downwardAPI": {"items": [item]}},
    ]


def _scheduling(template: PodTemplate, settings: Settings) -> dict[str, Any]:
    own = template.model_dump(
        by_alias=True,
        mode="json",
        exclude_defaults=True,
        exclude={"labels", "annotations", "resources", "runtime_class_name", "priority_class_name"},
    )
    runtime = settings.runtime_class_name or template.runtime_class_name
    priority = _priority_class(template, settings)
    return (
        own | ({"runtimeClassName": runtime} if runtime else {}) | ({"priorityClassName": priority} if priority else {})
    )


def _priority_class(template: PodTemplate, settings: Settings) -> str | None:
    """The author's PriorityClass, if it is one that jobs may have."""
    name = template.priority_class_name
    return name if name in settings.allowed_priority_classes else None


def _kueue_labels(labels: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """The job's own labels that its pods get. No others: NetworkPolicies and Services select pods by labels."""
    refused = kueue.refused(labels, settings.allowed_priority_classes)
    return {key: value for key, value in kueue.labels_of(labels).items() if key not in refused}


def _input(
    meta: dict[str, Any],
    spec: JobSpec,
    attempt: int,
    session_id: str,
    spent_usd: float,
    settings: Settings,
) -> str:
    document = RunnerInput(
        job=f"{meta['namespace']}/{meta['name']}",
        job_uid=meta["uid"],
        attempt=attempt,
        session_id=session_id,
        prompt=spec.prompt,
        working_directory=spec.working_directory,
        timeout_seconds=_timeout(spec, settings),
        stall_timeout_seconds=spec.stall_timeout_seconds,
        grace_seconds=spec.termination_grace_period_seconds,
        interrupt_seconds=spec.interrupt,
        env={v.name: v.value for v in spec.env} | {"CLAUDE_JOB_ARGUMENTS": json.dumps(spec.arguments)},
        claude=_options(spec, spent_usd, settings),
        git=checkout.git_source(spec, settings),
    ).model_dump_json(exclude_defaults=True)
    size = len(document.encode())
    if size > MAX_INPUT_BYTES:
        raise PodBuildError(
            f"spec.prompt, spec.claude, spec.env and spec.arguments together have {size} bytes, but a pod carries at "
            f"most {MAX_INPUT_BYTES}; put long texts into the workspace"
        )
    return document


def _options(spec: JobSpec, spent_usd: float, settings: Settings) -> ClaudeOptions:
    claude = spec.claude
    budget = claude.max_budget_usd
    if budget is not None and not spec.workspace.lasting:
        # On a lasting workspace the runner itself keeps count of what earlier attempts spent.
        budget = max(budget - spent_usd, 0.01)
    values = claude.model_dump(exclude={"mcp_servers", "max_budget_usd", "model"}, exclude_none=True)
    return ClaudeOptions(
        **values,
        model=claude.model or settings.default_model,
        max_budget_usd=budget,
        mcp_servers={name: _mcp_server(server) for name, server in claude.mcp_servers.items()},
    )


def _mcp_server(server: McpServer) -> dict[str, Any]:
    """The form that the SDK takes."""
    if server.stdio:
        return {"type": "stdio", **server.stdio.model_dump()}
    assert server.http is not None
    return server.http.model_dump()


def _allowed(key: str, settings: Settings) -> bool:
    """Whether a job may put this label or annotation on its pods: keys without a domain, or of an allowed one."""
    domain, slash, _ = key.partition("/")
    return not slash or domain in settings.allowed_metadata_domains
