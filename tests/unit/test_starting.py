"""What keeps a pod from starting, as the scheduler and the kubelet put it."""

from __future__ import annotations

import pytest

from claudejobs.api.categories import Category
from claudejobs.reconcile.starting import hindrance_of

from .model.objects import Json, parsed, pod_object, waiting


def unscheduled(message: str, reason: str = "Unschedulable") -> Json:
    condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    return {"phase": "Pending", "conditions": [condition]}


@pytest.mark.parametrize(
    ("status", "reason", "category", "says"),
    [
        (unscheduled("0/3 nodes are available: 3 Insufficient cpu."), "Unschedulable", Category.UNSCHEDULABLE, "cpu"),
        (unscheduled(""), "Unschedulable", Category.UNSCHEDULABLE, "no node takes the pod"),
        (
            unscheduled('0/1 nodes are available: persistentvolumeclaim "repo" not found.'),
            "WorkspaceMissing",
            Category.WORKSPACE,
            "PersistentVolumeClaim repo does not exist in namespace team",
        ),
        (
            unscheduled("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found"),
            "WorkspaceUnbound",
            Category.UNSCHEDULABLE,
            "kubectl describe pvc",
        ),
        (waiting("ErrImagePull", "manifest unknown"), "ImagePull", Category.IMAGE, "manifest unknown"),
        (waiting("ImagePullBackOff", "Back-off pulling"), "ImagePull", Category.IMAGE, "Back-off pulling"),
        (waiting("ErrImageNeverPull", "not present"), "ImagePull", Category.IMAGE, "not present"),
        (waiting("InvalidImageName", "invalid reference"), "ImagePull", Category.IMAGE, "invalid reference"),
        (
            waiting("CreateContainerConfigError", 'secret "claude-credentials" not found'),
            "CredentialsMissing",
            Category.CREDENTIALS,
            "Secret claude-credentials does not exist in namespace team",
        ),
        (
            waiting("CreateContainerConfigError", "couldn't find key ANTHROPIC_API_KEY in Secret team/claude"),
            "CredentialsMissing",
            Category.CREDENTIALS,
            "Secret team/claude has no key ANTHROPIC_API_KEY",
        ),
        (
            waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
            "ContainerConfig",
            Category.INTERNAL,
            "runAsNonRoot",
        ),
        (
            waiting("CreateContainerError", "deadline"),
            "ContainerError",
            Category.RUNNER_CRASH,
            "start: deadline",
        ),
        (waiting("RunContainerError", "no exec"), "ContainerError", Category.RUNNER_CRASH, "cannot start: no exec"),
    ],
)
def test_a_hindrance_is_named(status: Json, reason: str, category: Category, says: str) -> None:
    hindrance = hindrance_of(parsed(pod_object(1, status)))
    assert hindrance is not None
    assert (hindrance.reason, hindrance.category) == (reason, category)
    assert says in hindrance.message


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"phase": "Pending"},
        waiting("ContainerCreating"),
        waiting("PodInitializing"),
        unscheduled("waits for its gates", "SchedulingGated"),
        {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]},
    ],
)
def test_a_pod_that_has_just_not_started_is_not_hindered(status: Json) -> None:
    assert hindrance_of(parsed(pod_object(1, status))) is None
