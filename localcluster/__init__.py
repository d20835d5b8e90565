"""A real single-node Kubernetes cluster for development and tests, with or without Docker.

`python -m localcluster --help` lists the commands; `ensure()` is the way in for test suites.
"""

from __future__ import annotations

from pathlib import Path

from localcluster.autoscaler import Autoscaler, karpenter
from localcluster.fakenodes import FakeNodes, kwok
from localcluster.queueing import Kueue, kueue
from localcluster.settings import REPOSITORY, LocalClusterError, Settings, from_environment
from localcluster.targets import Cluster, Target, select

__all__ = [
    "Autoscaler",
    "Cluster",
    "FakeNodes",
    "Kueue",
    "LocalClusterError",
    "Settings",
    "Target",
    "audit_log_path",
    "build",
    "build_and_load_images",
    "chart_tools",
    "ensure",
    "from_environment",
    "helm_unittest",
    "karpenter",
    "kueue",
    "kwok",
    "select",
]


def ensure() -> Cluster:
    """Return a cluster that works, made or repaired first; seconds when it is up, minutes the first time.

    Which cluster is decided by the environment, as for the commands.
    Raises LocalClusterError when that is impossible, with what to do about it.
    """
    return select(from_environment()).up()


def build(name: str, dockerfile: Path, context: Path = REPOSITORY) -> str:
    """Build an image, load it into the running cluster, and return the reference that names its content.

    Raises LocalClusterError when the build fails or the cluster is not up.
    """
    return select(from_environment()).build_and_load(name, dockerfile, context)


def build_and_load_images(*names: str) -> dict[str, str]:
    """Do that for the product's own images (`claudejobs-operator`, ...; all when none is named).

    Return name -> reference. An image whose content is unchanged costs well under a second.
    """
    from localcluster import images  # noqa: PLC0415 - most callers never build

    return images.build_all(select(from_environment()).build_and_load, list(names))


def chart_tools() -> Path:
    """Return the directory of `kubeconform` and `rules`, built first if need be.

    Raises LocalClusterError when there is no Go toolchain to build with, or the build fails.
    """
    from localcluster import binaries  # noqa: PLC0415 - most callers never build

    return binaries.build(binaries.chart_tools(), from_environment().cache / "bin")


def helm_unittest() -> Path:
    """Return the program that runs a chart's suites, built first if need be.

    Raises LocalClusterError when there is no Go toolchain to build with, or the build fails.
    """
    from localcluster import binaries  # noqa: PLC0415 - most callers never build

    return binaries.build(binaries.helm_unittest(), from_environment().cache / "bin") / "helm-unittest"


def audit_log_path() -> Path | None:
    """Return where the running cluster's audit log is: one JSON line per API write, none for reads.

    None where the cluster keeps none that can be read from here.
    """
    return select(from_environment()).cluster().audit_log
