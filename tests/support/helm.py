"""Real helm against a real cluster."""

from __future__ import annotations

import subprocess
from typing import Any

import yaml

from localcluster import Cluster

from .operator import REPOSITORY

CHART = str(REPOSITORY / "charts" / "claudejobs")
PREVIOUS = str(REPOSITORY / "tests" / "integration" / "charts" / "claudejobs-0.1.0.tgz")
"""The chart as it was published before, by `helm package`."""


def helm(cluster: Cluster, *arguments: str, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm, with values for commands that take them, whatever comes of it."""
    command = [str(cluster.bin_dir / "helm"), "--kubeconfig", str(cluster.kubeconfig), *arguments]
    given = None if values is None else yaml.safe_dump(values)
    command += [] if given is None else ["--values", "-"]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False)
