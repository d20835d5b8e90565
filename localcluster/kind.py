"""The cluster on a machine with a Docker daemon: kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from localcluster import binaries, dockerfiles
from localcluster.progress import step
from localcluster.settings import LocalClusterError, Settings
from localcluster.shell import locked, run, succeeds
from localcluster.targets import Cluster, Row

_VERSION = "v0.33.0"


class KindCluster:
    """A cluster that kind makes, named as the settings say."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def up(self) -> Cluster:
        """Create the cluster unless kind knows it."""
        settings = self._settings
        if not succeeds(["docker", "info"]):
            raise LocalClusterError(
                "CLUSTER=kind needs Docker, and no Docker daemon answers `docker info`: start it, or set CLUSTER=local"
            )
        settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(settings.state_root / f"{settings.name}.lock"):
            self._link_tools()
            if not self._exists():
                with step(f"creating kind cluster {settings.name}"):
                    self._kind(
                        "create",
                        "cluster",
                        "--name",
                        settings.name,
                        "--kubeconfig",
                        str(settings.kubeconfig),
                        "--wait",
                        "180s",
                    )
            else:
                self._kind("export", "kubeconfig", "--name", settings.name, "--kubeconfig", str(settings.kubeconfig))
        return self.cluster()

    def down(self) -> None:
        """Delete the cluster and what was kept about it."""
        if self._exists():
            self._kind(
                "delete",
                "cluster",
                "--name",
                self._settings.name,
                "--kubeconfig",
                str(self._settings.kubeconfig),
            )
        shutil.rmtree(self._settings.state, ignore_errors=True)

    def status(self) -> list[Row]:
        """Ask kind for the cluster and the cluster for its nodes."""
        if not self._exists():
            return [Row("cluster", False, f"kind knows no cluster {self._settings.name}")]
        kubectl = [str(self._settings.bin_dir / "kubectl"), "--kubeconfig", str(self._settings.kubeconfig)]
        ready = succeeds([*kubectl, "wait", "--for=condition=Ready", "node", "--all", "--timeout=1s"])
        return [Row("nodes", ready, "Ready" if ready else "not Ready")]

    def cluster(self) -> Cluster:
        """Describe the cluster."""
        settings = self._settings
        if not settings.kubeconfig.exists():
            raise LocalClusterError(f"cluster {settings.name} is not made: run `python -m localcluster up`")
        return Cluster(settings.kubeconfig, settings.bin_dir, None, "kind", _docker_gateway())

    def build_and_load(self, name: str, dockerfile: Path, context: Path) -> str:
        """Build with Docker, which keeps its own cache, and hand the image to the cluster's node."""
        newest = f"localhost/{name}:dev"
        reference = f"localhost/{name}:{dockerfiles.content_hash(dockerfile, context)}"
        if not succeeds(["docker", "image", "inspect", reference]):
            with step(f"building {reference}"):
                run(["docker", "build", "--tag", reference, "--file", dockerfile, context])
        run(["docker", "tag", reference, newest])
        with step(f"loading {reference}"):
            self._kind("load", "docker-image", reference, newest, "--name", self._settings.name)
        return reference

    def _exists(self) -> bool:
        return self._settings.name in self._kind("get", "clusters").splitlines()

    def _kind(self, *arguments: str) -> str:
        return run([self._program(), *arguments])

    def _program(self) -> str:
        if found := shutil.which("kind"):
            return found
        place = self._settings.cache / "bin" / f"kind-{_VERSION}"
        if not (place / "kind").exists():
            if shutil.which("go") is None:
                raise LocalClusterError("kind is not on PATH, and neither is Go to build it: install one of them")
            with step(f"building kind {_VERSION}"):
                run(
                    ["go", "install", f"sigs.k8s.io/kind@{_VERSION}"],
                    env={"GOBIN": str(place), "CGO_ENABLED": "0"},
                )
        return str(place / "kind")

    def _link_tools(self) -> None:
        """Use the machine's kubectl and helm where it has both, else build the local cluster's."""
        directory = self._settings.bin_dir
        found = {name: shutil.which(name) for name in ("kubectl", "helm")}
        if not all(found.values()):
            binaries.link_tools(binaries.ensure(self._settings.cache), directory)
            return
        directory.mkdir(parents=True, exist_ok=True)
        for name, path in found.items():
            link = directory / name
            link.unlink(missing_ok=True)
            link.symlink_to(Path(str(path)).resolve())


def _docker_gateway() -> str | None:
    """Return the address of this machine in the network that kind puts its nodes into."""
    networks = json.loads(run(["docker", "network", "inspect", "kind"]))
    gateways = [c.get("Gateway", "") for n in networks for c in n.get("IPAM", {}).get("Config") or []]
    return next((gateway for gateway in gateways if "." in gateway), None)
