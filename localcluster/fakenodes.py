"""Nodes that are played by kwok: thousands of pods on a cluster that could not run twenty.

kwok is a process beside the cluster. It keeps nodes Ready, and takes pods on them through the stages that it is given
(https://kwok.sigs.k8s.io/docs/user/stages-configuration). Such pods have no log: the API server answers an error.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from localcluster import binaries
from localcluster.settings import from_environment
from localcluster.shell import assert_running, run, running, wait_until
from localcluster.targets import Cluster

LABEL = "claudejobs.local/kwok"
"""Label of the nodes that `kwok` makes; its value tells those of one call from another's."""

TAINT = {"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}
"""Keeps pods away that do not ask for such a node."""

_STAGES = Path(__file__).resolve().parent / "kwok" / "stages.yaml"
_PARALLEL = 16
"""Nodes or pods that are written at the same time. kwok has no default for a configuration from a file."""

Stage = Mapping[str, Any]


@dataclass(frozen=True)
class FakeNodes:
    """What runs, and how pods get there."""

    name: str
    """Value of the nodes' label."""
    log: Path
    """What kwok says."""
    process: subprocess.Popen[bytes]

    @property
    def placement(self) -> dict[str, Any]:
        """The part of a pod's spec that brings it onto these nodes and no others."""
        return {"nodeSelector": {LABEL: self.name}, "tolerations": [{**TAINT, "operator": "Equal"}]}


@contextmanager
def kwok(
    cluster: Cluster,
    stages: Sequence[Stage],
    *,
    nodes: int = 1,
    cpu: str = "1000",
    memory: str = "1000Gi",
    pods: int = 1000,
    manage: str | None = None,
) -> Iterator[FakeNodes]:
    """Have kwok play nodes until the block is left; then they are gone, and kwok with them.

    Args:
        stages: what becomes of the pods; that nodes are Ready and deleted pods go away is seen to.
        nodes: how many nodes to make; none, when somebody else makes them.
        cpu: what each of them has of it, as `memory` and `pods`.
        manage: label selector of nodes that somebody else makes, to play those too; default: only those made here.

    Raises:
        LocalClusterError: kwok cannot be built, or does not start.
    """
    program = binaries.build(binaries.kwok(), from_environment().cache / "bin") / "kwok"
    name = f"kwok-{uuid.uuid4().hex[:6]}"
    kubectl = cluster.kubectl
    _remove_abandoned(kubectl)
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
        config, log = Path(folder) / "kwok.yaml", Path(folder) / "log"
        config.write_text(yaml.safe_dump_all([_configuration(manage or f"{LABEL}={name}"), *stages, *_own_stages()]))
        with running([program, "--config", config, "--kubeconfig", cluster.kubeconfig], log) as process:
            try:
                made = FakeNodes(name, log, process)
                capacity = {"cpu": cpu, "memory": memory, "pods": str(pods), "ephemeral-storage": "1000Gi"}
                if nodes:
                    run([*kubectl, "create", "-f", "-"], stdin=yaml.safe_dump_all(_nodes(name, nodes, capacity)))
                wait_until("the nodes that kwok plays are Ready", lambda: _ready(kubectl, made, nodes), seconds=60)
                yield made
            finally:
                # The nodes first: while kwok runs, the pods that go with them are really removed.
                run([*kubectl, "delete", "nodes", "-l", f"{LABEL}={name}", "--wait=false"])


def _configuration(selector: str) -> Stage:
    return {
        "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
        "kind": "KwokConfiguration",
        "options": {
            "manageNodesWithLabelSelector": selector,
            "nodeLeaseDurationSeconds": 40,
            "nodeLeaseParallelism": _PARALLEL,
            "nodePlayStageParallelism": _PARALLEL,
            "podPlayStageParallelism": _PARALLEL,
            "podsOnNodeSyncParallelism": _PARALLEL,
            "enablePodsOnNodeSyncListPager": True,
            "enablePodsOnNodeSyncStreamWatch": False,
        },
    }


def _own_stages() -> list[Stage]:
    return list(yaml.safe_load_all(_STAGES.read_text()))


def _nodes(name: str, count: int, capacity: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": f"{name}-{n}", "labels": {LABEL: name, "kubernetes.io/os": "linux"}},
            "spec": {"taints": [TAINT]},
            "status": {"capacity": capacity, "allocatable": capacity},
        }
        for n in range(count)
    ]


def _ready(kubectl: Sequence[str | Path], made: FakeNodes, count: int) -> bool:
    assert_running("kwok", made.process, made.log)
    return len([node for node in _listed(kubectl, f"{LABEL}={made.name}") if _condition(node) == "True"]) == count


def _remove_abandoned(kubectl: Sequence[str | Path]) -> None:
    """Remove what a cut run left: nodes that were played, and are no more."""
    gone = [node["metadata"]["name"] for node in _listed(kubectl, LABEL) if _condition(node) == "Unknown"]
    if gone:
        run([*kubectl, "delete", "nodes", "--ignore-not-found", "--wait=false", *gone])


def _listed(kubectl: Sequence[str | Path], selector: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(run([*kubectl, "get", "nodes", "-l", selector, "-o", "json"]))["items"]
    return items


def _condition(node: Mapping[str, Any]) -> str:
    conditions = node.get("status", {}).get("conditions", [])
    return next((one["status"] for one in conditions if one["type"] == "Ready"), "")
