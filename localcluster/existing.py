"""A cluster that somebody else made: used as it is, only after it was named, and never created or deleted."""

from __future__ import annotations

import shutil
from pathlib import Path

from localcluster.settings import LocalClusterError, Settings
from localcluster.shell import run, succeeds, write
from localcluster.targets import Cluster, Row


class ExistingCluster:
    """The cluster of kubectl's current context."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def up(self) -> Cluster:
        """Check that the current context is the one that was allowed, and that its API server answers."""
        cluster = self.cluster()
        run(["kubectl", "get", "--raw", "/readyz", "--request-timeout=10s"])
        return cluster

    def down(self) -> None:
        """Forget the copy of the context; what this tool did not make it does not remove."""
        self._copy.unlink(missing_ok=True)

    def status(self) -> list[Row]:
        """Ask the API server."""
        self.cluster()
        ready = succeeds(["kubectl", "get", "--raw", "/readyz", "--request-timeout=10s"])
        return [Row("API", ready, "ready" if ready else "does not answer")]

    def cluster(self) -> Cluster:
        """Describe the cluster, after the same check of its name."""
        if shutil.which("kubectl") is None:
            raise LocalClusterError("kubectl is not on PATH: install it to use an existing cluster")
        found, allowed = (
            run(["kubectl", "config", "current-context"]).strip(),
            self._settings.existing_context,
        )
        if found != allowed:
            raise LocalClusterError(
                f"the current kubectl context is {found!r}, and CLUSTER_CONTEXT is {allowed!r}: "
                "set CLUSTER_CONTEXT to that very name if jobs may run there"
            )
        return Cluster(self._kubeconfig(), self._tools(), None, "existing", None)

    def build_and_load(self, name: str, dockerfile: Path, context: Path) -> str:  # noqa: ARG002 - the interface
        """Refuse: only a registry that the cluster reads can give it images."""
        raise LocalClusterError(
            f"cannot load {name} into an existing cluster: push {dockerfile} built to a registry it reads, "
            "and name that image in the chart's values"
        )

    def _kubeconfig(self) -> Path:
        """Write the current context alone into a file of our own: a later switch must not move jobs."""
        write(self._copy, run(["kubectl", "config", "view", "--minify", "--flatten", "--raw"]))
        return self._copy

    @property
    def _copy(self) -> Path:
        return self._settings.state_root / f"{self._settings.name}.existing-kubeconfig"

    def _tools(self) -> Path:
        return Path(str(shutil.which("kubectl"))).parent
