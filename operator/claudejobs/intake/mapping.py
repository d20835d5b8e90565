"""What a queue job becomes, and what its producer is told at the end. Pure."""

from __future__ import annotations

import json
import math
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from claudejobs.api.base import API_VERSION, KIND
from claudejobs.api.categories import Category
from claudejobs.api.job_data import PayloadError, parse_job_data
from claudejobs.api.queue import QueueSpec
from claudejobs.api.queue_job import QUEUE_JOB_ANNOTATION, QUEUE_LABEL, QueueJob
from claudejobs.api.status import AttemptStatus, JobStatus, Phase

MAX_ATTEMPTS = 20
MAX_DELAY_SECONDS = 86400
MAX_TIMEOUT_SECONDS = 604800
LEAST_PRIORITY = -1000
MAX_MANIFEST_BYTES = 1_000_000
"""Of a resource as it is made; etcd takes 1.5 MiB, and its status needs room too."""

MAX_REASON = 2000
"""Characters of a failed reason; BullMQ sends it to every listener."""


@dataclass(frozen=True)
class Mapped:
    """A queue job in the words of the cluster.

    Attributes:
        manifest: the ClaudeCodeJob to make.
        notes: what could not be taken as the producer said it, for the job's log.
    """

    manifest: dict[str, Any]
    notes: tuple[str, ...] = ()


def map_job(
    identity: QueueJob, data: object, opts: Mapping[str, Any], spec: QueueSpec, queue_resource: str, namespace: str
) -> Mapped:
    """Make the resource of a queue job.

    Args:
        opts: BullMQ's options of the job, as they stand in Redis.
        queue_resource: name of the ClaudeCodeQueue.

    Raises:
        PayloadError: the data can never be run.
    """
    payload = parse_job_data(data)
    notes: list[str] = []
    job = spec.template.model_dump(by_alias=True, mode="json", exclude_unset=True)
    job |= {"prompt": payload.command, "taskId": payload.task_id, "userId": payload.user_id}
    if payload.arguments:
        job["arguments"] = payload.arguments if isinstance(payload.arguments, dict) else {"args": payload.arguments}
    if payload.metadata:
        job["metadata"] = payload.metadata
    if payload.working_directory:
        job["workingDirectory"] = _relative(payload.working_directory, spec.working_directory_root)
    if payload.timeout is not None:
        job["timeoutSeconds"] = _seconds(payload.timeout, spec.timeout_unit, notes)
    if retry := _retry(opts, dict(job.get("retry", {})), notes):
        job["retry"] = retry
    if priority := _integer(opts.get("priority")):
        # BullMQ: 1 is the most urgent, and none at all goes before it.
        job["priority"] = max(-priority, LEAST_PRIORITY)
    metadata = {
        "name": identity.resource_name,
        "namespace": namespace,
        "labels": {QUEUE_LABEL: queue_resource},
        "annotations": {QUEUE_JOB_ANNOTATION: identity.annotation()},
    }
    manifest = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": job}
    if (size := len(json.dumps(manifest, ensure_ascii=False).encode(errors="replace"))) > MAX_MANIFEST_BYTES:
        raise PayloadError(
            f"data: makes a resource of {size} bytes, and {MAX_MANIFEST_BYTES} are allowed; give the agent what is "
            "large as a file of its workspace"
        )
    return Mapped(manifest, tuple(notes))


def _relative(path: str, root: str) -> str:
    """A producer's directory relative to the workspace."""
    clean = posixpath.normpath(path)
    if posixpath.isabs(clean):
        root = posixpath.normpath(root)
        if clean != root and not clean.startswith(root.rstrip("/") + "/"):
            raise PayloadError(
                f"data.workingDirectory: {path!r} is not below {root}, the queue's workingDirectoryRoot; give a path "
                "below it, or one that is relative to the workspace"
            )
        clean = posixpath.relpath(clean, root)
    if clean == ".." or clean.startswith("../"):
        raise PayloadError(f"data.workingDirectory: {path!r} leaves the workspace; give a path inside it")
    return clean


