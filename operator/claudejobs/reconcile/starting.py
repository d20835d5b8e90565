"""Why a pod does not start, in words that stay the same while the kubelet tries again."""

from __future__ import annotations

import re
from dataclasses import dataclass

from claudejobs.api.categories import Category

from .views import PodView

_IMAGE_REASONS = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
}


@dataclass(frozen=True)
class Hindrance:
    """What keeps a pod from starting.

    Attributes:
        reason: one word, for the Started condition.
        category: how the attempt ends when it lasts longer than the start timeout.
    """

    reason: str
    category: Category
    message: str


def hindrance_of(pod: PodView) -> Hindrance | None:
    """What keeps this pod from starting; ``None`` when it just has not started yet."""
    if pod.unschedulable is not None:
        missing_claim = re.search(r'persistentvolumeclaim "([^"]+)" not found', pod.unschedulable)
        if missing_claim:
            text = f"PersistentVolumeClaim {missing_claim[1]} does not exist in namespace {pod.namespace}"
            return Hindrance("WorkspaceMissing", Category.WORKSPACE, text)
        if "unbound immediate PersistentVolumeClaims" in pod.unschedulable:
            text = "the PersistentVolumeClaim of the workspace has no volume; its events (kubectl describe pvc) say why"
            return Hindrance("WorkspaceUnbound", Category.UNSCHEDULABLE, text)
        return Hindrance("Unschedulable", Category.UNSCHEDULABLE, pod.unschedulable or "no node takes the pod")
    if pod.preparing:
        return Hindrance("CheckingOut", Category.WORKSPACE, "spec.workspace.git is being cloned")
    if pod.container_reason in _IMAGE_REASONS:
        return Hindrance("ImagePull", Category.IMAGE, f"the runner's image cannot be pulled: {pod.message}")
    if pod.container_reason == "CreateContainerConfigError":
        return _config_error(pod)
    if pod.container_reason in ("CreateContainerError", "RunContainerError"):
        return Hindrance("ContainerError", Category.RUNNER_CRASH, f"the container cannot start: {pod.message}")
    return None


def _config_error(pod: PodView) -> Hindrance:
    missing = re.search(r'secret "([^"]+)" not found', pod.message)
    if missing:
        text = f"Secret {missing[1]} does not exist in namespace {pod.namespace}; the job starts when it is created"
        return Hindrance("CredentialsMissing", Category.CREDENTIALS, text)
    lacks = re.search(r"couldn't find key (\S+) in Secret (\S+)", pod.message)
    if lacks:
        text = f"Secret {lacks[2]} has no key {lacks[1]}; the job starts when it is added"
        return Hindrance("CredentialsMissing", Category.CREDENTIALS, text)
    return Hindrance("ContainerConfig", Category.INTERNAL, f"the container cannot be made: {pod.message}")
