"""What a command of the local cluster is asked to do: everything read from the environment, in one place."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

KUBERNETES_VERSION = "v1.36.3"
"""The Kubernetes release that `binary/` links; `binary/go.mod` must name the same."""

HELM_VERSION = "v4.3.1"
"""The Helm release that `tools/` links; `tools/go.mod` must name the same."""

REPOSITORY = Path(__file__).resolve().parent.parent
"""The checkout: the build context of the product's images."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?")
_LONGEST_SOCKET_PATH = 107


class LocalClusterError(Exception):
    """Something a person has to act on; the text says what, what was found and what to do."""


@dataclass(frozen=True)
class Settings:
    """One cluster's name, places and wishes. Build it with `from_environment`."""

    name: str
    """Names the cluster, its state directory, its network namespace and its cgroups."""
    cache: Path
    """What outlives clusters and can be made again at the price of time: binaries, images."""
    state_root: Path
    """Holds one directory for each cluster."""
    target: str
    """`local`, `kind`, `existing`, or empty to choose."""
    existing_context: str
    """The kubectl context that `existing` is allowed to use."""
    egress_open: bool
    """Whether pods reach addresses outside the machine."""

    @property
    def state(self) -> Path:
        """The directory of everything that belongs to this cluster and dies with it."""
        return self.state_root / self.name

    @property
    def logs(self) -> Path:
        """One log per component, and the audit log."""
        return self.state / "log"

    @property
    def audit_log(self) -> Path:
        """One JSON line per API write, complete."""
        return self.logs / "audit.log"

    @property
    def pki(self) -> Path:
        """Keys and certificates of the control plane."""
        return self.state / "pki"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.state / "kubeconfig"

    @property
    def bin_dir(self) -> Path:
        """Where kubectl and helm are, and nothing else."""
        return self.state / "bin"

    @property
    def containerd_socket(self) -> Path:
        """Where this cluster's own containerd listens."""
        return self.state / "containerd" / "containerd.sock"

    @property
    def node(self) -> str:
        """The name of the one node."""
        return f"{self.name}-node"

    @property
    def identity(self) -> str:
        """The name as the kernel's objects (namespace, cgroup, nft table) carry it.

        A cluster outside the default state directory gets a suffix, so that two of one name can run side by
        side.
        """
        if self.state_root == default_state_root():
            return f"claudejobs-{self.name}"
        return f"claudejobs-{self.name}-{hashlib.sha256(str(self.state_root).encode()).hexdigest()[:6]}"


def default_state_root() -> Path:
    """Where clusters live unless CLAUDEJOBS_STATE says otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/claudejobs-localcluster")
    return Path.home() / ".local" / "state" / "claudejobs-localcluster"


def from_environment(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings.

    Raises LocalClusterError when a variable holds something that cannot be used.
    """
    env = os.environ if environment is None else environment
    name = env.get("CLUSTER_NAME") or "claudejobs"
    if not _NAME.fullmatch(name):
        raise LocalClusterError(f"CLUSTER_NAME is {name!r}: use at most 30 lower-case letters, digits and inner dashes")
    target = env.get("CLUSTER", "")
    if target not in ("", "local", "kind", "existing"):
        raise LocalClusterError(f"CLUSTER is {target!r}: set it to local, kind or existing, or unset it to choose")
    egress = env.get("CLUSTER_EGRESS") or "closed"
    if egress not in ("open", "closed"):
        raise LocalClusterError(f"CLUSTER_EGRESS is {egress!r}: set it to open or closed")
    user_cache = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    settings = Settings(
        name=name,
        cache=Path(env.get("CLAUDEJOBS_CACHE") or user_cache / "claudejobs").absolute(),
        state_root=Path(env.get("CLAUDEJOBS_STATE") or default_state_root()).absolute(),
        target=target,
        existing_context=env.get("CLUSTER_CONTEXT", ""),
        egress_open=egress == "open",
    )
    if len(f"{settings.containerd_socket}.ttrpc") > _LONGEST_SOCKET_PATH:
        raise LocalClusterError(
            f"the state directory {settings.state} is too long a path for a Unix socket inside it: "
            "set CLAUDEJOBS_STATE to a shorter one"
        )
    return settings