def _seconds(timeout: float, unit: str, notes: list[str]) -> int:
    seconds = timeout / 1000 if unit == "milliseconds" else timeout
    if not seconds < MAX_TIMEOUT_SECONDS:  # also what is not a number
        notes.append(f"timeout {timeout} {unit} is more than allowed and taken as {MAX_TIMEOUT_SECONDS} s")
        return MAX_TIMEOUT_SECONDS
    return max(1, math.ceil(seconds))


def _retry(opts: Mapping[str, Any], retry: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    attempts = _integer(opts.get("attempts"))
    if attempts:
        retry["maxAttempts"] = min(attempts, MAX_ATTEMPTS)
        if attempts > MAX_ATTEMPTS:
            notes.append(f"attempts {attempts} is more than allowed and taken as {MAX_ATTEMPTS}")
    backoff = opts.get("backoff")
    if isinstance(backoff, int | float) and backoff:
        backoff = {"type": "fixed", "delay": backoff}
    if isinstance(backoff, dict):
        if backoff.get("type") in ("fixed", "exponential"):
            delay = min(math.ceil((_integer(backoff.get("delay")) or 0) / 1000), MAX_DELAY_SECONDS)
            longest = max(delay, retry.get("backoff", {}).get("maxDelaySeconds", 600))
            retry["backoff"] = {"type": backoff["type"], "delaySeconds": delay, "maxDelaySeconds": longest}
        else:
            notes.append(f"backoff type {backoff.get('type')!r} is not known here; the queue's own backoff is used")
    return retry


def _integer(value: object) -> int | None:
    """A number of an option; ``None`` for what is none, or negative."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return int(value)


def return_value(resource: Mapping[str, Any], status: JobStatus) -> dict[str, Any]:
    """What the producer's ``waitUntilFinished`` gives: the answer, and what it took."""
    result = status.result
    return {
        "taskId": resource.get("spec", {}).get("taskId"),
        "status": "completed",
        "text": result.text if result else None,
        "structuredOutput": result.structured_output if result else None,
        "truncated": bool(result and result.truncated),
        "sessionId": status.session_id,
        "numTurns": result.num_turns if result else 0,
        "costUSD": status.cost_usd,
        "usage": result.usage.model_dump(by_alias=True) if result else {},
        "attempts": status.attempt,
        "job": {key: resource["metadata"][key] for key in ("namespace", "name", "uid")},
    }


def failed_reason(status: JobStatus) -> str:
    """Why a job failed: category, message and, where there were several, its attempts."""
    text = f"{status.reason or Category.INTERNAL}: {status.message}"
    if status.phase is Phase.CANCELLED:
        text = status.message if status.message.startswith("cancelled") else f"cancelled: {status.message}"
    if len(status.attempts) > 1:
        text += f" ({len(status.attempts)} attempts: {', '.join(_short(attempt) for attempt in status.attempts)})"
    return text[:MAX_REASON]


def history(status: JobStatus) -> list[str]:
    """One line per attempt, the oldest first; BullMQ's stack trace of a failed job."""
    return [f"attempt {a.attempt}: {_short(a)}: {a.message}"[:MAX_REASON] for a in status.attempts]


def _short(attempt: AttemptStatus) -> str:
    return str(attempt.category or attempt.outcome or "running")


def progress_of(status: JobStatus, percent: int, step: str, form: str) -> int | dict[str, Any]:
    """What ``updateProgress`` is given."""
    if form == "percent":
        return percent
    return {"percent": percent, "message": step or status.message, "phase": status.phase, "attempt": status.attempt}


def dead_letter_origin(identity: QueueJob, opts: Mapping[str, Any], reason: str, category: str, resource: str) -> str:
    """What a dead letter carries beside the producer's data: where it came from and why it is dead, as JSON."""
    origin = {
        "queue": identity.queue,
        "id": identity.id,
        "timestamp": identity.timestamp,
        "opts": dict(opts),
        "reason": reason,
        "category": category,
        "resource": resource,
    }
    return json.dumps(origin, separators=(",", ":"), default=str)
