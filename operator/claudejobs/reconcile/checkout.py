"""The init container that clones a job's repository. Pure."""

from __future__ import annotations

from typing import Any

from claudejobs.api.events import (
    GIT_KNOWN_HOSTS_VARIABLE,
    GIT_PASSWORD_VARIABLE,
    GIT_SSH_KEY_VARIABLE,
    GIT_USERNAME_VARIABLE,
    GitSource,
)
from claudejobs.api.job import JobSpec
from claudejobs.api.workspace import GitWorkspace
from claudejobs.settings import Settings

from .views import CHECKOUT

START_MARGIN = 10
"""Seconds before the operator's start timeout at which the checkout gives up by itself, because it knows best why."""

VOLUME = "checkout"

COMMAND = ["/usr/bin/tini", "-g", "--", "/opt/venv/bin/python", "-m", "claudejobs.runner.checkout"]


def git_source(spec: JobSpec, settings: Settings) -> GitSource | None:
    """What the checkout is to clone; ``None`` for a job without a repository."""
    git = spec.workspace.git
    if git is None:
        return None
    return GitSource(url=git.url, ref=git.ref, timeout_seconds=max(5, settings.start_timeout - START_MARGIN))


def init_containers(spec: JobSpec, runner: dict[str, Any]) -> list[dict[str, Any]]:
    """The checkout, made like the runner's container; none for a job without a repository.

    It asks for what the runner asks for: a pod reserves the larger of the two, not their sum, so that it costs nothing.
    """
    git = spec.workspace.git
    if git is None:
        return []
    resources = {
        kind: {name: quantity for name, quantity in values.items() if name in ("cpu", "memory")}
        for kind, values in runner["resources"].items()
    }
    return [
        {
            "name": CHECKOUT,
            "image": runner["image"],
            "imagePullPolicy": runner["imagePullPolicy"],
            "command": COMMAND,
            "env": _credential(git),
            "resources": resources,
            "securityContext": runner["securityContext"],
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": [
                *(m for m in runner["volumeMounts"] if m["name"] in ("workspace", "input")),
                # Not the pod's /tmp, which the agent sees: the ssh key is in a file for as long as git runs.
                {"name": VOLUME, "mountPath": "/tmp"},  # noqa: S108 - the container's own volume
            ],
        }
    ]


def volumes(spec: JobSpec) -> list[dict[str, Any]]:
    """The volumes that only the checkout mounts."""
    return [{"name": VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}] if spec.workspace.git else []


def _credential(git: GitWorkspace) -> list[dict[str, Any]]:
    """The Secret's keys that the URL's scheme takes, as variables of the checkout alone.

    Not as files: the kubelet says in the pod's status which Secret or key a variable lacks, but of a volume's only in
    events.
    """
    if git.secret_ref is None:
        return []
    if git.url.startswith("ssh://"):
        keys = [(GIT_SSH_KEY_VARIABLE, "ssh-privatekey", False), (GIT_KNOWN_HOSTS_VARIABLE, "known_hosts", True)]
    else:
        keys = [(GIT_USERNAME_VARIABLE, "username", True), (GIT_PASSWORD_VARIABLE, "password", False)]
    return [
        {
            "name": name,
            "valueFrom": {
                "secretKeyRef": {"name": git.secret_ref.name, "key": key} | ({"optional": True} if optional else {})
            },
        }
        for name, key, optional in keys
    ]
