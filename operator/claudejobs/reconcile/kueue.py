"""Kueue (https://kueue.sigs.k8s.io), which holds a job's pod back until there is quota for it, and may take its place
back later.

Its integration of plain pods is used: Kueue's webhook puts a scheduling gate on a pod that has a queue's label, and
Kueue alone takes it away. The operator hands the label on and reads the pod; it never talks to Kueue.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_DOMAIN = "kueue.x-k8s.io/"

QUEUE_LABEL = f"{_DOMAIN}queue-name"
"""Of a job: the LocalQueue in which its pods wait."""

PRIORITY_LABEL = f"{_DOMAIN}priority-class"
"""Of a job: the WorkloadPriorityClass of its pods."""

_FINALIZER = f"{_DOMAIN}managed"
"""Of a pod that has a place in a queue, until Kueue has counted its end."""

_STOPPED = "TerminationTarget"
"""The condition that Kueue gives to a pod before it deletes it."""


def labels_of(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels of a job that are for Kueue: the queue, and the priority in it. Without a queue there are none."""
    if not labels.get(QUEUE_LABEL):
        return {}
    return {key: labels[key] for key in (QUEUE_LABEL, PRIORITY_LABEL) if labels.get(key)}


def refused(labels: Mapping[str, str], priority_classes: Collection[str]) -> list[str]:
    """Those labels that pods of the job do not get: a priority that jobs may not choose, as it drives out others."""
    asked = labels_of(labels).get(PRIORITY_LABEL)
    return [PRIORITY_LABEL] if asked and asked not in priority_classes else []


def holds(pod: Mapping[str, Any]) -> bool:
    """Whether Kueue keeps the pod from being scheduled."""
    return any(gate["name"].startswith(_DOMAIN) for gate in pod.get("spec", {}).get("schedulingGates", []))


def keeps_dead(pod: Mapping[str, Any]) -> bool:
    """Whether the pod is deleted, never ran, and is there because Kueue has not taken its finalizer away: it may never
    do so, where Kueue is gone. A pod that is being deleted gets no node any more."""
    meta = pod["metadata"]
    deleted = "deletionTimestamp" in meta and "nodeName" not in pod.get("spec", {})
    return deleted and _FINALIZER in meta.get("finalizers", [])


def stop_reason(conditions: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Kueue's reason and words, from a pod's conditions by type; ``None`` when it does not stop the pod.

    Both have changed over its versions, but one of them has always had the word Preempted, where it is that.
    """
    condition = conditions.get(_STOPPED, {})
    if condition.get("status") != "True":
        return None
    return f"{condition.get('reason', '')}: {condition.get('message', '')}".strip(": ")
