"""Karpenter, which makes and removes nodes as pods need them; kwok plays the nodes.

Karpenter (https://karpenter.sh) is a process beside the cluster, as kwok is. Its nodes have a taint, so that no pod
gets there that does not ask for them, and it leaves all other nodes alone: it disrupts only what it has made.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from localcluster import binaries
from localcluster.fakenodes import Stage, kwok
from localcluster.guests import remove
from localcluster.settings import from_environment
from localcluster.shell import assert_running, locked, run, running, wait_until
from localcluster.targets import Cluster

POOL_LABEL = "karpenter.sh/nodepool"
"""Label that Karpenter gives to its nodes; the value is the name of their NodePool."""

_TAINT = "claudejobs.local/karpenter"
_NODE_CLASS = {"group": "karpenter.kwok.sh", "kind": "KWOKNodeClass"}
_FINALIZED = ("nodepools.karpenter.sh", "nodeclaims.karpenter.sh")


@dataclass(frozen=True)
class Autoscaler:
    """What runs, and how pods get onto its nodes."""

    pool: str
    """Name of the NodePool."""
    log: Path
    """What Karpenter says."""
    process: subprocess.Popen[bytes]

    @property
    def placement(self) -> dict[str, Any]:
        """The part of a pod's spec that brings it onto these nodes and no others."""
        toleration = {"key": _TAINT, "operator": "Equal", "value": self.pool, "effect": "NoSchedule"}
        return {"nodeSelector": {POOL_LABEL: self.pool}, "tolerations": [toleration]}


@contextmanager
def karpenter(cluster: Cluster, node_pool: Mapping[str, Any], stages: Sequence[Stage]) -> Iterator[Autoscaler]:
    """Have Karpenter make nodes for pods that find no room, until the block is left; then nothing of it is left.

    A cluster has one Karpenter at a time: a second caller waits for the first to end.

    Args:
        cluster: where.
        node_pool: the NodePool; its name, its class of nodes and a taint are set here.
        stages: what becomes of the pods, as for ``kwok``.

    Raises:
        LocalClusterError: Karpenter or kwok cannot be built, or does not start.
    """
    cache = from_environment().cache
    programs = binaries.build(binaries.karpenter(), cache / "bin")
    definitions = run([programs / "crds"])
    kubectl = cluster.kubectl
    pool = f"karpenter-{uuid.uuid4().hex[:6]}"
    with (
        locked(cache / "karpenter.lock"),
        kwok(cluster, stages, nodes=0, manage=POOL_LABEL),
        tempfile.TemporaryDirectory(prefix=f"{pool}-") as folder,
    ):
        remove(kubectl, definitions, _FINALIZED, ["nodes", "-l", POOL_LABEL])  # what a cut run left
        try:
            run([*kubectl, "apply", "--server-side", "-f", "-"], stdin=definitions)
            run([*kubectl, "wait", "--for=condition=Established", "--timeout=60s", "-f", "-"], stdin=definitions)
            log = Path(folder) / "log"
            with running([programs / "kwok"], log, env=_environment(cluster)) as process:
                run([*kubectl, "create", "-f", "-"], stdin=yaml.safe_dump_all(_objects(pool, node_pool)))
                wait_until("Karpenter takes the NodePool", lambda: _ready(kubectl, pool, process, log), seconds=60)
                yield Autoscaler(pool, log, process)
        finally:
            remove(kubectl, definitions, _FINALIZED, ["nodes", "-l", POOL_LABEL])


def _environment(cluster: Cluster) -> dict[str, str]:
    # Port 0 is one that is free. There is no second Karpenter to elect a leader from.
    return {
        "KUBECONFIG": str(cluster.kubeconfig),
        "DISABLE_LEADER_ELECTION": "true",
        "METRICS_PORT": "0",
        "HEALTH_PROBE_PORT": "0",
    }


def _objects(pool: str, template: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The NodePool as the caller wants it, on nodes that kwok plays and that take nobody else's pods."""
    node_pool: dict[str, Any] = deepcopy(dict(template))
    node_pool["metadata"] = {"name": pool}
    spec = node_pool["spec"]["template"]["spec"]
    spec["nodeClassRef"] = {**_NODE_CLASS, "name": pool}
    spec["taints"] = [*spec.get("taints", []), {"key": _TAINT, "value": pool, "effect": "NoSchedule"}]
    node_class = {"apiVersion": f"{_NODE_CLASS['group']}/v1alpha1", "kind": _NODE_CLASS["kind"]}
    return [{**node_class, "metadata": {"name": pool}}, node_pool]


def _ready(kubectl: Sequence[str | Path], pool: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert_running("Karpenter", process, log)
    status = json.loads(run([*kubectl, "get", "nodepool", pool, "-o", "json"])).get("status", {})
    return any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", []))
