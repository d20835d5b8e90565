"""The clusters this tool can serve, behind one interface, and which of them a command means."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from localcluster.settings import Settings
from localcluster.shell import succeeds


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up."""

    kubeconfig: Path
    bin_dir: Path
    """Holds kubectl and helm."""
    audit_log: Path | None
    """The API server's audit log (JSON lines, writes only), where it can be read."""
    kind: str
    """`local`, `kind` or `existing`."""
    gateway: str | None
    """The address under which pods reach servers on this machine, where there is one."""

    @property
    def kubectl(self) -> list[str]:
        """How a command line for this cluster begins."""
        return [str(self.bin_dir / "kubectl"), "--kubeconfig", str(self.kubeconfig)]


@dataclass(frozen=True)
class Row:
    """One line of `status`."""

    name: str
    healthy: bool
    detail: str


class Target(Protocol):
    """What every kind of cluster can do. All methods raise LocalClusterError with what to do about it."""

    def up(self) -> Cluster:
        """Make the cluster, or what is missing of it, and wait until it works."""

    def down(self) -> None:
        """Remove what `up` made."""

    def status(self) -> list[Row]:
        """Look at each part."""

    def cluster(self) -> Cluster:
        """Describe the cluster without starting anything."""

    def build_and_load(self, name: str, dockerfile: Path, context: Path) -> str:
        """Make an image and let the cluster's pods use it; return the reference that names this very content.

        The name without a registry is `localhost/NAME`; `localhost/NAME:dev` names the newest build as well.
        """


def select(settings: Settings) -> Target:
    """Return the target that the settings name, or, when they name none, the one this machine can run."""
    from localcluster.existing import ExistingCluster  # noqa: PLC0415 - a target's needs are loaded with it
    from localcluster.kind import KindCluster  # noqa: PLC0415
    from localcluster.local import LocalCluster  # noqa: PLC0415

    if settings.target == "existing":
        return ExistingCluster(settings)
    if settings.target == "kind" or (not settings.target and _docker_answers()):
        return KindCluster(settings)
    return LocalCluster(settings)


def _docker_answers() -> bool:
    return shutil.which("docker") is not None and succeeds(["docker", "info"])
